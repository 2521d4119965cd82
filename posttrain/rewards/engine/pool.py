"""Worker processes that can be killed: started on demand, shared by all threads, replaced when they die.

A check that exceeds its time limit is ended by killing its process. Code in the process cannot prevent that,
and no signal handler is involved, so it works from any thread. The clock of a check starts when the worker
begins it; time that the check spends waiting for a core on a busy machine does not count. Left out: the
verdicts; see batch.py.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from posttrain.base.process import local_world_size, usable_cores
from posttrain.rewards.engine.worker import pack, unpack

MEMORY_MB = 4096
"""Address space of a worker in MiB. Python with sympy takes about 0.3 GiB of it."""
START_S = 120.0
"""Seconds a worker may take to start and import."""
STARVED = 4
"""A check that waits for a core may take up to this many times its limit."""


class Worker:
    """One process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        program = "import sys; from posttrain.rewards.engine.worker import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program]
        arguments = [str(theirs.fileno()), str(MEMORY_MB), str(os.getpid())]
        self.process = subprocess.Popen(
            [*command, *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.began: tuple[float, float] | None = None
        """(monotonic seconds, CPU seconds) at the start of the current check."""
        self.sent = 0.0
        """Monotonic seconds at which the current chunk was handed over."""

    def send(self, chunk: dict[str, Any]) -> None:
        """Hands over a chunk of checks. Raises OSError if the process is gone."""
        self.began, self.sent = None, time.monotonic()
        self.connection.send_bytes(pack(chunk))

    def receive(self) -> dict[str, Any] | None:
        """The next message; None if the process is gone."""
        try:
            message = unpack(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        clocks = message.get("ready") or message.get("clocks")
        if clocks:
            self.began = (clocks[0], clocks[1])
        return message

    def left(self, limit_s: float) -> float:
        """Seconds that the current check may still take; 0 or less when its time is up."""
        now = time.monotonic()
        if self.began is None:
            return START_S - (now - self.sent)
        wall = now - self.began[0]
        if wall < limit_s:
            return limit_s - wall
        running, cpu = self._cpu()
        starved = running and cpu - self.began[1] < limit_s
        return min(limit_s - (cpu - self.began[1]), STARVED * limit_s - wall) if starved else 0.0

    def _cpu(self) -> tuple[bool, float]:
        """(whether it is runnable, CPU seconds so far), from the kernel; (False, 0) without /proc."""
        try:
            with open(f"/proc/{self.process.pid}/stat", "rb") as file:
                state, *rest = file.read().rpartition(b")")[2].split()
        except OSError:
            return False, 0.0
        return state == b"R", (int(rest[10]) + int(rest[11])) / os.sysconf("SC_CLK_TCK")

    def died(self) -> str:
        """How the process ended, as part of a message."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(5)
            return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return "closed its socket"

    def close(self) -> None:
        """Kills the process and reaps it."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Pool:
    """At most `size` workers at work at a time, over all threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._free = threading.Condition()
        self._taken = 0
        # The kernel ends a worker when the *thread* that started it ends; this one outlives all batches.
        self._starter = ThreadPoolExecutor(1, "reward-workers")

    def take(self, wait_s: float | None = 0.0) -> Worker | None:
        """A worker, as soon as one of the `size` places is free; None if none is free after `wait_s` seconds.

        `wait_s=None` waits without limit.
        """
        with self._free:
            if not self._free.wait_for(lambda: self._taken < self.size, wait_s):
                return None
            self._taken += 1
            while self._idle:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                self._all.discard(worker)
                worker.close()
        try:
            worker = self._starter.submit(Worker).result()
        except BaseException:
            with self._free:
                self._taken -= 1
                self._free.notify()
            raise
        with self._free:
            self._all.add(worker)
        return worker

    def give(self, worker: Worker, alive: bool = True) -> None:
        """Hands a worker back; with `alive=False` it is killed and not used again."""
        if not alive:
            worker.close()
        with self._free:
            self._taken -= 1
            if alive:
                self._idle.append(worker)
            else:
                self._all.discard(worker)
            self._free.notify()

    def close(self) -> None:
        """Kills every worker."""
        with self._free:
            gone, self._all, self._idle = self._all, set(), []
        for worker in gone:
            worker.close()


_POOLS: dict[tuple[int, int], Pool] = {}
"""(process id, size) -> pool."""
_LOCK = threading.Lock()


def share_of_cores() -> int:
    """Cores for this process: those of the machine, divided among its ranks."""
    return max(1, usable_cores() // max(1, local_world_size()))


def pool(size: int | None = None) -> Pool:
    """The pool of this process with `size` workers (default: a core each). A forked child gets its own."""
    key = (os.getpid(), size or share_of_cores())
    with _LOCK:
        if key not in _POOLS:
            _POOLS[key] = Pool(key[1])
        return _POOLS[key]


@atexit.register
def _close() -> None:
    for (pid, _), each in list(_POOLS.items()):
        if pid == os.getpid():
            each.close()
