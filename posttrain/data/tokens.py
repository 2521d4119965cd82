"""What tokenising an example gives: a row of tokens that fits, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posttrain.errors import PosttrainError, RequestError
from posttrain.recipe import schema

IGNORED = -100
"""The label of a token that is not trained, as in torch's cross_entropy and in transformers."""


class RowError(PosttrainError):
    """A row that cannot be used: it is dropped and counted under `reason`.

    `reason` is a short name (overlong, no_completion, mask_mismatch, ...), `detail` a sentence. The README of
    this room lists every reason.
    """

    exit_code = 2

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class TokenRow:
    """One example as tokens: three int32 arrays [L].

    `labels` are unshifted: labels[i] is input_ids[i], or IGNORED where the token is not trained; labels[0] is
    always IGNORED. `segment_ids` number the segments of the trained tokens 1..S in order; 0 is no segment.
    `p` is the example's external success probability, or its label. `truncated`: tokens were cut at the end
    to fit. `tokenised`: the row was tokens already. `control_tokens`: special tokens that its texts spell.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    segment_ids: np.ndarray
    p: float | None = None
    truncated: bool = False
    tokenised: bool = False
    control_tokens: tuple[str, ...] = ()


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
    kept = slice(0, data.max_length)
    ids, trained, segment_ids = ids[kept], trained[kept], segment_ids[kept]
    if not trained.any():
        raise RowError("overlong", f"{length} tokens; after truncation no trained token is left")
    return TokenRow(
        input_ids=ids,
        labels=np.where(trained, ids, np.int32(IGNORED)),
        segment_ids=_consecutive(np.where(trained, segment_ids, np.int32(0))),
        truncated=length > data.max_length,
    )


def _consecutive(segment_ids: np.ndarray) -> np.ndarray:
    """The same segments, numbered 1..S without gaps; 0 stays 0."""
    used = np.unique(segment_ids[segment_ids > 0])
    return np.where(segment_ids > 0, np.searchsorted(used, segment_ids) + 1, 0).astype(np.int32)
