"""Rewards by name, and the one way to call them.

A reward is `fn(completion, example, **options) -> Verdict`; `example` is anything with an `answer` (`Example`,
`Problem`). Verifiers judge in [0, 1]. Left out: rewards from other packages, batches, worker processes with
a deadline, shaping terms outside [0, 1].
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from posttrain.errors import RequestError, did_you_mean
from posttrain.registry import Registry
from posttrain.types import Verdict

RewardFn = Callable[..., Verdict]
REWARDS: Registry[RewardFn] = Registry("reward")
reward = REWARDS.register
"""Decorator: `@reward("math")`."""
NO_VALUE = ("timeout", "error")
"""Statuses that say the checker failed: they have no value, and must not count as a wrong answer."""


def score(name: str, completion: str, example: Any, **options: Any) -> Verdict:
    """The verdict of reward `name`, with the milliseconds it took.

    A reward that raises, or returns something else than a verdict in [0, 1], gives status `error`, value None.

    Raises:
        RequestError: unknown reward or option, or a value that the reward refuses.
    """
    fn = REWARDS[name]
    for key in options:
        if key not in _options(fn):
            near = did_you_mean(key, _options(fn))
            raise RequestError(f"reward {name!r}: unknown option {key!r}{near}")
    began = time.perf_counter()
    try:
        verdict = _checked(fn(completion, example, **options))
    except RequestError:
        raise
    except Exception as error:  # a defect of the checker is no fault of the completion
        verdict = Verdict(None, "error", f"{type(error).__name__}: {error}")
    verdict.ms = 1000 * (time.perf_counter() - began)
    return verdict


@cache
def _options(fn: RewardFn) -> tuple[str, ...]:
    return tuple(inspect.signature(fn).parameters)[2:]


def _checked(verdict: Any) -> Verdict:
    if not isinstance(verdict, Verdict):
        return Verdict(None, "error", f"the reward returned {type(verdict).__name__}, no Verdict")
    if verdict.status in NO_VALUE:
        verdict.value = None
        return verdict
    value = verdict.value
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        return Verdict(None, "error", f"the reward gave the value {value!r}, outside [0, 1]")
    verdict.value = float(value)
    return verdict
