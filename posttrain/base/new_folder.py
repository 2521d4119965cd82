"""A new folder that appears whole: written under a temporary name of this process, then renamed.

Two processes may make folders of one name: the first that is done has it, the other leaves it as it is. Left
out: folders that several processes share the making of (data/make_once.py); checkpoints, which ranks write.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from posttrain.base.owner import alive
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
    start, host = f".tmp-{out.name}.", socket.gethostname()
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out.parent, start, host)
    temporary = out.with_name(f"{start}{os.getpid()}.{host}")
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


def _remove_abandoned(parent: Path, start: str, host: str) -> None:
    for path in parent.iterdir():
        pid, _, machine = path.name.removeprefix(start).partition(".")
        if not path.name.startswith(start) or machine != host or not pid.isdecimal():
            continue
        own = int(pid) == os.getpid()  # of an earlier process: in a container each may have the same id
        if own or not alive({"pid": int(pid), "host": machine}):
            shutil.rmtree(path, ignore_errors=True)
