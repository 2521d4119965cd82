"""Ctrl-C, SIGTERM and Slurm's SIGUSR1 become a flag that the training loop agrees on across ranks.

The loop then writes a checkpoint and ends. A second Ctrl-C ends at once (the last whole checkpoint stays), and so
does the first one before training has begun: there is nothing to save.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from posttrain.errors import WorkError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(WorkError):
    """The run was asked to stop; what it has done so far is saved."""


class StopRequest:
    """Context manager: installs the handlers, restores the old ones."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.training or (self.signal is not None and number == signal.SIGINT):
            raise KeyboardInterrupt
        if self.signal is None:
            name = signal.Signals(number).name
            print(f"\n{name}: saving a checkpoint, then stopping", file=sys.stderr, flush=True)
        self.signal = number

    @property
    def requested(self) -> bool:
        return self.signal is not None
