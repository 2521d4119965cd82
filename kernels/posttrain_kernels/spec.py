"""What every back-end receives and returns, and the global count a trainer all-reduces.

Left out: argument checks (`dispatch`), which run once before any back-end sees a `Spec`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .view import View
from .vocab import VocabShard

IGNORE = -100
VALUES = ("exact", "surrogate")
REDUCTIONS = ("sum", "token_mean", "segment_mean", "length_mean")


class LossOutput(NamedTuple):
    """Mode A. Only `loss` carries gradient. T tokens, S segments. fp64 inputs give fp64, else fp32."""

    loss: Tensor  # [] fp32, attached to the graph, also when every token is ignored
    log_probs: Tensor  # [T] fp32, 0 where ignored
    segment_log_probs: Tensor  # [S] fp32, 0 for an empty segment
    coef: Tensor  # [S] fp32, F; 0 for a segment that is empty or stopped by a gate
    entropy: Tensor  # [T] fp32, nats, 0 where ignored
    correct: Tensor  # [T] bool: no logit is above the label's (a tie counts); False where ignored
    log_z: Tensor  # [T] fp32, log of the sum of exponentials of the logits, 0 where ignored
    skipped: Tensor  # [] int64, trained rows whose gradient `skip_below` left out


class TokenOutput(NamedTuple):
    """Mode B. `log_probs`, `entropy` and `log_z` carry gradient; all are 0 where ignored."""

    log_probs: Tensor  # [T] fp32
    entropy: Tensor  # [T] fp32, nats
    log_z: Tensor  # [T] fp32
    correct: Tensor  # [T] bool, as in `LossOutput`


class OnHost:
    """CPU copies of `labels` and `segment_ids`, both [T], for a call on another device.

    With them the call plans its chunks without waiting for the device. A plain object, so that the
    wrappers that move batches to a device (accelerate, DDP) leave it where it is.
    """

    def __init__(self, labels: Tensor, segment_ids: Tensor) -> None:
        self.labels, self.segment_ids = labels, segment_ids


@dataclass(frozen=True)
class Spec:
    """A checked request. Tensors are [S], indexed by segment id - 1, on the inputs' device."""

    n: float | Tensor = 1.0
    member: str = "confidence"
    exponent: float | None = None
    value: str = "exact"
    p: Tensor | None = None
    segment_weights: Tensor | None = None
    reduction: str = "token_mean"
    normalizer: float | Tensor | None = None
    num_segments: int = 0
    p_threshold: float | None = None
    weight_threshold: float | None = None
    view: View = View()
    z_loss: float = 0.0
    skip_below: float | None = None
    vocab: VocabShard | None = None
    host: OnHost | None = None

    @property
    def weight_needs_model(self) -> bool:
        """Whether F of a segment waits for the model's probability of all its tokens."""
        if self.p is not None:
            return False
        plain = self.member == "cross_entropy" or (
            self.member == "confidence" and not isinstance(self.n, Tensor) and self.n == 1
        )
        return not plain or self.p_threshold is not None


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """fp32 whatever the inputs, except that fp64 stays fp64: bf16 logits lose F altogether."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def count(labels: Tensor, segment_ids: Tensor, reduction: str = "token_mean") -> Tensor:
    """Local denominator of a micro-batch, int64 scalar; add it over micro-batches and ranks.

    `labels` (shifted, -100 ignored) and `segment_ids` are [B, L] or [T], ids unique in the batch.
    token_mean: trained tokens. segment_mean, length_mean: segments with a trained token, plus
    trained tokens outside every segment, each a segment of one. sum: 1, and `confidence_limited`
    divides a sum by nothing.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    if labels.shape != segment_ids.shape:
        raise ValueError(
            f"segment_ids: shape {tuple(segment_ids.shape)} differs from labels {tuple(labels.shape)}"
        )
    trained = labels != IGNORE
    if reduction == "sum":
        return torch.ones((), dtype=torch.int64, device=labels.device)
    if reduction == "token_mean":
        return trained.sum()
    lengths = torch.bincount(segment_ids[trained], minlength=1)
    return units(lengths)


def units(lengths: Tensor) -> Tensor:
    """Segments that count, given trained tokens per id [S + 1]; slot 0 holds segments of one."""
    return (lengths[1:] > 0).sum() + lengths[0]
