"""How the ranks of a sampling stage, which have no process group, notice that one of them has ended.

Rank 0 holds the lock of the run directory, every other rank that of `.ranks/<rank>/`, as long as it lives. A
rank that stops or fails says why: rank 0 in run.json, the others in the file `ended` beside their lock. Left
out: a rank that ends before the others have seen it once; hung ranks (chunks.py).
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from posttrain.base.files import read_json, write_json
from posttrain.base.process import rank, world_size
from posttrain.base.stop import Stopped, stop_main_thread
from posttrain.errors import WorkError
from posttrain.rundir.directory import RunDir
from posttrain.rundir.lock import DirectoryLock
from posttrain.training.peers import described

POLL_S = 0.5
PATIENCE_S = 1800.0
"""Seconds that a rank waits for rank 0 to record the start."""


class Ranks:
    """A context manager for the time that this rank works on `run`, whose directory rank 0 has locked.

    Where another rank dies, stops or fails, this process gets a SIGTERM, and `trouble` is the reason.
    """

    def __init__(self, run: RunDir) -> None:
        self.run, self.folder = run, run.path / ".ranks"
        self.trouble: WorkError | None = None
        self._own = DirectoryLock(self.folder / str(rank())) if rank() else None
        self._seen: dict[int, dict[str, Any]] = {}
        self._before: dict[str, Any] = {}
        """run.json as an earlier start left it: it says nothing of how rank 0 ends now."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Ranks:
        if world_size() == 1:
            shutil.rmtree(self.folder, ignore_errors=True)  # of a start with more ranks
            return self
        self._before = _facts_of(self.run.run)
        if self._own is not None:
            self._own.take()
            _ended(self._own).unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if world_size() == 1:
            return
        self._end.set()
        self._thread.join()
        if self._own is not None:
            if error is not None and self.run.run.exists():
                with contextlib.suppress(WorkError):  # a full disk: then it counts as dead
                    write_json(_ended(self._own), {"stopped": _stops(error), "error": str(error)})
            self._own.release()
        elif error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        for empty in (self.folder, self.run.path):
            with contextlib.suppress(OSError):
                empty.rmdir()

    def look(self) -> WorkError | None:
        """Why the work cannot go on, if another rank has ended before its share was done."""
        for other in range(world_size()):
            if other == rank():
                continue
            lock = self._lock(other)
            holder = lock.holder()
            if holder is not None:
                self._seen[other] = holder or self._seen.get(other, {})
            elif other in self._seen and (found := self._ending(other, lock)):
                return found
        return None

    def wait_for_start(self, recipe_hash: str) -> None:
        """Waits until rank 0 has recorded the run of this recipe: before, it may remove what it finds."""
        until = time.monotonic() + PATIENCE_S
        while rank() and self.run.info().get("recipe_hash") != recipe_hash:
            if time.monotonic() > until:
                raise WorkError(f"rank 0 has not begun for {PATIENCE_S / 60:g} minutes")
            time.sleep(0.1)

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            with contextlib.suppress(OSError):  # of the file system; the next look may do
                self.trouble = self.look()
            if self.trouble is not None:
                stop_main_thread()
                return

    def _lock(self, other: int) -> DirectoryLock:
        return DirectoryLock(self.folder / str(other) if other else self.run.path)

    def _ending(self, other: int, lock: DirectoryLock) -> WorkError | None:
        """What the ending of a rank that no longer holds its lock means for this one."""
        if other and not lock.file.exists():
            return None  # its share is done
        about = self._facts(other, lock)
        if about.get("status") == "finished":
            return None
        if about.get("stopped") or about.get("status") == "stopped":
            return Stopped(f"rank {other} was stopped: {about.get('error')}")
        if about.get("error"):
            return WorkError(f"rank {other} failed: {about['error']}")
        who = described(other, {"pid": "?", "host": "?"} | self._seen[other])
        return WorkError(f"{who} has died; run the same command to resume")

    def _facts(self, other: int, lock: DirectoryLock) -> dict[str, Any]:
        if other:
            return _facts_of(_ended(lock))
        found = _facts_of(self.run.run)
        return {} if found == self._before else found


def _facts_of(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (OSError, WorkError):
        return {}
    return found if isinstance(found, dict) else {}


def _ended(lock: DirectoryLock) -> Path:
    return lock.folder / "ended"


def _stops(error: BaseException) -> bool:
    return isinstance(error, Stopped | KeyboardInterrupt)
