"""`in_order`: a function over a stream of chunks, on all cores, with the results in the order of the chunks.

The first chunk is done in this process; only where more follow are processes forked, which share what is
loaded and take nothing with them but the chunks. They end with this process, however it ends, and leave
signals to it. Where there is no fork (macOS, Windows) everything is done here. Left out: what the work is
(make_table.py).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from posttrain.base.process import die_with_parent, usable_cores
from posttrain.errors import WorkError

In, Out = TypeVar("In"), TypeVar("Out")
MOST = 32
"""Processes at most, unless a number is asked for: one reads the rows and writes the tokens of all."""
HEAVIEST = 256 << 10
"""Weight of a chunk, at most: the last ones are not done by one process while the others wait."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that a terminal or Slurm sends to every process; the one that reads decides."""


class Ended(WorkError):
    """A process was ended from outside, or could not be started: nothing is wrong with the rows."""


def processes(asked: int | None = None) -> int:
    """How many processes work: those asked for, or a core each. A daemonic process may start none."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return asked or min(usable_cores(), MOST)


def in_order(
    work: Callable[[list[In]], Out],
    items: Iterable[In],
    size: int,
    count: int,
    key: str,
    weight: Callable[[In], int] = lambda item: 0,
) -> Iterator[Out]:
    """`work(chunk)` of every `size` items, in order, by `count` processes. A chunk with more than one item
    has at most the weight `HEAVIEST`.

    An error of `items` is raised after the results of what came before it, as if nothing were read ahead.

    At most `count` + 1 chunks are in memory. A chunk that cannot be sent, such as one with a value that is
    nested too deep, is done in this process.

    Raises:
        Ended: a process was ended or could not be started; `key` is the recipe's key for their number.
        Exception: what `work` and `items` raise.
    """
    stream = _chunks(items, size, weight)
    first = next(stream, None)
    if first is None:
        return
    yield _done(work, first)
    second = next(stream, None)
    if second is None:
        return
    stream = chain([second], stream)
    if count == 1:
        yield from (_done(work, chunk) for chunk in stream)
        return
    yield from _forked(work, stream, count, key)


class _Failed:
    """What reading raised, in place of a chunk."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _chunks(items: Iterable[In], size: int, weight: Callable[[In], int]) -> Iterator[list[In] | _Failed]:
    """Lists of items; an error of `items` comes as the last chunk."""
    chunk: list[In] = []
    total = 0
    try:
        for item in items:
            more = weight(item)
            if chunk and total + more > HEAVIEST:
                full, chunk, total = chunk, [], 0
                yield full
            chunk.append(item)
            total += more
            if len(chunk) == size:
                full, chunk, total = chunk, [], 0
                yield full
    except Exception as error:
        if chunk:
            yield chunk
        yield _Failed(error)
        return
    if chunk:
        yield chunk


def _done(work: Callable[[list[In]], Out], chunk: list[In] | _Failed) -> Out:
    if isinstance(chunk, _Failed):
        raise chunk.error
    with _uncollected():
        return work(chunk)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within it Python looks for no cycles of objects: a chunk leaves few of them, and many objects."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


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

    def send(self, chunk: bytes) -> None:
        """Raises EOFError if the process is gone."""
        try:
            self.connection.send_bytes(chunk)
        except OSError as error:
            raise EOFError from error

    def result(self) -> Any:
        """Of the chunk that was sent last. Raises EOFError if the process is gone, and what `work` raised."""
        try:
            done, value = self.connection.recv()
        except OSError as error:  # it went in the middle of an answer
            raise EOFError from error
        if not done:
            raise _Raised(value)
        return value

    def end(self) -> None:
        """Ends the process, which may be in the middle of a chunk."""
        self.connection.close()
        self.process.kill()


class _Raised(Exception):
    """What `work` raised; an EOFError of its own does not tell of a process that is gone."""


def _forked(work: Callable, stream: Iterator[Any], count: int, key: str) -> Iterator[Any]:
    workers: list[_Worker] = []
    waiting: deque[_Worker | list | _Failed] = deque()
    turn = 0
    try:
        for chunk in stream:
            if (
                len(waiting) == count
            ):  # more processes than cores would take turns, and their caches with them
                yield _taken(work, waiting.popleft())
            if isinstance(chunk, _Failed):
                waiting.append(chunk)
                break
            try:
                packed = ForkingPickler.dumps(chunk)
            except Exception:
                waiting.append(chunk)
                continue
            if turn == len(workers):
                workers.append(_started(work, workers, key))
            workers[turn].send(packed)
            waiting.append(workers[turn])
            turn = (turn + 1) % count
        while waiting:
            yield _taken(work, waiting.popleft())
    except EOFError:
        raise Ended(
            f"a process that tokenises rows was killed (out of memory?); set {key} to fewer, or run the "
            "same command again"
        ) from None
    except _Raised as raised:
        error = raised.args[0]
        raise error from error.__cause__
    finally:
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.process.join()


def _started(work: Callable, workers: list[_Worker], key: str) -> _Worker:
    try:
        return _Worker(work, workers)
    except OSError as error:
        raise Ended(
            f"process {len(workers) + 1} that tokenises rows cannot be started "
            f"({error.strerror or error}); set {key} to fewer"
        ) from error


def _taken(work: Callable, result: _Worker | list | _Failed) -> Any:
    if isinstance(result, _Worker):
        return result.result()
    try:
        return _done(work, result)
    except Exception as error:
        raise _Raised(error) from None


def _serve(work: Callable, connection: Connection, inherited: list[Connection], parent: int) -> None:
    """Of a forked process: chunks until the connection is closed."""
    die_with_parent(parent)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    for other in inherited:
        other.close()
    gc.freeze()  # what is shared is not looked at again, which would copy its pages
    with suppress(EOFError, OSError):  # the process that reads is gone
        while True:
            connection.send_bytes(_answer(work, connection.recv_bytes()))


def _answer(work: Callable, chunk: bytes) -> bytes:
    try:
        return ForkingPickler.dumps((True, _done(work, pickle.loads(chunk))))
    except Exception as error:
        return ForkingPickler.dumps((False, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
