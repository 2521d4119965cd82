"""Rewards of another package, good and bad, for the tests of the registry and the pool, by dotted path."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Literal

from posttrain.errors import RequestError
from posttrain.rewards import reward
from posttrain.types import Example, Verdict


def equal(completion: str, example: Example, ignore_case: bool = False) -> Verdict:
    """1.0 if the completion is the answer."""
    if ignore_case:
        completion, answer = completion.lower(), (example.answer or "").lower()
    else:
        answer = example.answer
    return Verdict(float(completion == answer))


def options(
    completion: str,
    example: Example,
    whole: int = 1,
    share: float = 0.5,
    names: list[str] | None = None,
    mode: Literal["a", "b"] = "a",
) -> Verdict:
    """Options of every kind."""
    return Verdict(1.0, details={"options": [whole, share, names, mode]})


def returns(completion: str, example: Example) -> object:
    """Whatever the row says, as a verdict or not."""
    given = example.extra["given"]
    return Verdict(**given) if isinstance(given, dict) else given


def raises(completion: str, example: Example) -> Verdict:
    """The error the completion names."""
    raise {"zero": ZeroDivisionError, "stack": RecursionError, "memory": MemoryError}[completion]("oh")


def busy(completion: str, example: Example) -> Verdict:
    """Computes for ever where the completion says so, deaf to signals, holding the interpreter lock."""
    if completion == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
        pow(7, 7**9)
    return Verdict(1.0)


def sleeps(completion: str, example: Example) -> Verdict:
    """Waits as many seconds as the completion says."""
    time.sleep(float(completion))
    return Verdict(1.0)


def hungry(completion: str, example: Example) -> Verdict:
    """Takes more memory than a worker may have."""
    return Verdict(float(len(bytearray(6 * 2**30)) > 0))


def dies(completion: str, example: Example) -> Verdict:
    """Ends its process: always, or once (the file says whether it has)."""
    if completion == "always":
        os.kill(os.getpid(), signal.SIGKILL)
    if completion.startswith("once") and not (mark := Path(completion.split()[1])).exists():
        mark.touch()
        os._exit(3)
    return Verdict(1.0)


def where(completion: str, example: Example) -> Verdict:
    """The process it ran in."""
    return Verdict(1.0, details={"pid": os.getpid(), "parent": os.getppid()})


def columns(completion: str, example: Example) -> Verdict:
    """All that arrived."""
    given = {"answer": example.answer, "extra": example.extra, "completion": completion}
    return Verdict(1.0, details=given)


def starred(completion: str, example: Example, **anything: str) -> Verdict:
    """Takes anything."""
    return Verdict(1.0)


NOT_A_FUNCTION = 3


@reward("probe-bonus", shaping=True, runs="inline")
def bonus(completion: str, example: Example, scale: float = -3.0) -> Verdict:
    """A shaping term: `scale` a character."""
    return Verdict(scale * len(completion))


@reward("probe-lists", runs="batch")
def lists(completions: list[str], examples: list[Example], short: bool = False) -> list[Verdict]:
    """Takes lists; one verdict too few with `short`."""
    return [Verdict(1.0) for _ in completions][int(short) :]


@reward("probe-thread", runs="thread")
def thread(completion: str, example: Example) -> Verdict:
    """Waits in a thread of the caller."""
    if completion == "boom":
        raise ValueError("boom")
    time.sleep(float(completion))
    return Verdict(1.0, details={"pid": os.getpid()})


def _gold(example: Example) -> None:
    if not (example.answer or "").isdecimal():
        raise ValueError(f"the answer {example.answer!r} is not a number")


@reward("probe-strict", columns=("answer", "tests|stdin_tests"), check_row=_gold, runs="inline")
def strict(completion: str, example: Example) -> Verdict:
    """Wants columns."""
    return Verdict(float(completion == example.answer))


def refuses(completion: str, example: Example) -> Verdict:
    """Finds its options wrong when it is called."""
    raise RequestError("no such rule")
