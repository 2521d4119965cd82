"""From ids and what is trained of them to a row that fits into `data.max_length`.

Rows of texts and rows that are tokens already end here. Left out: how the ids are found (tokenize.py,
shapes/tokenised.py).
"""

from __future__ import annotations

import numpy as np

from posttrain.data.tokens import IGNORED, RowError, TokenRow
from posttrain.errors import RequestError
from posttrain.recipe import schema


def fitted(
    ids: np.ndarray, trained: np.ndarray, segment_ids: np.ndarray, data: schema.Data, where: str
) -> TokenRow:
    """The row of int32 `ids` [L] that fits into `data.max_length`, by the rule `data.overlong`.

    `trained` is bool [L]; the first token is made untrained, in place. `segment_ids` [L] are positive for
    tokens of a segment, in order and with gaps.

    Raises:
        RowError: overlong, empty.
        RequestError: the row is too long and `data.overlong` is `error`.
    """
    length = len(ids)
    if length > data.max_length and data.overlong == "error":
        raise RequestError(
            f"{where}: {length} tokens, more than data.max_length = {data.max_length}; "
            "raise it, or set data.overlong: drop or truncate"
        )
    if length > data.max_length and data.overlong == "drop":
        raise RowError("overlong", f"{length} tokens")
    trained[0] = False
    if not trained.any():
        raise RowError("empty", "no token is trained")
    if length > data.max_length:
        kept = slice(0, data.max_length)
        ids, trained, segment_ids = ids[kept], trained[kept], segment_ids[kept]
        if not trained.any():
            raise RowError("overlong", f"{length} tokens; after truncation no trained token is left")
    return TokenRow(
        input_ids=ids,
        labels=np.where(trained, ids, np.int32(IGNORED)),
        segment_ids=_consecutive(segment_ids * trained),
        truncated=length > data.max_length,
    )


def _consecutive(segment_ids: np.ndarray) -> np.ndarray:
    """The same segments, numbered 1..S without gaps; 0 stays 0."""
    inside = segment_ids[segment_ids > 0]
    if len(inside) and inside[0] == 1 and (inside[1:] - inside[:-1]).max(initial=0) <= 1:
        return segment_ids
    used = np.unique(inside)
    return np.where(segment_ids > 0, np.searchsorted(used, segment_ids) + 1, 0).astype(np.int32)
