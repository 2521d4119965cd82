"""Compares what a program printed with the expected output, line by line, in the caller's process.

Spaces at the end of a line and empty lines at the end of the output do not count. Everything else does, and
the number of lines must be equal. With a tolerance, lines are compared word by word, and two words that are
both finite numbers may differ by it, absolutely or relative to the expected one.
"""

from __future__ import annotations

import math
import re

NUMBER = re.compile(r"[+-]?(?:\d{1,400}\.?\d{0,400}|\.\d{1,400})(?:[eE][+-]?\d{1,6})?", re.ASCII)


def lines(text: str) -> list[str]:
    """The lines of `text` without trailing white space, and without the empty ones at the end."""
    out = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while out and not out[-1]:
        out.pop()
    return out


def difference(got: str, expected: str, tolerance: float | None = None) -> str:
    """The first difference as a short sentence; empty if there is none."""
    mine, theirs = lines(got), lines(expected)
    for number, (a, b) in enumerate(zip(mine, theirs, strict=False), 1):
        if a != b and not (tolerance is not None and near(a, b, tolerance)):
            return f"line {number} is {short(a)} instead of {short(b)}"
    if len(mine) != len(theirs):
        return f"{len(mine)} lines instead of {len(theirs)}"
    return ""


def near(got: str, expected: str, tolerance: float) -> bool:
    """Whether two lines are equal word by word, with numbers within `tolerance`."""
    mine, theirs = got.split(), expected.split()
    return len(mine) == len(theirs) and all(
        a == b or _close(a, b, tolerance) for a, b in zip(mine, theirs, strict=True)
    )


def _close(got: str, expected: str, tolerance: float) -> bool:
    if not (NUMBER.fullmatch(got) and NUMBER.fullmatch(expected)):
        return False
    a, b = float(got), float(expected)
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    return abs(a - b) <= tolerance * max(1.0, abs(b))


def short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
