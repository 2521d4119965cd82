"""What every back-end receives and returns, and the denominator of a micro-batch, which a trainer adds up
over ranks.

The model's logits become z as follows; all back-ends apply the same `View`:

    z = softcap(scale * logits) / temperature          softcap(x) = cap * tanh(x / cap)
    dz / dlogits = slope * (1 - tanh^2)                slope = scale / temperature

Left out: argument checks (`request`), which run once before any back-end sees a `Spec`; a bias and low-rank
additions to the logits, which are a second product (`checks.factors` joins them).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .sharded import VocabShard

IGNORE = -100
VALUES = ("exact", "surrogate")
REDUCTIONS = ("sum", "token_mean", "segment_mean", "length_mean")


class LossOutput(NamedTuple):
    """Mode A. Only `loss` carries gradient. T tokens, S segments; fp32, or fp64 for fp64 inputs."""

    loss: Tensor  # [], attached to the graph, also when every token is ignored
    log_probs: Tensor  # [T], 0 where ignored
    segment_log_probs: Tensor  # [S], 0 for an empty segment
    coef: Tensor  # [S], F; 0 for a segment that is empty or stopped by a gate
    entropy: Tensor  # [T], nats, 0 where ignored
    correct: Tensor  # [T] bool: no logit is above the label's (a tie counts); False where ignored
    log_z: Tensor  # [T], log of the sum of exponentials of the logits, 0 where ignored
    skipped: Tensor  # [] int64, trained rows whose gradient `skip_below` left out


class TokenOutput(NamedTuple):
    """Mode B. `log_probs`, `entropy` and `log_z` carry gradient; all are 0 where ignored. Dtypes as in
    `LossOutput`."""

    log_probs: Tensor  # [T]
    entropy: Tensor  # [T], nats
    log_z: Tensor  # [T]
    correct: Tensor  # [T] bool, as in `LossOutput`


class OnHost:
    """CPU copies of `labels` and `segment_ids`, both [T], for a call on another device.

    With them the call plans its chunks without waiting for the device. A plain object, so that the code that
    moves batches to a device (accelerate, DDP) leaves it where it is.
    """

    def __init__(self, labels: Tensor, segment_ids: Tensor) -> None:
        self.labels, self.segment_ids = labels, segment_ids


class View(NamedTuple):
    """What a model does to its logits after the output head."""

    scale: float = 1.0  # Cohere multiplies its logits by 0.0625, Granite divides them by 8
    softcap: float | None = None  # Gemma 2: 30
    temperature: float = 1.0

    @property
    def slope(self) -> float:
        """dz / dlogits without the factor of the softcap."""
        return self.scale / self.temperature

    @property
    def inner(self) -> float:
        """Under a softcap the factor inside tanh, otherwise 1: z = outer * tanh(inner * logits), or outer *
        logits."""
        return 1.0 if self.softcap is None else self.scale / self.softcap

    @property
    def outer(self) -> float:
        """See `inner`."""
        return self.slope if self.softcap is None else self.softcap / self.temperature

    def apply(self, logits: Tensor) -> Tensor:
        """z, out of place and differentiable."""
        if self.softcap is not None:
            return (logits * self.inner).tanh() * self.outer
        return logits if self.slope == 1 else logits * self.slope

    def apply_(self, logits: Tensor) -> Tensor:
        """z in place of `logits`."""
        if self.softcap is not None:
            return logits.mul_(self.inner).tanh_().mul_(self.outer)
        return logits if self.slope == 1 else logits.mul_(self.slope)

    def bend(self, z: Tensor) -> Tensor:
        """1 - tanh^2 at z: what the softcap multiplies a gradient by. Only with a softcap."""
        return 1 - (z * (self.temperature / self.softcap)).square()


class Inputs(NamedTuple):
    """The tensors of a call that have one row per token or per word of the vocabulary."""

    hidden: Tensor  # [T, H]
    weight: Tensor  # [V, H]
    left: Tensor | None  # U [T, r]: U B^T is added to the logits
    right: Tensor | None  # B [V, r]
    labels: Tensor  # [T]


@dataclass(frozen=True)
class Spec:
    """A checked request of Mode A. Tensors are [S], indexed by segment id - 1, on the inputs' device."""

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
    label_smoothing: float = 0.0
    entropy_bonus: float = 0.0
    skip_below: float | None = None
    vocab: VocabShard | None = None
    host: OnHost | None = None

    @property
    def shaped(self) -> bool:
        """Whether a row's gradient is more than a multiple of softmax - onehot and of softmax."""
        return self.label_smoothing > 0 or self.entropy_bonus > 0

    @property
    def weight_needs_model(self) -> bool:
        """Whether F of a segment depends on the model's probability of all its tokens."""
        if self.p is not None:
            return False
        plain = self.member == "cross_entropy" or (
            self.member == "confidence" and not isinstance(self.n, Tensor) and self.n == 1
        )
        return not plain or self.p_threshold is not None


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """fp32 whatever the inputs, except that fp64 stays fp64: in bf16 logits F would be lost."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def count(labels: Tensor, segment_ids: Tensor, reduction: str = "token_mean") -> Tensor:
    """The denominator of one micro-batch, an int64 scalar. Add it up over micro-batches and ranks.

    `labels` (shifted, -100 ignored) and `segment_ids` are [B, L] or [T], with ids unique in the batch.
    token_mean: trained tokens. segment_mean, length_mean: segments with a trained token, plus trained tokens
    outside every segment, each a segment of one. sum: 1, and `confidence_limited` does not divide a sum.

    Raises ValueError for an unknown reduction or different shapes.
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
    """Segments that count, from the trained tokens per id [S + 1]; each token of slot 0 is a segment of
    one."""
    return (lengths[1:] > 0).sum() + lengths[0]
