"""One call of a reward function, and what becomes of anything it may do instead of returning a verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from posttrain.errors import RequestError
from posttrain.rewards.registry import Bound, failed, limited
from posttrain.types import Example, Verdict

NO_VALUE = ("timeout", "error")
"""Statuses that say the checker failed: they have no value, and must not count as a wrong answer."""
STATUSES = ("scored", "unparseable", *NO_VALUE)


def call(bound: Bound, completion: str, example: Example) -> Verdict:
    """The verdict of one check, with its milliseconds. A reward that raises gives `error`.

    Running out of memory or of stack is the completion's doing: `limit`, value 0.

    Raises:
        RequestError: the reward refuses its options.
    """
    return _timed(bound, lambda: bound.spec.fn(completion, example, **bound.options))


def call_batch(bound: Bound, completions: list[str], examples: list[Example]) -> list[Verdict]:
    """The verdicts of a reward that takes lists. A wrong number of them makes every one an `error`."""
    began = time.perf_counter()
    try:
        given = bound.spec.fn(completions, examples, **bound.options)
    except RequestError:
        raise
    except Exception as error:
        given = [failed(_sentence(error)) for _ in completions]
    if not isinstance(given, list) or len(given) != len(completions):
        got = f"{len(given)} values" if isinstance(given, list) else type(given).__name__
        sentence = f"the reward gave {got} for {len(completions)} completions"
        given = [failed(sentence) for _ in completions]
    each = 1000 * (time.perf_counter() - began) / max(1, len(completions))
    verdicts = [checked(bound, verdict) for verdict in given]
    for verdict in verdicts:
        verdict.ms = verdict.ms or each
    return verdicts


def _timed(bound: Bound, work: Callable[[], Any]) -> Verdict:
    began = time.perf_counter()
    try:
        verdict = checked(bound, work())
    except RequestError:
        raise
    except (MemoryError, RecursionError) as error:
        verdict = limited("memory" if isinstance(error, MemoryError) else "nesting")
    except Exception as error:  # a defect of the checker is no fault of the completion
        verdict = failed(_sentence(error))
    verdict.ms = 1000 * (time.perf_counter() - began)
    return verdict


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def checked(bound: Bound, verdict: Any) -> Verdict:
    """`verdict` if it is one that a reward may give, else an `error` with what is wrong."""
    if not isinstance(verdict, Verdict):
        return failed(f"the reward returned {type(verdict).__name__}, no Verdict")
    if verdict.status not in STATUSES:
        return failed(f"the reward gave the status {verdict.status!r}")
    if verdict.status in NO_VALUE:
        verdict.value = None
        return verdict
    value = verdict.value
    if not isinstance(value, int | float) or not math.isfinite(value):
        return failed(f"the reward gave the value {value!r}, no finite number")
    if not bound.spec.shaping and not 0 <= value <= 1:
        return failed(f"the reward gave the value {value!r}, outside [0, 1]")
    verdict.value = float(value)
    return verdict
