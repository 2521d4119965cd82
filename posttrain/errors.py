"""The two kinds of failure that a user can meet, and the spelling suggestions in their messages.

`RequestError`: the request is wrong (exit code 2). `WorkError`: the work failed (exit code 1). Any other
exception is a bug in posttrain and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PosttrainError(Exception):
    """A failure that is shown to the user as a message, without a traceback."""

    exit_code = 1


class WorkError(PosttrainError):
    """The request was right but the work failed: the disk is full, training diverged, a rank was lost."""

    exit_code = 1


class RequestError(PosttrainError):
    """The request was wrong: an unknown key, a missing file, an impossible combination."""

    exit_code = 2


def did_you_mean(word: object, options: Iterable[object]) -> str:
    """` (did you mean 'x'?)` if an option is similar to `word`; else at most 12 options; else nothing."""
    names = sorted(str(option) for option in options)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    if names and len(names) <= 12:
        return f" (one of: {', '.join(names)})"
    return ""
