"""Slots for many threads: one zygote per core and back-end, handed out in order of arrival.

A check waits for a slot until its queue deadline. If the zygote is lost, it is started again and the check is
retried once; a second loss is the checker's failure. Zygotes end with the process; forked copies start their
own.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from posttrain.base.process import usable_cores
from posttrain.rewards.code.sandbox.slot import Slot, SlotLost

T = TypeVar("T")


class QueueFull(Exception):
    """No slot became free before the deadline."""


class Pool:
    """Slots of one back-end."""

    def __init__(self, backend: str, size: int | None = None):
        self.backend, self.size = backend, size or usable_cores()
        self.idle = [Slot(backend, number) for number in reversed(range(self.size))]
        self.all = list(self.idle)
        self.turn = threading.Lock()
        self.waiting: deque[tuple[threading.Event, list[Slot]]] = deque()
        self.owner = os.getpid()
        self.closed = False

    @contextmanager
    def slot(self, wait: float) -> Iterator[Slot]:
        """A slot for one check. Raises `QueueFull` after `wait` seconds."""
        place: list[Slot] = []
        mine = threading.Event()
        with self.turn:
            if self.idle and not self.waiting:
                place.append(self.idle.pop())
            else:
                self.waiting.append((mine, place))
        if not place and not mine.wait(wait):
            with self.turn:
                if not place:
                    self.waiting.remove((mine, place))
                    raise QueueFull(f"no slot of the sandbox became free within {wait:g} s")
        try:
            yield place[0]
        finally:
            with self.turn:
                if self.waiting:  # first come, first served
                    event, theirs = self.waiting.popleft()
                    theirs.append(place[0])
                    event.set()
                else:
                    self.idle.append(place[0])

    def run(self, check: Callable[[Slot], T], wait: float) -> T:
        """`check(slot)` on a live slot. Raises `QueueFull`, or `SlotLost` when the slot was lost twice."""
        with self.slot(wait) as slot:
            for last in (False, True):
                try:
                    if not slot.alive:
                        slot.stop()
                        slot.start()
                    return check(slot)
                except SlotLost:
                    slot.stop()
                    if last:
                        raise
                except BaseException:
                    slot.stop()  # the conversation may have stopped halfway
                    raise
        raise AssertionError

    def close(self) -> None:
        """Ends every zygote."""
        self.closed = True
        for slot in self.all:
            slot.stop()


_pools: dict[str, Pool] = {}
_lock = threading.Lock()


def pool(backend: str) -> Pool:
    """The pool of a back-end in this process."""
    with _lock:
        found = _pools.get(backend)
        if found is None or found.closed:
            found = _pools[backend] = Pool(backend)
        return found


def close_all() -> None:
    """Ends every pool of this process."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
    for each in pools:
        if each.owner == os.getpid():
            each.close()


def _after_fork() -> None:
    """Closes the sockets in a forked copy, so that the zygotes still end with the process that owns them."""
    global _lock
    _lock = threading.Lock()
    for each in _pools.values():
        for slot in each.all:
            if slot.control is not None:
                slot.control.close()
            slot.control = slot.process = None
    _pools.clear()


atexit.register(close_all)
os.register_at_fork(after_in_child=_after_fork)
