"""Temporary names that say which process uses them: what a killed one left is told from work in progress.

A file or folder is written under such a name beside its place and renamed once it is whole. Left out: the
folder of a checkpoint, which the ranks of a launch write together (`training/saving.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

from posttrain.base.process import may_run

OTHER_MACHINE_S = 24 * 3600.0
"""Age at which what a process of another machine was writing counts as abandoned."""
FORMAT = re.compile(r"\.tmp-(.+)\.[0-9a-f]{8}\.(\d+)\.(.+)")
LONGEST = 100
"""Bytes that are kept of the name: with a host name the whole must stay below 255."""


def temporary_name(path: Path) -> Path:
    """A new name beside `path`, of this process: `.tmp-NAME.RANDOM.PID.MACHINE`."""
    return path.with_name(f".tmp-{_short(path.name)}.{secrets.token_hex(4)}.{os.getpid()}.{machine()}")


def machine() -> str:
    """The host name and, on Linux, the namespace of process numbers: containers may share the name alone."""
    try:
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def remove_abandoned(folder: Path, name: str | None = None, below: bool = False) -> None:
    """Removes what processes that have ended left under temporary names in `folder`.

    `name`: only what was to become this file or folder. `below`: in all folders below as well. What this
    process has left counts too: call it before anything is written there.
    """
    for place, folders, files in os.walk(folder):
        for each in (each for each in [*folders, *files] if each.startswith(".tmp-")):
            match = FORMAT.fullmatch(each)
            if match and (name is None or _short(name) == match[1]):
                path = Path(place, each)
                with contextlib.suppress(OSError):  # another process may remove it, too
                    if _abandoned(path, int(match[2]), match[3]):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
        folders[:] = [each for each in folders if below and not each.startswith(".tmp-")]


def _short(name: str) -> str:
    return os.fsencode(name)[:LONGEST].decode(errors="ignore")


def _abandoned(path: Path, pid: int, host: str) -> bool:
    if host != machine():
        return time.time() - path.lstat().st_mtime > OTHER_MACHINE_S
    return pid == os.getpid() or not may_run(pid)  # numbers are given again
