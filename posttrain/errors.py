"""The two kinds of failure a user can meet, and the spelling help both share.

`RequestError`: what was asked for is wrong (exit 2). `WorkError`: the work itself failed (exit 1).
Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PosttrainError(Exception):
    """A failure with a sentence for the user instead of a traceback."""

    exit_code = 1


class WorkError(PosttrainError):
    """The request was fine, the work failed: disk full, training diverged, a rank lost."""

    exit_code = 1


class RequestError(PosttrainError):
    """The request was wrong: unknown key, missing file, impossible combination."""

    exit_code = 2


def did_you_mean(word: object, options: Iterable[object]) -> str:
    """` (did you mean 'x'?)` for the nearest option, otherwise the options themselves, or nothing."""
    names = sorted(str(option) for option in options)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    if names and len(names) <= 12:
        return f" (one of: {', '.join(names)})"
    return ""
