"""Shaping terms: length and repetition. They are part of the scalar reward only and never decide success.

Lengths are in the given `unit`; the number of tokens is the row's `completion_tokens`, which training sets.
All values are at most 0, so that a length by itself earns nothing. Left out: schedules over training.
"""

from __future__ import annotations

import itertools
from typing import Literal

from posttrain.errors import RequestError
from posttrain.rewards.registry import reward
from posttrain.types import Example, Verdict

Unit = Literal["tokens", "words", "characters"]
TOKENS = "completion_tokens"
LONGEST = 500_000
"""Characters that `repetition` reads; the rest of a longer text is ignored."""


def length(completion: str, example: Example, unit: Unit) -> int:
    """The length in `unit`; `tokens` falls back to words if the row has no token count."""
    given = example.extra.get(TOKENS)
    if unit == "tokens" and isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    return len(completion) if unit == "characters" else len(completion.split())


def check_row(example: Example, target: int, column: str) -> None:
    """Raises ValueError if the target of the row is not a length."""
    _target(example, target, column)


@reward("length_target", check_row=check_row, runs="inline", shaping=True)
def length_target(
    completion: str,
    example: Example,
    target: int = 200,
    tolerance: int = 0,
    unit: Unit = "words",
    column: str = "target_length",
) -> Verdict:
    """A penalty that grows with the distance from a target length, from 0 to -1.

    -min(1, max(0, |length - target| - tolerance) / target): LCPO-Exact (Aggarwal & Welleck 2025, arXiv
    2503.04697, eq. 1) divided by the target, so that the scale does not depend on it. A whole number in the
    column `column` of a row takes precedence over `target`.
    """
    if target < 1 or tolerance < 0:
        raise RequestError("reward 'length_target': target must be 1 or more, tolerance 0 or more")
    wanted = _target(example, target, column)
    size = length(completion, example, unit)
    off = max(0, abs(size - wanted) - tolerance)
    return _verdict(-min(1.0, off / wanted), size, unit, f"{off} from {wanted}")


@reward("overlong", runs="inline", shaping=True)
def overlong(
    completion: str, example: Example, max_length: int = 20480, cache: int = 4096, unit: Unit = "tokens"
) -> Verdict:
    """DAPO's soft overlong punishment: 0, then linear to -1 over the last `cache` before `max_length`.

    Yu et al. 2025, arXiv 2503.14476, eq. 13: 0 up to L_max - L_cache, (L_max - L_cache - L) / L_cache up to
    L_max, -1 beyond. The defaults are the paper's.
    """
    if not 0 < cache <= max_length:
        raise RequestError("reward 'overlong': cache must be above 0 and at most max_length")
    size = length(completion, example, unit)
    value = min(0.0, max(-1.0, (max_length - cache - size) / cache))
    return _verdict(value, size, unit, f"{size} of at most {max_length}")


@reward("repetition", runs="inline", shaping=True)
def repetition(
    completion: str,
    example: Example,
    n: int = 4,
    penalty: float = -1.0,
    unit: Literal["words", "characters"] = "words",
) -> Verdict:
    """A penalty for repetition: the share of n-grams that occurred before.

    penalty * (1 - distinct n-grams / n-grams); 0 for texts with fewer than two n-grams. Modelled on the
    n-gram penalty of Yeo et al. 2025, arXiv 2502.03373, which applies `penalty` at every repeated token; a
    share does not depend on the length. Words are split at white space, in lower case; `characters` suits
    languages without spaces.
    """
    if n < 1 or penalty > 0:
        raise RequestError("reward 'repetition': n must be 1 or more, penalty 0 or less")
    text = completion[:LONGEST].lower()
    items = text.split() if unit == "words" else list(text)
    total = len(items) - n + 1
    if total < 2:
        return Verdict(0.0)
    distinct = len(set(zip(*(itertools.islice(items, i, None) for i in range(n)), strict=False)))
    share = 1 - distinct / total
    reason = f"{share:.0%} repeated" if share else ""
    return Verdict(penalty * share + 0.0, reason=reason, details={"share": share})


def _verdict(value: float, size: int, unit: Unit, reason: str) -> Verdict:
    return Verdict(value, reason=reason if value else "", details={"length": size, "unit": unit})


def _target(example: Example, target: int, column: str) -> int:
    wanted = example.extra.get(column)
    wanted = target if wanted is None else wanted
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ValueError(f"the target length {wanted!r} must be a whole number above 0")
    return wanted
