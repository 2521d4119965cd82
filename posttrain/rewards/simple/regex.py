"""A pattern that the visible text must match, or must not match.

Matching can take exponential time, so it runs in a worker that can be killed. Left out: captured groups,
several patterns (use `combine`), the extensions of the package `regex`.
"""

from __future__ import annotations

import re
from typing import Literal

from posttrain.errors import RequestError
from posttrain.rewards.registry import reward
from posttrain.rewards.simple.visible import visible
from posttrain.types import Example, Verdict

Match = Literal["full", "search"]
COLUMN = "pattern"


def _pattern(example: Example, pattern: str | None, ignore_case: bool, dot_all: bool) -> re.Pattern[str]:
    """The pattern of the row, else of the option. Raises ValueError: bad row; RequestError: bad option."""
    row = example.extra.get(COLUMN)
    text = pattern if row is None else row
    if text is None:
        raise ValueError(f"set the option 'pattern', or add a column {COLUMN!r}")
    if not isinstance(text, str):
        raise ValueError(f"column {COLUMN!r} is {type(text).__name__}, not text")
    try:
        return re.compile(text, re.IGNORECASE * ignore_case | re.DOTALL * dot_all)
    except (re.error, OverflowError, RecursionError) as error:
        sentence = f"{text!r} is not a regular expression: {error}"
        if row is None:
            raise RequestError(f"reward 'regex': pattern {sentence}") from None
        raise ValueError(f"column {COLUMN!r}: {sentence}") from None


def check_row(example: Example, pattern: str | None, ignore_case: bool, dot_all: bool) -> None:
    """Raises ValueError or RequestError if the pattern cannot be compiled."""
    _pattern(example, pattern, ignore_case, dot_all)


@reward("regex", check_row=check_row, runs="worker", limit_s=2.0)
def regex(
    completion: str,
    example: Example,
    pattern: str | None = None,
    match: Match = "full",
    forbid: bool = False,
    ignore_case: bool = False,
    dot_all: bool = True,
    thinking: bool = False,
) -> Verdict:
    """Whether the text matches a pattern: entirely (`full`) or somewhere (`search`).

    `pattern`: a regular expression of Python's `re`; the column `pattern` of a row takes precedence.
    `forbid`: the text must not match. `ignore_case`, `dot_all`: the flags of `re`. `thinking`: read the think
    block too. A match that takes more than 2 s is 0 with the reason `limit`, also with `forbid`.
    """
    text = completion if thinking else visible(completion)
    if not text or not text.strip():
        return Verdict(0.0, "unparseable", "no text outside the thinking")
    compiled = _pattern(example, pattern, ignore_case, dot_all)
    found = compiled.fullmatch(text) if match == "full" else compiled.search(text)
    right = (found is None) == forbid
    return Verdict(float(right), reason="" if right else "matches" if forbid else "does not match")
