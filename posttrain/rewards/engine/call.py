"""One call of a reward function, and the verdict for everything it may do other than return one.

Left out: time limits and processes; see pool.py.
"""

from __future__ import annotations

import math
import time
from typing import Any

from posttrain.errors import RequestError
from posttrain.rewards.registry import Bound, failed, limited
from posttrain.types import Example, Verdict

FAILURES = ("timeout", "error")
"""Statuses of a check that failed: they have no value, and must not count as a wrong answer."""
STATUSES = ("scored", "unparseable", *FAILURES)


def call(bound: Bound, completion: str, example: Example) -> Verdict:
    """The verdict of one check, with the milliseconds it took.

    An exception in the reward becomes the status `error`. Running out of memory or of stack is attributed to
    the completion: value 0 with the reason `limit`.

    Raises:
        RequestError: the reward rejects its options.
    """
    began = time.perf_counter()
    try:
        verdict = checked(bound, bound.spec.fn(completion, example, **bound.options))
    except RequestError:
        raise
    except (MemoryError, RecursionError) as error:
        verdict = limited("memory" if isinstance(error, MemoryError) else "nesting")
    except Exception as error:  # a defect of the reward must not count against the completion
        verdict = failed(_sentence(error))
    verdict.ms = 1000 * (time.perf_counter() - began)
    return verdict


def call_batch(bound: Bound, completions: list[str], examples: list[Example]) -> list[Verdict]:
    """The verdicts of a reward that takes lists. If their number is wrong, every one is an `error`.

    Raises:
        RequestError: the reward rejects its options.
    """
    began = time.perf_counter()
    try:
        given = bound.spec.fn(completions, examples, **bound.options)
    except RequestError:
        raise
    except Exception as error:
        given = [failed(_sentence(error)) for _ in completions]
    if not isinstance(given, list) or len(given) != len(completions):
        got = f"{len(given)} values" if isinstance(given, list) else type(given).__name__
        sentence = f"the reward returned {got} for {len(completions)} completions"
        given = [failed(sentence) for _ in completions]
    each = 1000 * (time.perf_counter() - began) / max(1, len(completions))
    verdicts = [checked(bound, verdict) for verdict in given]
    for verdict in verdicts:
        verdict.ms = verdict.ms or each
    return verdicts


def checked(bound: Bound, verdict: Any) -> Verdict:
    """`verdict` if it is one that a reward may return, else an `error` that says what is wrong with it."""
    if not isinstance(verdict, Verdict):
        return failed(f"the reward returned {type(verdict).__name__}, not a Verdict")
    if verdict.status not in STATUSES:
        return failed(f"the reward returned the status {verdict.status!r}")
    if verdict.status in FAILURES:
        verdict.value = None
        return verdict
    value = verdict.value
    if not isinstance(value, int | float) or not math.isfinite(value):
        return failed(f"the reward returned the value {value!r}, not a finite number")
    if not bound.spec.shaping and not 0 <= value <= 1:
        return failed(f"the reward returned the value {value!r}, outside [0, 1]")
    verdict.value = float(value)
    return verdict


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
