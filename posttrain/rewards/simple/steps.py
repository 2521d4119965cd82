"""Process rewards: a score for each step of a completion, combined into one number.

The scores come from the row (`step_labels`, for data with labelled steps) or from another registered reward,
which is run on each step. Left out: process reward models that read all steps at once; splitting into
sentences.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from posttrain.errors import RequestError
from posttrain.rewards.engine.call import call
from posttrain.rewards.registry import Bound, bind, limited, reward
from posttrain.types import Example, Verdict

Split = Literal["paragraph", "line", "numbered"]
Aggregate = Literal["min", "mean", "product", "first_error"]
SPLITS = {
    "paragraph": re.compile(r"\n[ \t]*\n\s*"),
    "line": re.compile(r"\n\s*"),
    "numbered": re.compile(r"(?:\A|\n)[ \t]*(?:\*\*)?(?:[Ss]tep )?[0-9]{1,3}[.:)](?:\*\*)?[ \t]"),
}
MOST = 500
"""Steps; a completion with more is 0 with the reason `limit`."""
WORDS = {"+": 1.0, "-": 0.0, "good": 1.0, "bad": 0.0, "neutral": 0.5}
SIGNS = {1: 1.0, 0: 0.5, -1: 0.0}
"""The ratings -1, 0, 1 of PRM800K (Lightman et al. 2023, arXiv 2305.20050); used if a row contains a -1."""


def split(completion: str, by: Split) -> list[str]:
    """The steps of a completion.

    `numbered`: a step reaches from one `1.`, `2)` or `Step 3:` at the start of a line to the next; an
    introduction before the first is not a step.
    """
    pieces = SPLITS[by].split(completion)
    if by == "numbered":
        pieces = pieces[1:]
    return [piece.strip() for piece in pieces if piece.strip()]


def labels(example: Example, column: str) -> list[float]:
    """The step labels of the row as numbers in [0, 1]. Raises ValueError if they are not such labels."""
    given = example.extra.get(column)
    if not isinstance(given, list) or not given:
        raise ValueError(f"column {column!r} must be a list with a label for each step")
    signed = -1 in given
    found = []
    for label in given:
        value = WORDS.get(label) if isinstance(label, str) else label
        if signed and type(value) is int:
            value = SIGNS.get(value, value)
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            raise ValueError(f"column {column!r}: {label!r} is not a step label")
        found.append(float(value))
    return found


def check_row(example: Example, column: str, inner: dict[str, Any] | None) -> None:
    """Raises if the row has no step labels, or the inner reward cannot score it."""
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
    """One number from the scores of the steps of the completion.

    `by`: how the completion is split into steps. The scores come from the row's `column` (numbers in [0, 1],
    true and false, `+` and `-`, or PRM800K's -1, 0, 1) or from `inner`, `{name, options}` of another reward
    that scores one step at a time. `aggregate`: `min`, `mean`, `product`, or `first_error`, the share of
    steps before the first one below `threshold`. A completion with more or fewer steps than labels is 0.
    """
    parts = split(completion, by)
    if not parts:
        return Verdict(0.0, "unparseable", "the completion has no steps")
    if len(parts) > MOST:
        return limited(f"{MOST} steps")
    bound = _inner(inner)
    if bound is None:
        values = labels(example, column)
        if len(values) != len(parts):
            return Verdict(0.0, reason=f"{len(parts)} steps, {len(values)} labels")
    else:
        verdicts = [call(bound, part, example) for part in parts]
        lost = [v for v in verdicts if v.value is None]
        if lost:
            return Verdict(None, lost[0].status, f"the check of a step failed: {lost[0].reason}")
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


def _inner(inner: dict[str, Any] | None) -> Bound | None:
    """The reward that scores the steps; None if the row has labels. Raises RequestError."""
    if inner is None:
        return None
    unknown = set(inner) - {"name", "options"}
    if unknown or "name" not in inner:
        raise RequestError("reward 'steps': inner takes name and options")
    bound = bind(inner["name"], inner.get("options"), "reward 'steps': inner")
    if bound.spec.shaping:
        raise RequestError(f"reward 'steps': {bound.name!r} cannot score steps: it is a shaping term")
    if bound.spec.runs not in ("inline", "worker"):
        raise RequestError(f"reward 'steps': {bound.name!r} cannot score steps: it does not run in a worker")
    return bound
