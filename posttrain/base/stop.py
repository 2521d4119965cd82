"""Signals: Ctrl-C, SIGTERM and Slurm's SIGUSR1 set a flag; the loop that reads it saves its work and ends.

Left out: how training ranks agree on the flag (training/trainer.py).
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
    """A signal stopped the run; its work so far is saved."""


class StopRequest:
    """A context manager during which any of `signals` sets `requested`; it restores the old handlers.

    The first signal prints `notice`. While `can_save` is False there is nothing to save yet, and a signal
    raises KeyboardInterrupt instead; so does a second Ctrl-C at any time. With `interrupts=False` neither
    raises.
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
    """Ctrl-C ends the process at once, for the time while libraries are imported.

    Some of them catch a KeyboardInterrupt during their import and fail later with another error.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted before anything was started\n")
        os._exit(1)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
