"""One writer at a time in a directory, however it is called: a lock on its file `.lock`.

The lock is flock's, which ends with the process that took it; the text in the file only says who that is.
Where a file system has no locks, the file itself is the lock: its time is renewed while its owner lives, and
one that is older than `SILENT_S`, or whose process is gone from this machine, no longer counts.

Left out: file systems whose locks hold on one machine only (NFS with local_lock, Lustre with localflock);
there two machines are not kept apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from posttrain.base.disk import why_unwritten
from posttrain.base.owner import alive, described, owner, read_owner
from posttrain.base.temporary import remove_abandoned
from posttrain.errors import RequestError

RENEW_S = 20.0
"""Seconds between two renewals of the time of a lock file."""
SILENT_S = 120.0
"""Age of a lock file after which its owner counts as dead, where only its time can tell."""

LOOK_S = 0.5
"""Seconds for which another process may have the lock only to look at it."""


class DirectoryLock:
    """The lock of one directory; not yet taken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / ".lock"
        self._handle: int | None = None
        self._end = threading.Event()

    def take(self) -> None:
        """Takes the lock, which ends with the process or with `release`, and removes what processes that were
        killed left unfinished in the directory.

        Raises:
            RequestError: another live process has it, or the directory cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while self._handle is None:
                self._handle = self._open()
        except OSError as error:
            broken = self.folder.is_symlink() and not self.folder.exists()
            why = f"it is a link to {os.readlink(self.folder)}, which does not exist" if broken else None
            reason = why or why_unwritten(error)
            raise RequestError(
                f"{self.folder} cannot be created: {reason}; choose another output_dir"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the text
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(owner()).encode(), 0)
        remove_abandoned(self.folder, below=True)

    def release(self) -> None:
        """Gives the lock back before the process ends; removes the directory where nothing else is in it."""
        if self._handle is None:
            return
        self._end.set()
        with contextlib.suppress(OSError):
            if [p.name for p in self.folder.iterdir()] == [".lock"]:
                self.file.unlink()
                self.folder.rmdir()
            else:
                os.ftruncate(self._handle, 0)
        os.close(self._handle)
        self._handle = None

    def holder(self) -> dict[str, Any] | None:
        """Who has the lock now, as it was written beside it; None where nobody has it."""
        try:
            handle = os.open(self.file, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until it is closed, which `take` waits for
            return None
        except BlockingIOError:
            return read_owner(self.file)
        except OSError:
            held, silent = read_owner(self.file), time.time() - os.fstat(handle).st_mtime
            return held if held and alive(held) and silent < SILENT_S else None
        finally:
            os.close(handle)

    def _open(self) -> int | None:
        """The locked file; None where it was removed in between, by a process that released it."""
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
            if not _same(handle, self.file):
                os.close(handle)
                return None
        except BlockingIOError:
            os.close(handle)
            raise self._refused() from None
        except OSError:
            self._without_locks(handle)
        return handle

    def _without_locks(self, handle: int) -> None:
        """Takes the file for the lock. Raises `RequestError` where its owner may live."""
        before = os.fstat(handle)
        os.utime(handle)  # the clock of the file system, not ours
        silent = os.fstat(handle).st_mtime - before.st_mtime
        held = read_owner(self.file)
        if held and held != {**owner(), "since": held.get("since")} and alive(held) and silent < SILENT_S:
            os.utime(handle, ns=(before.st_atime_ns, before.st_mtime_ns))
            os.close(handle)
            raise self._refused()
        threading.Thread(target=self._renew, args=(os.dup(handle),), daemon=True).start()

    def _renew(self, handle: int) -> None:
        while not self._end.wait(RENEW_S):
            with contextlib.suppress(OSError):
                os.utime(handle)
        os.close(handle)

    def _refused(self) -> RequestError:
        return RequestError(
            f"{self.folder} is being written by {described(read_owner(self.file))}; wait until it has ended, "
            "end it, or choose another name"
        )


def _lock(handle: int) -> None:
    """Tries for a moment: `holder`, in another process, has the lock while it looks."""
    until = time.monotonic() + LOOK_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
