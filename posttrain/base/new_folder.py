"""A new folder that appears whole: written under a temporary name of this process, then renamed.

Two processes may make folders of one name: the first that is done has it, the other leaves it as it is. Left
out: folders that several processes share the making of (data/make_once.py); checkpoints, which ranks write.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from posttrain.base.temporary import remove_abandoned, temporary_name
from posttrain.errors import WorkError


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `out` when the block ends; removed if the block raises.

    What processes of this machine that were killed left beside `out` is removed first.

    Raises:
        WorkError: `out` has appeared in the meantime; it is left as it is.
        OSError: the file system refuses.
    """
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(out.parent, out.name)
    temporary = temporary_name(out)
    temporary.mkdir()
    try:
        yield temporary
        _rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _rename(temporary: Path, out: Path) -> None:
    # rename(2) replaces an empty folder, which the look finds, and refuses any other that appears after it
    taken = WorkError(
        f"{out} has appeared since this command began and is left as it is; name another folder"
    )
    if os.path.lexists(out):
        raise taken
    try:
        temporary.rename(out)
    except OSError as error:
        raise (taken if os.path.lexists(out) else error) from error
