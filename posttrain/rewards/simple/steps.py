"""Process rewards: a verdict a step, and one number of them.

The steps of a completion are judged by the row (`step_labels`, for data whose steps somebody judged) or by another
registered reward, step by step. Left out: process reward models that read all steps at once; splitting sentences.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from posttrain.errors import RequestError
from posttrain.rewards.engine.call import call
from posttrain.rewards.registry import Bound, bind, reward
from posttrain.types import Example, Verdict

Split = Literal["paragraph", "line", "numbered"]
Aggregate = Literal["min", "mean", "product", "first_error"]
SPLITS = {
    "paragraph": re.compile(r"\n[ \t]*\n\s*"),
    "line": re.compile(r"\n\s*"),
    "numbered": re.compile(r"(?:\A|\n)[ \t]*(?:\*\*)?(?:[Ss]tep )?[0-9]{1,3}[.:)](?:\*\*)?[ \t]"),
}
MOST = 500
"""Steps; a completion of more is refused."""
WORDS = {"+": 1.0, "-": 0.0, "good": 1.0, "bad": 0.0, "neutral": 0.5}
SIGNS = {1: 1.0, 0: 0.5, -1: 0.0}
"""PRM800K's ratings (Lightman et al. 2023, arXiv 2305.20050): -1, 0, 1; used where a row has a -1."""


def split(completion: str, by: Split) -> list[str]:
    """The steps. `numbered`: from one `1.`, `2)` or `Step 3:` at the start of a line to the next; an introduction
    before the first is no step."""
    pieces = SPLITS[by].split(completion)
    if by == "numbered":
        pieces = pieces[1:]
    return [piece.strip() for piece in pieces if piece.strip()]


def labels(example: Example, column: str) -> list[float]:
    """The row's verdicts as numbers in [0, 1]. Raises ValueError where they are none."""
    given = example.extra.get(column)
    if not isinstance(given, list) or not given:
        raise ValueError(f"column {column!r} must be a list with a verdict for each step")
    signed = -1 in given
    found = []
    for label in given:
        value = WORDS.get(label) if isinstance(label, str) else label
        if signed and type(value) is int:
            value = SIGNS.get(value, value)
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            raise ValueError(f"column {column!r}: {label!r} is no verdict of a step")
        found.append(float(value))
    return found


def _inner(inner: dict[str, Any] | None) -> Bound | None:
    if inner is None:
        return None
    unknown = set(inner) - {"name", "options"}
    if unknown or "name" not in inner:
        raise RequestError("reward 'steps': inner takes name and options")
    bound = bind(inner["name"], inner.get("options"), "inner")
    if bound.spec.runs not in ("inline", "worker") or bound.spec.shaping:
        raise RequestError(f"reward 'steps': {bound.name!r} cannot judge steps")
    return bound


def check_row(
    example: Example,
    by: Split = "paragraph",
    column: str = "step_labels",
    inner: dict[str, Any] | None = None,
    aggregate: Aggregate = "min",
    threshold: float = 0.5,
) -> None:
    """Raises where the row has no verdicts, or the inner reward cannot judge it."""
    bound = _inner(inner)
    if bound is None:
        labels(example, column)
    else:
        bound.check_row(example)


@reward("steps", check_row=check_row, runs="worker", limit_s=5.0)
def steps(
    completion: str,
    example: Example,
    by: Split = "paragraph",
    column: str = "step_labels",
    inner: dict[str, Any] | None = None,
    aggregate: Aggregate = "min",
    threshold: float = 0.5,
) -> Verdict:
    """One number from a verdict for every step of the completion.

    `by`: how steps are told apart. Verdicts come from the row's `column` (numbers in [0, 1], true and false, `+` and
    `-`, or PRM800K's -1, 0, 1) or from `inner`, `{name, options}` of another reward that reads one step at a time.
    `aggregate`: `min`, `mean`, `product`, or `first_error`, the share of steps before the first below `threshold`.
    A completion with more or fewer steps than verdicts is 0.
    """
    parts = split(completion, by)
    if not parts:
        return Verdict(0.0, "unparseable", "no steps in the completion")
    if len(parts) > MOST:
        return Verdict(0.0, "scored", "limit", details={"limit": f"{MOST} steps"})
    bound = _inner(inner)
    if bound is None:
        values = labels(example, column)
        if len(values) != len(parts):
            return Verdict(0.0, reason=f"{len(parts)} steps, {len(values)} verdicts")
    else:
        verdicts = [call(bound, part, example) for part in parts]
        lost = [v for v in verdicts if v.value is None]
        if lost:
            return Verdict(None, lost[0].status, f"a step has no verdict: {lost[0].reason}")
        values = [v.value for v in verdicts]
    value = _together(values, aggregate, threshold)
    bad = next((i for i, v in enumerate(values) if v < threshold), None)
    reason = "" if bad is None else f"step {bad + 1} is wrong"
    return Verdict(value, reason=reason, details={"steps": values, "first_error": bad})


def _together(values: list[float], how: Aggregate, threshold: float) -> float:
    if how == "first_error":
        good = next((i for i, v in enumerate(values) if v < threshold), len(values))
        return good / len(values)
    if how == "mean":
        return math.fsum(values) / len(values)
    return min(values) if how == "min" else math.prod(values)
