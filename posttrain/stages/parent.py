"""Ties the processes of a stage to the `posttrain run` that started them: none outlives it.

Every process of a stage, also the ranks of a launcher, which have sessions of their own, inherits the
variable `POSTTRAIN_PARENT`: the process to watch and the folder that it works on. Where that process is gone,
they end as on SIGTERM. Left out: a parent on another machine.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import psutil

from posttrain.base.process import runs
from posttrain.base.stop import Stopped, stop_main_thread
from posttrain.errors import RequestError

log = logging.getLogger(__name__)
PARENT = "POSTTRAIN_PARENT"
POLL_S = 0.5
STOP_S = 600.0
"""Seconds that a stage may take to end after it was asked to; then it is killed."""


def child_environment(folder: Path) -> dict[str, str]:
    """What the environment of a stage needs so that it ends with this process, which works on `folder`."""
    return {PARENT: f"{os.getpid()} {folder.resolve()}"}


def end_with_parent() -> None:
    """Watches the `posttrain run` that started this stage, if one did, until this process ends.

    Raises:
        Stopped: it is gone already.
    """
    pid = os.environ.get(PARENT, "").partition(" ")[0]
    if not pid:
        return
    parent = _older(int(pid), psutil.Process())
    if parent is None:
        raise Stopped(f"not started: {_gone(pid)}")
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _older(pid: int, child: psutil.Process) -> psutil.Process | None:
    """The parent `pid` of `child` if it still runs; a process that began later has only taken its number."""
    try:
        found = psutil.Process(pid)
        return found if runs(found) and found.create_time() <= child.create_time() else None
    except psutil.Error:
        return None


def _watch(parent: psutil.Process) -> None:
    while runs(parent):
        time.sleep(POLL_S)
    log.warning("%s; stopping as on SIGTERM", _gone(parent.pid))
    stop_main_thread()
    time.sleep(STOP_S)
    log.error("this stage has not ended %g s later: killed", STOP_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _gone(pid: int | str) -> str:
    return f"the `posttrain run` that started this stage (process {pid}) has ended"


def wait_for_orphans(folder: Path, patience_s: float = STOP_S + 60) -> None:
    """Waits until what an earlier `posttrain run` on `folder`, now dead, has left running has ended.

    Raises:
        RequestError: some of it still runs after `patience_s`.
    """
    until, said = time.monotonic() + patience_s, False
    while found := _orphans(folder):
        names = ", ".join(map(str, found[:8]))
        if time.monotonic() > until:
            raise RequestError(
                f"{folder}: process {names} of an earlier `posttrain run` still runs; end it, then run the "
                "same command again"
            )
        if not said:
            log.warning("waiting for process %s of an earlier `posttrain run` to save and end", names)
            said = True
        time.sleep(POLL_S)


def _orphans(folder: Path) -> list[int]:
    """The processes of this user that a `posttrain run` started for `folder` and that outlive it."""
    mark, found = str(folder.resolve()), []
    for process in psutil.process_iter():
        try:
            pid, _, place = process.environ().get(PARENT, "").partition(" ")
        except (psutil.Error, OSError):  # of another user, or just ended
            continue
        if place == mark and _older(int(pid), process) is None and process.pid != os.getpid():
            found.append(process.pid)
    return found
