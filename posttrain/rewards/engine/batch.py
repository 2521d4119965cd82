"""Many checks at once: in order, on all cores, with a deadline; equal verdicts for any number of workers.

A worker that dies is replaced, and its check is tried once more in another. A check whose worker dies twice
is an `error`; one that takes too long is 0 with the reason `limit`. A check without a verdict at the deadline
is a `timeout`. Left out: the weighted sum of several rewards; see compose.py.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

from posttrain.base.stop import check_stop
from posttrain.errors import RequestError, WorkError
from posttrain.rewards.engine.call import call, call_batch, checked
from posttrain.rewards.engine.pool import STARVED, Pool, Worker, pool, share_of_cores
from posttrain.rewards.engine.worker import as_fields
from posttrain.rewards.registry import Bound, as_example, bind, failed, limited
from posttrain.types import Example, Verdict

DEADLINE_S = 600.0
"""Seconds that a batch may take in addition to the time limits of its checks."""
POLL_S = 1.0
"""Seconds between two looks at whether this process was asked to stop."""
TRIES = 5
"""A batch gives up after this many workers in a row have died before their first check."""
CHUNK = 32
"""At most this many checks are handed to a worker at a time; fewer if there are few in all."""
CHUNK_CHARACTERS = 4_000_000
"""A chunk is closed once its completions have this many characters together."""


def score(name: str, completion: str, example: Any, **options: Any) -> Verdict:
    """The verdict of reward `name` on one completion. Raises `RequestError`: unknown reward or option."""
    return score_batch(bind(name, options), [completion], [example])[0]


def score_batch(
    bound: Bound,
    completions: Sequence[str],
    examples: Sequence[Any],
    deadline_s: float | None = None,
    workers: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[Verdict]:
    """One verdict for each completion, in order. May be called from several threads at once.

    Args:
        bound: the reward with its options.
        completions: the texts to score.
        examples: the rows; `examples[i]` belongs to `completions[i]`.
        deadline_s: seconds after which checks without a verdict become `timeout`. By default it leaves every
            check its full time limit, so that slow completions cannot cost others their verdicts.
        workers: number of processes or threads (default: the cores of this rank).
        done: called after each verdict.

    Raises:
        RequestError: the reward rejects its options, or the two lists differ in length.
        WorkError: worker processes cannot be started.
        Stopped: this process was asked to stop; checks in progress are abandoned.
    """
    if len(completions) != len(examples):
        given = f"{len(completions)} completions for {len(examples)} examples"
        raise RequestError(f"reward {bound.name!r}: {given}")
    rows = [as_example(example) for example in examples]
    if deadline_s is None:
        deadline_s = DEADLINE_S + STARVED * bound.spec.limit_s * len(rows) / (workers or share_of_cores())
    until = time.monotonic() + deadline_s
    if bound.spec.runs == "worker":
        return _Processes(bound, completions, rows, until, pool(workers), done).run()
    if bound.spec.runs == "inline":
        verdicts = []
        for completion, row in zip(completions, rows, strict=True):
            check_stop()
            late = time.monotonic() > until
            verdicts.append(_timed_out() if late else call(bound, completion, row))
            done()
        return verdicts
    if bound.spec.runs == "batch":
        return _threads([lambda: call_batch(bound, list(completions), rows)], len(rows), until, 1, done)
    jobs = [lambda c=c, r=r: [call(bound, c, r)] for c, r in zip(completions, rows, strict=True)]
    return _threads(jobs, len(rows), until, workers or 2 * share_of_cores(), done)


def _timed_out() -> Verdict:
    return failed("no verdict before the deadline of the batch", "timeout")


def _threads(
    jobs: list[Callable[[], list[Verdict]]],
    expected: int,
    until: float,
    workers: int,
    done: Callable[[], None],
) -> list[Verdict]:
    """Runs `jobs`, each of which returns its share of `expected` verdicts.

    In daemon threads, so that one that hangs does not keep the process alive.
    """
    todo, results = queue.SimpleQueue(), queue.SimpleQueue()
    for job in enumerate(jobs):
        todo.put(job)

    def work() -> None:
        while time.monotonic() < until:
            try:
                index, job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                results.put((index, job()))
            except BaseException as error:  # raised again in the caller, which waits for this result
                results.put((index, error))

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    found: dict[int, list[Verdict]] = {}
    while len(found) < len(jobs) and (left := until - time.monotonic()) > 0:
        check_stop()
        try:
            index, given = results.get(timeout=min(left, POLL_S))
        except queue.Empty:
            continue
        if isinstance(given, BaseException):
            raise given
        found[index] = given
        for _ in given:
            done()
    share = expected // len(jobs) if jobs else 0
    return [v for i in range(len(jobs)) for v in found.get(i) or [_timed_out() for _ in range(share)]]


class _Processes:
    """One batch on the pool: the checks that are left, and the checks that each worker has."""

    def __init__(
        self,
        bound: Bound,
        completions: Sequence[str],
        rows: list[Example],
        until: float,
        workers: Pool,
        done: Callable[[], None],
    ) -> None:
        self.bound, self.completions, self.rows, self.until = bound, completions, rows, until
        self.pool, self.done = workers, done
        self.todo = deque(range(len(rows)))
        self.busy: dict[Any, tuple[Worker, deque[int]]] = {}
        self.verdicts: list[Verdict | None] = [None] * len(rows)
        self.lost: dict[int, str] = {}  # check -> how its first worker died
        self.unstarted = 0
        self.header = {"name": bound.name, "options": bound.options, "path": [p for p in sys.path if p]}

    def run(self) -> list[Verdict]:
        try:
            while (self.todo or self.busy) and (left := self.until - time.monotonic()) > 0:
                check_stop()
                if not self._hand_out(left):
                    continue
                limit_s = self.bound.spec.limit_s
                patience = min(worker.left(limit_s) for worker, _ in self.busy.values())
                for connection in wait(list(self.busy), max(0.0, min(left, patience, POLL_S))):
                    self._read(connection)
                for connection, (worker, _) in list(self.busy.items()):
                    if worker.left(limit_s) <= 0 and not connection.poll():
                        self._overrun(connection)
        finally:
            # After the deadline, Ctrl-C or a RequestError the busy workers are in an unknown state.
            for worker, _ in self.busy.values():
                self.pool.give(worker, alive=False)
        return [_timed_out() if verdict is None else verdict for verdict in self.verdicts]

    def _hand_out(self, left: float) -> bool:
        """Gives chunks to free workers; False if no worker is busy afterwards."""
        while self.todo:
            worker = self.pool.take(0.0 if self.busy else min(left, 1.0))
            if worker is None:
                break
            share = len(self.todo) // (2 * self.pool.size) + 1
            chunk: deque[int] = deque()
            size = 0
            while self.todo and len(chunk) < min(CHUNK, share) and size < CHUNK_CHARACTERS:
                chunk.append(self.todo.popleft())
                size += len(self.completions[chunk[-1]])
            checks = [(i, self.completions[i], as_fields(self.rows[i])) for i in chunk]
            self.busy[worker.connection] = (worker, chunk)
            try:
                worker.send(self.header | {"checks": checks})
            except OSError:
                self._gone(worker.connection)
        return bool(self.busy)

    def _read(self, connection: Any) -> None:
        worker, chunk = self.busy[connection]
        message = worker.receive()
        if message is None:
            self._gone(connection)
        elif "refused" in message:
            raise RequestError(message["refused"])
        elif "index" in message:
            chunk.remove(message["index"])
            self._settle(message["index"], checked(self.bound, Verdict(**message["verdict"])))
            if not chunk:
                del self.busy[connection]
                self.pool.give(worker)

    def _settle(self, index: int, verdict: Verdict) -> None:
        self.verdicts[index] = verdict
        self.done()

    def _overrun(self, connection: Any) -> None:
        """The first check of the chunk took too long: kill its worker, hand the other checks to others."""
        worker, chunk = self.busy.pop(connection)
        started = worker.began is not None
        took = time.monotonic() - (worker.began[0] if started else worker.sent)
        self.pool.give(worker, alive=False)
        if started:
            verdict = limited(f"{self.bound.spec.limit_s:g} s")
        else:
            verdict = failed(f"the worker process did not start within {took:.0f} s")
        verdict.ms = 1000 * took
        self._settle(chunk.popleft(), verdict)
        self.todo.extendleft(reversed(chunk))

    def _gone(self, connection: Any) -> None:
        """A worker died by itself: its current check is tried once more; the others are not affected."""
        worker, chunk = self.busy.pop(connection)
        how = worker.died()
        self.pool.give(worker, alive=False)
        self.unstarted = 0 if worker.began else self.unstarted + 1
        if self.unstarted >= TRIES:
            raise WorkError(f"reward {self.bound.name!r}: the worker processes do not start ({how})")
        if worker.began:
            first = chunk[0]
            if first in self.lost:
                chunk.popleft()
                self._settle(first, failed(f"the worker process died twice ({self.lost[first]}, {how})"))
            self.lost[first] = how
        self.todo.extendleft(reversed(chunk))
