"""A folder made once: one process works under a file lock, the others wait for the folder.

They wait until a deadline, and stop at once with the same message if the work fails. The lock is that of
flock where there is one, so a process that died does not block others. It works across machines that share a
file system, because all that counts is the finished folder (renamed into place) or the note
`<folder>.failed`. Left out: what the work is (cache.py).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from posttrain.base.disk import why_unwritten
from posttrain.base.files import NO_LOCKS, write_json
from posttrain.base.owner import described, owner, read_owner
from posttrain.base.temporary import remove_abandoned
from posttrain.errors import PosttrainError, RequestError, WorkError

log = logging.getLogger(__name__)
Damaged = Callable[[Path], str | None]
"""The name of a file of a finished folder that is not as it was written, or None."""


POLL = 0.5
"""Seconds between two checks while waiting."""


def make_once(
    folder: Path,
    make: Callable[[], object],
    what: str,
    deadline: float,
    damaged: Damaged = lambda folder: None,
) -> None:
    """Runs `make`, which creates `folder`, unless it is there or another process makes it, for which it
    waits. One that is there and damaged is removed first.

    `what` names the work in messages ("source 'gsm8k'"); `deadline` is a time of time.monotonic(). What
    processes that were killed left unfinished beside it is removed.

    Raises:
        WorkError: the disk refuses, or the deadline passed while another process held the lock.
        Exception: what `make` raises.
    """
    remove_abandoned(folder.parent)
    if folder.is_dir() and not damaged(folder):
        return
    holder = Path(f"{folder}.holder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder, deadline)
    except Timeout as error:
        raise WorkError(
            f"{what}: {described(read_owner(holder))} is preparing the same rows and still held "
            f"{error.lock_file} when data.prepare_timeout ran out; wait for it, or raise the timeout"
        ) from None
    except OSError as error:
        raise _refused(folder, what, error) from error
    try:
        if folder.is_dir() and (file := damaged(folder)):
            log.warning("%s: %s is damaged; its rows are prepared again", what, folder / file)
            shutil.rmtree(folder)
        if not folder.is_dir():  # another process may have made it meanwhile
            with suppress(WorkError):  # the disk may be full; the note only says who holds the lock
                write_json(holder, owner())
            _make(folder, make, what)
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _locked(folder: Path, deadline: float) -> BaseFileLock:
    """The lock of `folder`, taken.

    Where the file system has no locks, a file is the lock, which counts while its process lives.
    """
    lock: BaseFileLock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=max(0.0, deadline - time.monotonic()), poll_interval=POLL)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(f"{folder}.locked")
        lock.acquire(timeout=max(0.0, deadline - time.monotonic()), poll_interval=POLL)
    return lock


def _make(folder: Path, make: Callable[[], object], what: str) -> None:
    """Makes the folder, while this process holds the lock."""
    note = _note(folder)
    note.unlink(missing_ok=True)
    try:
        make()
    except OSError as error:
        refused = _refused(folder, what, error)
        _leave(note, refused)
        raise refused from error
    except Exception as error:
        _leave(note, error)
        raise


def wait_for(folder: Path, what: str, deadline: float, damaged: Damaged = lambda folder: None) -> None:
    """Returns when another process has made `folder`, and it is not damaged.

    An older note counts only if the failure must repeat itself: a wrong request does, because the name of the
    folder covers everything that was requested; a full disk does not.

    Raises RequestError or WorkError with the message of the failure, and WorkError at the deadline.
    """
    note = _note(folder)
    before = _read(note)
    while True:
        if folder.parent.is_dir():
            os.listdir(folder.parent)  # makes a network file system refresh its cache
        if folder.is_dir() and not damaged(folder):
            return
        failure = _read(note)
        if failure and failure["exit_code"] == RequestError.exit_code:
            raise RequestError(failure["text"])
        if failure and failure != before:
            raise WorkError(failure["text"])
        if time.monotonic() >= deadline:
            earlier = f" (an earlier attempt failed: {before['text']})" if before else ""
            raise WorkError(
                f"{what}: waited for the main process to make {folder} until data.prepare_timeout ran out, "
                f"but it has neither finished nor failed; see its log, or raise the timeout{earlier}"
            )
        time.sleep(POLL)


def _note(folder: Path) -> Path:
    return Path(f"{folder}.failed")


def _leave(note: Path, error: Exception) -> None:
    known = isinstance(error, PosttrainError)
    text = str(error) if known else f"the main process failed: {type(error).__name__}: {error}"
    code = error.exit_code if known else WorkError.exit_code
    with suppress(WorkError):  # the disk may be full; the error itself is raised anyway
        write_json(note, {"text": text, "exit_code": code, "at": time.time()})


def _read(note: Path) -> dict[str, Any] | None:
    try:
        return json.loads(note.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _refused(folder: Path, what: str, error: OSError) -> WorkError:
    try:
        free = f"{shutil.disk_usage(folder.parent).free / 2**30:.1f} GiB free"
    except OSError:
        free = "the folder does not exist"
    return WorkError(
        f"{what}: cannot write prepared rows to {folder.parent} ({free}): {why_unwritten(error)}. Nothing "
        "incomplete is left there. Free some space, or set data.cache_dir or POSTTRAIN_CACHE to another place"
    )
