"""The two kinds of failure that a user can meet, and the spelling suggestions in their messages.

`RequestError`: the request is wrong (exit code 2). `WorkError`: the work failed (exit code 1). Any other
exception is a bug in posttrain and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 12
"""Names that a message lists."""


class PosttrainError(Exception):
    """A failure that is shown to the user as a message, without a traceback."""

    exit_code = 1


class WorkError(PosttrainError):
    """The request was right but the work failed: the disk is full, training diverged, a rank was lost."""

    exit_code = 1


class RequestError(PosttrainError):
    """The request was wrong: an unknown key, a missing file, an impossible combination."""

    exit_code = 2


def did_you_mean(word: object, options: Iterable[object], most: int = MOST) -> str:
    """` (did you mean 'x'?)` if an option is similar to `word`; else the options if they are at most `most`;
    else nothing."""
    names = sorted(map(str, options))
    if near := _like(word, names):
        return near
    return f" (one of: {', '.join(names)})" if 0 < len(names) <= most else ""


def what_is_there(word: object, found: Iterable[object], where: str = "the row") -> str:
    """As `did_you_mean`, of `found`, which are not allowed but there: `; the row has a, b`."""
    names = sorted(map(str, found))
    if near := _like(word, names):
        return near
    return f"; {where} has {', '.join(names)}" if 0 < len(names) <= MOST else ""


def _like(word: object, names: list[str]) -> str:
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    near = near or [
        lower[name] for name in difflib.get_close_matches(str(word).lower(), lower, n=1, cutoff=0.6)
    ]
    return f" (did you mean {near[0]!r}?)" if near else ""
