"""`in_order`: a function over a stream of chunks, on all cores, with the results in the order of the chunks.

The first chunk is done in this process; only where more follow are processes forked, which share what is
loaded and take nothing with them but the chunks. They end with this process, however it ends. Where there is
no fork (macOS, Windows) everything is done here. Left out: what the work is (make_table.py).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from posttrain.base.process import die_with_parent, usable_cores
from posttrain.errors import WorkError

In, Out = TypeVar("In"), TypeVar("Out")
AHEAD = 3
"""Chunks a process that are read before their results are taken: the bound on memory."""
MOST = 32
"""Processes at most, unless a number is asked for: one reads the rows and writes the tokens of all."""
_work: Callable[[Any], Any] | None = None


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


def _forked(work, stream: Iterator[Any], count: int, key: str) -> Iterator[Any]:
    global _work
    _work = work  # the processes inherit it
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(os.getpid(),))
    waiting: deque[Future | _Failed] = deque()
    try:
        with warnings.catch_warnings():  # of forking beside threads, of which the processes touch none
            warnings.simplefilter("ignore", DeprecationWarning)
            for chunk in stream:
                waiting.append(chunk if isinstance(chunk, _Failed) else pool.submit(_run, chunk))
                if len(waiting) > AHEAD * count:
                    yield _taken(waiting.popleft())
        while waiting:
            yield _taken(waiting.popleft())
    except BrokenProcessPool:
        raise WorkError(
            f"a process that tokenises rows was killed (out of memory?); set {key} to fewer, or run the "
            "same command again"
        ) from None
    finally:
        _work = None
        pool.shutdown(wait=True, cancel_futures=True)


def _taken(result: Future | _Failed) -> Any:
    if isinstance(result, _Failed):
        raise result.error
    return result.result()


def _begin(parent: int) -> None:
    """Of a forked process: signals and threads as a worker wants them."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run(chunk: list[Any]) -> Any:
    assert _work is not None
    return _work(chunk)
