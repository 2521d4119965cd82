"""The segments of a trained turn: what p is the probability of (`loss.segment`).

Left out: the numbers across turns (tokenize.py), and without gaps (fit.py).
"""

from __future__ import annotations

import numpy as np

from posttrain.data.tokens import RowError
from posttrain.data.turns import Turn
from posttrain.errors import RequestError
from posttrain.recipe import schema


def segment_numbers(
    text: str, turn: Turn, starts: np.ndarray, ends: np.ndarray, loss: schema.Loss
) -> np.ndarray:
    """Segment numbers [T] of the tokens of a turn, from their first and one-past-last characters [T].

    `token`: each token is a segment. `completion`: the turn is one. `step`: a segment begins after each
    delimiter, which belongs to the step it ends; the end of turn belongs to the last step. `answer`: 1 for
    the tokens that reach past the last marker, end of turn included, and 0 before. Numbers start at 1 and
    rise, with gaps where one token contains two delimiters.

    Raises:
        RowError: no_answer_marker.
        RequestError: the segment needs a marker or a delimiter, and none is set.
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
            raise RowError("no_answer_marker", f"a trained turn has no {loss.answer_marker!r}")
        # a token across the end of the marker already contains part of the answer
        return (ends > at + len(loss.answer_marker)).astype(np.int64)
    return np.ones(len(starts), dtype=np.int64)


def _step_starts(text: str, turn: Turn, delimiter: str) -> list[int]:
    """Where the second and later steps begin; a delimiter at the end of the content begins no step."""
    found, at = [], text.find(delimiter, turn.begin, turn.content_end)
    while at >= 0:
        after = at + len(delimiter)
        if after < turn.content_end:
            found.append(after)
        at = text.find(delimiter, after, turn.content_end)
    return found
