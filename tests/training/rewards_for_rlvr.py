"""Rewards of somebody else for the tests of the RLVR stage: by the bytes of a text, failing, slow, of the
wrong number.

Named in recipes by dotted path; all but `hangs` run in the process that trains.
"""

from __future__ import annotations

import threading
import time
import zlib

from posttrain.rewards import reward
from posttrain.types import Example, Verdict


def dice(text: str, sides: int) -> int:
    """A number in [0, sides) by the bytes of a text alone."""
    return zlib.crc32(text.encode()) % sides


@reward("rlvr-even", runs="inline")
def even(completion: str, example: Example, sides: int = 2) -> Verdict:
    """1.0 for one in `sides` of all texts."""
    return Verdict(float(dice(completion, sides) == 0))


@reward("rlvr-never", runs="inline")
def never(completion: str, example: Example) -> Verdict:
    """Nothing is right."""
    return Verdict(0.0)


@reward("rlvr-vowels", runs="inline", shaping=True)
def vowels(completion: str, example: Example) -> Verdict:
    """A shaping term: the share of vowels."""
    return Verdict(sum(c in "aeiou" for c in completion) / max(1, len(completion)))


@reward("rlvr-fails", runs="inline")
def fails(completion: str, example: Example, sides: int = 4) -> Verdict:
    """Raises on one in `sides`; as `even` on the others."""
    if dice(completion, sides) == 1:
        raise ZeroDivisionError("no such rule")
    return even(completion, example)


@reward("rlvr-short", runs="batch")
def short(completions: list[str], examples: list[Example]) -> list[Verdict]:
    """One verdict too few."""
    return [Verdict(1.0) for _ in completions][1:]


@reward("rlvr-hangs", limit_s=0.3)
def hangs(completion: str, example: Example) -> Verdict:
    """In a worker: never ends on one in sixteen."""
    while dice(completion, 16) == 1:
        time.sleep(1)
    return even(completion, example)


@reward("rlvr-late", runs="thread")
def late(completion: str, example: Example) -> Verdict:
    """In a thread: waits for ever on one in sixteen."""
    if dice(completion, 16) == 1:
        threading.Event().wait()
    return even(completion, example)


@reward("rlvr-slow", runs="inline")
def slow(completion: str, example: Example, seconds: float = 0.05) -> Verdict:
    """As `even`, after a while."""
    time.sleep(seconds)
    return even(completion, example)
