"""A pattern that the visible text must match, or must not. Patterns can blow up, so this runs in a killable worker.

Left out: captured groups, several patterns (use `combine`), the `regex` package's extensions.
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
    """The row's pattern, else the option's. Raises ValueError for a bad row, RequestError for a bad option."""
    row = example.extra.get(COLUMN)
    text = pattern if row is None else row
    if text is None:
        raise ValueError(f"give the option 'pattern', or a column {COLUMN!r}")
    if not isinstance(text, str):
        raise ValueError(f"column {COLUMN!r} is {type(text).__name__}, no text")
    try:
        return re.compile(text, re.IGNORECASE * ignore_case | re.DOTALL * dot_all)
    except (re.error, OverflowError, RecursionError) as error:
        sentence = f"{text!r} is no regular expression: {error}"
        if row is None:
            raise RequestError(f"reward 'regex': pattern {sentence}") from None
        raise ValueError(f"column {COLUMN!r}: {sentence}") from None


def check_row(
    example: Example,
    pattern: str | None = None,
    match: Match = "full",
    forbid: bool = False,
    ignore_case: bool = False,
    dot_all: bool = True,
    thinking: bool = False,
) -> None:
    """Raises ValueError or RequestError where the pattern cannot be compiled."""
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
    """Whether the text matches a pattern: whole (`full`) or somewhere (`search`).

    `pattern`: Python's `re` syntax; a row's column `pattern` goes before it. `forbid`: it must not match. `thinking`:
    read the think block too. A match that takes more than 2 s is 0 with reason `limit`, also with `forbid`.
    """
    text = completion if thinking else visible(completion)
    if not text or not text.strip():
        return Verdict(0.0, "unparseable", "no text outside the thinking")
    compiled = _pattern(example, pattern, ignore_case, dot_all)
    found = compiled.fullmatch(text) if match == "full" else compiled.search(text)
    right = (found is None) == forbid
    return Verdict(float(right), reason="" if right else "matches" if forbid else "does not match")
