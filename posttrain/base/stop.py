"""Signals: Ctrl-C, SIGTERM and Slurm's SIGUSR1 become a flag that a loop reads when it can save and end.

Training ranks agree on the flag (training/trainer.py), sampling and pipelines read their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from posttrain.errors import WorkError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(WorkError):
    """The run was asked to stop; what it has done so far is saved."""


class StopRequest:
    """Context manager: turns `signals` into `requested`, and restores the old handlers at its end.

    Until `can_save` is set there is nothing to save, and a signal raises KeyboardInterrupt at once; so does a
    second Ctrl-C (the last complete checkpoint stays). With `interrupts=False` neither does. `notice` is what the
    user is told when the first signal arrives.
    """

    def __init__(
        self,
        signals: Sequence[signal.Signals] = SIGNALS,
        notice: str = "saving a checkpoint, then stopping",
        interrupts: bool = True,
    ) -> None:
        self.signals, self.notice, self.interrupts = signals, notice, interrupts
        self.requested = False
        self.can_save = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in self.signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second = self.requested and number == signal.SIGINT
        if self.interrupts and (second or not self.can_save):
            raise KeyboardInterrupt
        if not self.requested:
            print(f"\n{signal.Signals(number).name}: {self.notice}", file=sys.stderr, flush=True)
        self.requested = True


@contextlib.contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """While the libraries are imported, Ctrl-C ends the process at once: nothing has started, and some libraries
    swallow a KeyboardInterrupt during their import and fail later with another error."""

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted before anything had started\n")
        os._exit(1)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
