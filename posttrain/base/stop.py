"""Signals: Ctrl-C, SIGTERM and Slurm's SIGUSR1 set a flag; the loop that reads it saves its work and ends.

Long work calls `check_stop` between its batches, or is `left_at_once`. Left out: how training ranks agree
on the flag (training/trainer.py) and learn of it (training/peers.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from posttrain.errors import WorkError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(WorkError):
    """A signal stopped the run; its work so far is saved."""


class StopRequest:
    """A context manager during which any of `SIGNALS` sets `requested`; it restores the old handlers.

    The first signal prints `notice`. While `can_save` is False there is nothing to save yet, and a signal
    raises KeyboardInterrupt instead; so does a second Ctrl-C at any time. At the end the seconds since the
    first signal are printed.
    """

    def __init__(self, notice: str = "saving a checkpoint, then stopping") -> None:
        self.notice = notice
        self.can_save = False
        self.is_void: Callable[[], bool] = lambda: False
        """Whether nothing can be saved any more, because a rank is lost; a signal is then no request."""
        self.ending = False
        """The work has ended, and how is being recorded: signals are ignored."""
        self.discarded = False
        """Nothing is kept of what is done now: the first signal raises KeyboardInterrupt."""
        self._first: tuple[str, float] | None = None
        self._before: dict[int, Any] = {}
        self._outer: StopRequest | None = None

    @property
    def requested(self) -> bool:
        return self._first is not None

    def check(self) -> None:
        """Raises `Stopped` where the process was asked to stop, or its work has ended."""
        if self.requested or self.ending:
            raise Stopped(f"stopped by {self._first[0]}" if self._first else "the work has ended")

    def __enter__(self) -> StopRequest:
        global _current
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        self._outer, _current = _current, self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        global _current
        _current = self._outer
        if _current is not None and kind is not None:
            _current.ending = True
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._first is not None:
            name, since = self._first
            print(f"stopped {time.monotonic() - since:.1f} s after {name}", file=sys.stderr, flush=True)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.ending:
            return
        second = self.requested and number == signal.SIGINT
        immediate = second or not self.can_save or (self.discarded and not self.requested)
        if self.is_void():
            if immediate:
                raise KeyboardInterrupt
            return
        if self._first is None:
            self._first = signal.Signals(number).name, time.monotonic()
            if not immediate:
                print(f"\n{self._first[0]}: {self.notice}", file=sys.stderr, flush=True)
        if immediate:
            raise KeyboardInterrupt


_current: StopRequest | None = None
"""The innermost request that is in force."""


def stop_main_thread() -> None:
    """SIGTERM to the main thread itself: it may wait in a call that only its own signals end."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)


def check_stop() -> None:
    """Raises `Stopped` where this process was asked to stop; called between the batches of long work."""
    if _current is not None and _current.requested:
        raise Stopped(f"stopped by {_current._first[0]}")


def stop_check() -> Callable[[], None]:
    """`check_stop` for long work in a thread, which the interpreter waits for before it exits: it keeps to
    the request that is in force now, also once the main thread has left it."""
    return _current.check if _current is not None else lambda: None


@contextlib.contextmanager
def left_at_once() -> Iterator[None]:
    """For a call that takes long and cannot ask `check_stop`, as the loading of a model: a signal ends it.

    Only where nothing of it is kept, and the process then ends. Raises `Stopped`.
    """
    request = _current
    if request is None or not request.can_save:  # a signal raises KeyboardInterrupt anyway
        yield
        return
    request.discarded = True
    try:
        check_stop()
        yield
    except KeyboardInterrupt:
        check_stop()
        raise
    finally:
        request.discarded = False


def leave_signals_to_parent(_worker: int = 0) -> None:
    """In a worker process: only its parent ends it.

    Launchers and terminals send a signal to the whole process group, Slurm to every process of a job. A
    worker that ends with it would fail the step that its parent finishes before it saves.
    """
    for number in {*SIGNALS} - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    # SIGTERM is also how a parent ends a worker that is left over; a handler is not told who sent it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once, for the time while libraries are imported.

    Some of them catch a KeyboardInterrupt during their import and fail later with another error.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted before anything was started\n")
        os._exit(1)

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
