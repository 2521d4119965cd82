"""`in_order`: a function over a stream of chunks, on all cores, with the results in the order of the chunks.

The first chunk is done in this process; only where more follow are processes forked, which share what is
loaded and take nothing with them but the chunks. They end with this process, however it ends, and leave
signals to it. Where there is no fork (macOS, Windows) everything is done here. Left out: what the work is
(make_table.py).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from posttrain.base.process import die_with_parent, usable_cores
from posttrain.errors import WorkError

In, Out = TypeVar("In"), TypeVar("Out")
MOST = 32
"""Processes at most, unless a number is asked for: one reads the rows and writes the tokens of all."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that a terminal or Slurm sends to every process; the one that reads decides."""


def processes(asked: int | None = None) -> int:
    """How many processes work: those asked for, or a core each. A daemonic process may start none."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return asked or min(usable_cores(), MOST)


def in_order(
    work: Callable[[list[In]], Out], items: Iterable[In], size: int, count: int, key: str
) -> Iterator[Out]:
    """`work(chunk)` of every `size` items, in order, by `count` processes.

    An error of `items` is raised after the results of what came before it, as if nothing were read ahead.

    At most `count` + 2 chunks are in memory.

    Raises:
        WorkError: a process was ended from outside; `key` is the recipe's key for their number.
        Exception: what `work` and `items` raise.
    """
    stream = _chunks(items, size)
    first = next(stream, None)
    if first is None:
        return
    yield _done(work, first)
    second = next(stream, None)
    if second is None:
        return
    stream = _pushed(second, stream)
    if count == 1:
        yield from (_done(work, chunk) for chunk in stream)
        return
    yield from _forked(work, stream, count, key)


class _Failed:
    """What reading raised, in place of a chunk."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _chunks(items: Iterable[In], size: int) -> Iterator[list[In] | _Failed]:
    """Lists of `size` items; an error of `items` comes as the last chunk."""
    source = iter(items)
    while True:
        chunk: list[In] = []
        try:
            for item in islice(source, size):
                chunk.append(item)
        except Exception as error:
            if chunk:
                yield chunk
            yield _Failed(error)
            return
        if not chunk:
            return
        yield chunk


def _pushed(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _done(work: Callable[[list[In]], Out], chunk: list[In] | _Failed) -> Out:
    if isinstance(chunk, _Failed):
        raise chunk.error
    return work(chunk)


class _Worker:
    """A forked process that does one chunk after the other."""

    def __init__(self, work: Callable[[Any], Any], others: list[_Worker]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        inherited = [self.connection, *(other.connection for other in others)]
        arguments = (work, theirs, inherited, os.getpid())
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        with warnings.catch_warnings():  # of forking beside threads, of which the process touches none
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()

    def result(self) -> Any:
        """Of the chunk that was sent last. Raises EOFError if the process is gone, and what `work` raised."""
        done, value = self.connection.recv()
        if not done:
            raise value
        return value

    def close(self) -> None:
        """Ends the process, which may be in the middle of a chunk."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def _forked(work: Callable, stream: Iterator[Any], count: int, key: str) -> Iterator[Any]:
    workers: list[_Worker] = []
    waiting: deque[_Worker | _Failed] = deque()
    try:
        for _ in range(count + 1):  # one more than work at a time: a result waits until it is its turn
            workers.append(_Worker(work, workers))
        turn = cycle(workers)
        for chunk in stream:
            if len(waiting) == len(workers):
                yield _taken(waiting.popleft())
            if isinstance(chunk, _Failed):
                waiting.append(chunk)
                break
            worker = next(turn)
            worker.connection.send(chunk)
            waiting.append(worker)
        while waiting:
            yield _taken(waiting.popleft())
    except (EOFError, ConnectionError):
        raise WorkError(
            f"a process that tokenises rows was killed (out of memory?); set {key} to fewer, or run the "
            "same command again"
        ) from None
    finally:
        for worker in workers:
            worker.close()


def _taken(result: _Worker | _Failed) -> Any:
    if isinstance(result, _Failed):
        raise result.error
    return result.result()


def _serve(work: Callable, connection: Connection, inherited: list[Connection], parent: int) -> None:
    """Of a forked process: chunks until the connection is closed."""
    die_with_parent(parent)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for other in inherited:
        other.close()
    while True:
        try:
            chunk = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, work(chunk))
        except Exception as error:
            answer = (False, _sendable(error))
        connection.send(answer)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
