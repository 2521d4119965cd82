"""Numbers in sentences: the last one of a text, the first one after a mark. Left out: their value."""

from __future__ import annotations

import re
from collections import deque

from posttrain.rewards.math.limits import LONGEST, TooCostly

DECIMAL = (
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]+(?![0-9A-Za-z]))?"
)
IN_PROSE = re.compile(
    rf"(?<![\w^.)])(?<!\^\{{)(?:[+-]?\$?|\$[+-])(?:{DECIMAL}(?:/{DECIMAL})?"
    rf"|\\[dt]?frac\{{[+-]?{DECIMAL}\}}\{{[+-]?{DECIMAL}\}})(?![0-9]|\.[0-9]| ?\^)"
)
"""Not inside a word (`H2O`), a power (`2^10`) or a version (`1.2.3`); the minus of `5-3` is not a sign."""
THIN_SPACE = re.compile(r"(?<=[0-9])(?:\\,|\u202f|\u00a0)(?=[0-9]{3}(?![0-9]))")
SPELLINGS = {"\\$": "$", "\\%": "%", "\\!": "", "{,}": ",", "\u2212": "-"}
WINDOWS = (2_000, 200_000)
"""Characters from the end that are searched, one window after the other, until a number is found."""


def last_number(text: str) -> str | None:
    """The last number in the last 200,000 characters; None if there is none.

    Raises:
        TooCostly: it has more than 1,000 characters.
    """
    text = text.rstrip()
    for window in WINDOWS:
        part = _plain(text[-window:])
        last = last_match(IN_PROSE, part)
        whole = window >= len(text)
        if last is not None and (whole or last.start() > 0):
            return _short(last[0])
        if whole:
            return None
    return None


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of `pattern` in `text`."""
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def number_after(text: str) -> str | None:
    """The first number of `text`.

    Raises:
        TooCostly: it has more than 1,000 characters.
    """
    match = IN_PROSE.search(_plain(text))
    return None if match is None else _short(match[0])


def _short(text: str) -> str:
    if len(text) > LONGEST:
        raise TooCostly(f"a number of {len(text):,} characters")
    return text.replace("$", "")


def _plain(text: str) -> str:
    for mark, meant in SPELLINGS.items():
        text = text.replace(mark, meant)
    return THIN_SPACE.sub("", text)
