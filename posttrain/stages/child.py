"""A process that is asked to stop, asked again, and in the end killed: a stage, or a launcher with its ranks.

Left out: what it does (`stage_process.py`), and that it ends with its parent (`parent.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import IO

import psutil

from posttrain.base.stop import StopRequest
from posttrain.errors import WorkError
from posttrain.stages.parent import STOP_S

ASK_AGAIN_S = 5.0
"""Seconds after which a process that still runs is asked to stop once more."""
HURRY_S = 10.0
"""As `STOP_S`, where nothing needs to be saved: after a second Ctrl-C."""
POLL_S = 0.2


def _ignore_usr1() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Child:
    """Starts `command`; `launched`: it is a launcher, whose ranks do the work. `out` takes what it prints
    (default: where this process prints)."""

    def __init__(
        self, command: list[str], environment: dict[str, str], launched: bool, out: IO[bytes] | None = None
    ) -> None:
        self.launched, self.asked = launched, False
        self.ask_at, self.deadline = 0.0, float("inf")
        """Monotonic seconds at which it is asked to stop again, and killed."""
        self.killed = ""
        """Why it was killed."""
        self.process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out and subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent
            preexec_fn=_ignore_usr1 if launched else None,
        )

    def stop(self, hurry: bool = False) -> None:
        """Asks the process to save a checkpoint and end; to be called again and again until it has ended.

        It is asked again every `ASK_AGAIN_S`, and killed `STOP_S` after it was first asked. `hurry`: it is
        interrupted instead, saves nothing, and has `HURRY_S`.
        """
        now = time.monotonic()
        patience = HURRY_S if hurry else STOP_S
        if now + patience < self.deadline:  # asked for the first time, or in a hurry for the first time
            self.deadline, self.ask_at = now + patience, now
        if self.process.poll() is not None:
            return
        if now >= self.deadline:
            self.kill(f"killed: it had not ended {patience:g} s after it was asked to")
        elif now >= self.ask_at:
            self.asked, self.ask_at = True, now + ASK_AGAIN_S
            self._ask(signal.SIGINT if hurry else signal.SIGUSR1 if self.launched else signal.SIGTERM)

    def _ask(self, number: signal.Signals) -> None:
        """Sends a signal to the process, or to the ranks of its launcher.

        The launcher would kill its ranks soon after a SIGTERM, saved or not. They are its children, some in
        sessions of their own, and ignore SIGUSR1 until they listen to it.
        """
        for process in self._descendants(recursive=False) if self.launched else [self.process]:
            with contextlib.suppress(psutil.Error):  # it has just ended
                process.send_signal(number)

    def kill(self, why: str) -> None:
        """Ends the process at once, with all of its processes."""
        self.killed = why
        for process in [*self._descendants(recursive=True), self.process]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _descendants(self, recursive: bool) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive)
        except psutil.Error:
            return []


def run_launched(command: list[str], environment: dict[str, str]) -> int:
    """Runs a launcher to its end and returns the exit code; a signal to this process is handed to its ranks.

    Raises:
        WorkError: it had to be killed.
    """
    notice = "the ranks save a checkpoint, then stop; Ctrl-C again ends them at once"
    with StopRequest(notice) as stop:
        stop.can_save = True
        child, hurry = Child(command, environment, launched=True), False
        try:
            while True:
                try:
                    if (code := child.process.poll()) is not None:
                        break
                    if stop.requested:
                        child.stop(hurry)
                    time.sleep(POLL_S)
                except KeyboardInterrupt:  # the second Ctrl-C
                    hurry = True
        finally:
            if child.process.poll() is None:
                child.kill("killed")
    if child.killed:
        raise WorkError(f"the launcher and its ranks were {child.killed}")
    return code if code >= 0 else 1
