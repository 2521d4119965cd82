"""From sums of log-probabilities to the loss and to the scale of each token's gradient.

The gradient of a token is scale[segment] * (softmax - onehot). `chunked` calls `close` with the
log-probabilities of a group of rows whose segments are complete, then reads `scale`. Slot 0 of every table is
for trained tokens outside every segment: plain cross-entropy.

Left out: logits and autograd; this is arithmetic on [S + 1] tables under no_grad. The denominator is not in
`scale`: it multiplies the finished gradients once, so that small ones keep their digits.
"""

import torch
from torch import Tensor

from .family import value_and_weight
from .spec import Spec, units


class Segments:
    """Tables [S + 1] of one call."""

    def __init__(self, ids: Tensor, spec: Spec, dtype: torch.dtype) -> None:
        """`ids` [R]: segment id of every trained row, 0 for none."""
        size = spec.num_segments + 1
        self.spec = spec
        self.dtype = dtype
        # Not bincount, which waits for the device to learn how many bins there are.
        self.lengths = torch.zeros(size, dtype=torch.int64, device=ids.device)  # [S + 1]
        self.lengths.index_add_(0, ids, torch.ones_like(ids))
        # fp64 sums: a chain of 1e5 tokens keeps its last digit, and the order of atomics on CUDA does not
        # matter. MPS has no fp64.
        wide = dtype if ids.device.type == "mps" else torch.float64
        self.sums = torch.zeros(size, dtype=wide, device=ids.device)
        self.value = torch.zeros(size, dtype=dtype, device=ids.device)
        self.scale = torch.zeros(size, dtype=dtype, device=ids.device)
        self.coef = torch.zeros(spec.num_segments, dtype=dtype, device=ids.device)
        self.inverse = self._inverse(ids.numel())
        self.scale[0] = 1

    def _inverse(self, trained: int) -> float | Tensor:
        reduction, count = self.spec.reduction, self.spec.normalizer
        if reduction == "sum":
            return 1.0
        if count is None:
            count = trained if reduction == "token_mean" else units(self.lengths)
        if isinstance(count, Tensor):
            # A count of 0 means nothing is trained anywhere: the loss is 0, not 0/0.
            return 1 / torch.where(count > 0, count, 1).to(self.dtype)
        return 1 / count if count > 0 else 1.0

    def close(self, low: int, high: int, ids: Tensor, log_probs: Tensor) -> None:
        """Add the rows `ids`, `log_probs` [r] and fill the tables for ids low..high (1-based, inclusive). An
        id in the range that is still open is filled again by the group that completes it."""
        self.sums.index_add_(0, ids, log_probs.to(self.sums.dtype))
        if high < low:
            return
        spec, here, slots = self.spec, slice(low - 1, high), slice(low, high + 1)
        logp = self.sums[slots].to(self.dtype)
        known = logp if spec.p is None else spec.p[here].to(self.dtype).log()
        n = spec.n[here] if isinstance(spec.n, Tensor) else spec.n
        value, coef = value_and_weight(known, n, spec.member, spec.exponent)
        lengths = self.lengths[slots]
        if spec.value == "surrogate":
            value = _product(coef, -logp)
        stop = lengths == 0
        # Written as what stops a segment, so that a NaN passes the gates and shows in the loss.
        if spec.p_threshold is not None:
            stop = stop | (known.exp() >= spec.p_threshold)
        if spec.weight_threshold is not None:
            stop = stop | (coef <= spec.weight_threshold)
        coef = torch.where(stop, 0.0, coef)
        value = torch.where(stop, 0.0, value)
        scale = coef
        if spec.segment_weights is not None:
            weights = spec.segment_weights[here].to(self.dtype)
            value, scale = _product(weights, value), scale * weights
        if spec.reduction == "length_mean":
            lengths = lengths.clamp_min(1)
            value, scale = value / lengths, scale / lengths
        self.coef[here] = coef
        self.value[slots] = value
        self.scale[slots] = scale

    def live(self) -> Tensor:
        """[S + 1] bool: whether rows of a segment get a gradient under `skip_below`."""
        weights = self.coef
        if self.spec.segment_weights is not None:
            weights = weights * self.spec.segment_weights.to(self.dtype)
        live = ~(weights.abs() <= self.spec.skip_below)  # a NaN is not skipped
        return torch.cat([live.new_ones(1), live])

    def loss(self) -> Tensor:
        """Sum over all slots, divided by the denominator; call it when all groups have closed."""
        self.value[0] = -self.sums[0]
        return self.value.sum() * self.inverse


def _product(weight: Tensor, value: Tensor) -> Tensor:
    """weight * value, and 0 where the weight is 0, also for an infinite value."""
    return torch.where(weight == 0, 0.0, weight * value)
