"""What tokenising an example gives: a row of tokens, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError, RequestError

if TYPE_CHECKING:
    import numpy as np

IGNORED = -100
"""The label of a token that is not trained, as in torch's cross_entropy and in transformers."""


class RowError(PosttrainError):
    """A row that cannot be used: it is dropped and counted under `reason`.

    `reason` is a short name (overlong, no_completion, mask_mismatch, ...), `detail` a sentence. DROPS.md
    lists every reason.
    """

    exit_code = 2

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class RefusedRow(RequestError):
    """A row that does not fit, where `source.on_error` is `stop`; `number` is its place in the source."""

    def __init__(self, message: str, source: str, number: int) -> None:
        super().__init__(message)
        self.source, self.number = source, number


def without_place(where: str, message: str) -> str:
    """`message` as it stands beside the place of the row, which it begins with."""
    return message.removeprefix(where).lstrip(":, ") if message.startswith(where) else message


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
