"""From sums of log-probabilities to the loss and to the scale on each token's gradient.

The gradient of a token is scale[segment] * (softmax - onehot), so a back-end adds log-probabilities
into `sums`, calls `close` once the segments of a group of rows are complete, and reads `scale`.
Slot 0 of every table stands for trained tokens outside every segment: plain cross-entropy.

Also here: `plan`, which cuts rows into groups such that every segment closes inside one.
Left out: logits, and autograd; this is arithmetic on [S + 1] tables under no_grad.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

from .family import value_and_weight
from .spec import Spec, units


class Segments:
    def __init__(self, ids: Tensor, spec: Spec, dtype: torch.dtype) -> None:
        """`ids` [R]: segment id of every trained row, 0 for none."""
        size = spec.num_segments + 1
        self.spec = spec
        self.dtype = dtype
        self.lengths = torch.bincount(ids, minlength=size)  # [S + 1]
        # fp64 sums: a chain of 1e5 tokens keeps its last digit, and the order of atomics on CUDA
        # stops mattering. MPS has no fp64.
        wide = dtype if ids.device.type == "mps" else torch.float64
        self.sums = torch.zeros(size, dtype=wide, device=ids.device)
        self.value = torch.zeros(size, dtype=dtype, device=ids.device)  # before the denominator
        self.scale = torch.zeros(size, dtype=dtype, device=ids.device)  # after it
        self.coef = torch.zeros(spec.num_segments, dtype=dtype, device=ids.device)
        self.inverse = self._inverse(ids.numel())
        self.scale[0] = self.inverse

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

    def add(self, ids: Tensor, log_probs: Tensor) -> None:
        self.sums.index_add_(0, ids, log_probs.to(self.sums.dtype))

    def close(self, low: int, high: int) -> None:
        """Fill the tables for ids low..high (1-based, inclusive) from the sums so far. An id in the
        range that is still open is filled again by the group that completes it."""
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
        # Stated as what stops a segment, so that a NaN passes the gates and is seen in the loss.
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
        self.scale[slots] = scale * self.inverse

    def loss(self) -> Tensor:
        """Sum over every slot, divided; call it when all groups have closed."""
        self.value[0] = -self.sums[0]
        return self.value.sum() * self.inverse


def _product(weight: Tensor, value: Tensor) -> Tensor:
    """weight * value where a zero weight silences an infinite value."""
    return torch.where(weight == 0, 0.0, weight * value)


class Group(NamedTuple):
    start: int  # rows start..stop
    stop: int
    low: int  # segment ids low..high cover the rows; high < low when none does
    high: int


def plan(ids: Tensor, rows: int, num_segments: int, needs_model: bool) -> list[Group]:
    """Cut [R] rows into groups of at most `rows`, every segment inside one group. A segment that
    does not fit makes a longer group, ending at the next clean cut. When the weights do not wait
    for the model, every cut is clean. Segments need not be contiguous."""
    total = ids.numel()
    if total == 0:
        return []
    if total <= rows:
        return [Group(0, total, 1, num_segments)]
    ids = ids.cpu()
    cuts = range(1, total + 1)
    if needs_model:
        order = torch.arange(total)
        last = torch.zeros(num_segments + 1, dtype=torch.int64).scatter_reduce_(
            0, ids, order, "amax"
        )
        reach = torch.where(ids == 0, order, last[ids]).cummax(0).values
        cuts = (torch.nonzero(reach == order).flatten() + 1).tolist()
    groups, start = [], 0
    while start < total:
        fits = bisect_right(cuts, start + rows) - 1
        if fits < 0 or cuts[fits] <= start:
            fits = bisect_left(cuts, start + rows)
        stop = cuts[fits]
        inside = ids[start:stop]
        inside = inside[inside > 0]
        low, high = (int(inside.min()), int(inside.max())) if inside.numel() else (1, 0)
        groups.append(Group(start, stop, low, high))
        start = stop
    return groups
