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
    ids: np.ndarray,
    labels: np.ndarray,
    segment_ids: np.ndarray,
    data: schema.Data,
    where: str,
    gaps: bool = False,
) -> TokenRow:
    """The row of `ids`, `labels` and `segment_ids`, int32 [L] as in `TokenRow`, that fits into
    `data.max_length`, by the rule `data.overlong`. The first token is made untrained, in place.

    `gaps`: the numbers of the segments rise, but some may be left out.

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
    gaps = gaps or segment_ids[0] > 0  # of which the first token may be all
    labels[0], segment_ids[0] = IGNORED, 0
    if labels.max() < 0:
        raise RowError("empty", "no token is trained")
    if length > data.max_length:
        kept = slice(0, data.max_length)
        ids, labels, segment_ids = ids[kept], labels[kept], segment_ids[kept]
        if labels.max() < 0:
            raise RowError("overlong", f"{length} tokens; after truncation no trained token is left")
    return TokenRow(
        input_ids=ids,
        labels=labels,
        segment_ids=_consecutive(segment_ids) if gaps else segment_ids,
        truncated=length > data.max_length,
    )


def _consecutive(segment_ids: np.ndarray) -> np.ndarray:
    """The same segments, numbered 1..S without gaps; 0 stays 0."""
    used = np.unique(segment_ids[segment_ids > 0])
    return np.where(segment_ids > 0, np.searchsorted(used, segment_ids) + 1, 0).astype(np.int32)
