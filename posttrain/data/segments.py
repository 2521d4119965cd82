"""Which trained tokens share one probability: the segments of a turn, by `loss.segment`.

Positions are characters of the rendered text. Left out: which tokens are trained at all
(`tokenize`).
"""

from __future__ import annotations

import numpy as np

from posttrain.data.rows import RowError
from posttrain.data.template import Turn
from posttrain.errors import RequestError
from posttrain.recipe import schema


def number(
    text: str, turn: Turn, starts: np.ndarray, ends: np.ndarray, loss: schema.Loss
) -> np.ndarray:
    """Segment numbers [T] of a turn's tokens, from their first and one-past-last characters [T].

    `token`: every token its own. `completion`: one. `step`: a new one after each delimiter, which
    belongs to the step it ends; the end of turn belongs to the last step. `answer`: 1 for the
    tokens that hold anything after the last marker, end of turn included, 0 before. Numbers start
    at 1 and rise, gaps possible (two delimiters in one token).

    Raises:
        RowError: no_answer_marker.
        RequestError: the kind needs a marker or a delimiter, and none is given.
    """
    if loss.segment == "token":
        return np.arange(1, len(starts) + 1)
    if loss.segment == "step":
        if not loss.step_delimiter:
            raise RequestError("loss.step_delimiter is empty, but loss.segment is 'step'")
        return np.searchsorted(_step_starts(text, turn, loss.step_delimiter), starts, "right") + 1
    if loss.segment == "answer":
        if not loss.answer_marker:
            raise RequestError("loss.segment 'answer' needs loss.answer_marker")
        at = text.rfind(loss.answer_marker, turn.begin, turn.content_end)
        if at < 0:
            raise RowError("no_answer_marker", f"no {loss.answer_marker!r} in a trained turn")
        # a token that straddles the marker's end already says part of the answer
        return (ends > at + len(loss.answer_marker)).astype(np.int64)
    return np.ones(len(starts), dtype=np.int64)


def _step_starts(text: str, turn: Turn, delimiter: str) -> list[int]:
    """Where the second and later steps begin; a delimiter that ends the content begins none."""
    found, at = [], text.find(delimiter, turn.begin, turn.content_end)
    while at >= 0:
        after = at + len(delimiter)
        if after < turn.content_end:
            found.append(after)
        at = text.find(delimiter, after, turn.content_end)
    return found
