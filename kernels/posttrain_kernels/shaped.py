"""Label smoothing and the entropy bonus, under which a row's gradient is no multiple of softmax - onehot.

    loss of a row     s ((1 - eps) (-log p_y) + eps mean_v(-log p_v)) + share (c (log Z)^2 - w H)
    by its logit z_v  p_v (s + extra + bonus (log p_v + H)) - s ((1 - eps) [v = y] + eps / V)

s is the scale of the row's segment, c the weight of the z-loss, extra = 2 c share log Z, bonus = w share; eps
is above 0 under cross-entropy alone. The matrix depends on s, so it is made after the segment has closed,
from what the statistics left in the two buffers of `rows_torch`.

Left out: Triton, and accumulators for long segments: one that does not fit in a chunk is computed twice.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .rows import Delta, RowStats, stats_of
from .rows_torch import Rows
from .sharded import VocabShard
from .spec import View

BITS = 12
"""Entries of the matrix are at most some times 2^12: in fp16, whose least normal number is 6e-5 and whose
largest is 65504, eps / V of a large vocabulary keeps its digits."""


class Open(NamedTuple):
    """Rows of a block, or of this rank's shard of it, between their statistics and their gradient."""

    gaps: Tensor  # [r, V] z - peak
    exps: Tensor  # [r, V] exp(z - peak)
    peak: Tensor  # [r] largest z of the shard
    shift: Tensor  # [r] peak - log Z of all shards, so that log p = gaps + shift
    stats: RowStats


class Slopes(NamedTuple):
    """Of r rows; see above."""

    scale: Tensor  # [r] s
    extra: Tensor  # [r]
    bonus: Tensor | None  # [r]
    smoothing: float  # eps
    words: int  # V, of all shards


def statistics(ops: Rows, z: Tensor, labels: Tensor, vocab: VocabShard | None) -> Open:
    """Statistics of the logits `z` [r, V], a buffer of `ops`, which keeps what `delta` needs."""
    part = ops.partial(z, labels)
    whole = part if vocab is None else vocab.merge(part)
    # Not peak - log_z, which is rounded at the size of the logits.
    shift = (part.peak - whole.peak) - whole.total.log()
    return Open(z, ops.buffers[1, : len(z)], part.peak, shift, stats_of(whole))


def mean_nll(rows: Open, vocab: VocabShard | None) -> Tensor:
    """[r] mean of -log p_v over the whole vocabulary."""
    if vocab is None:
        return -(rows.gaps.mean(1) + rows.shift)
    return -vocab.sum_(rows.gaps.sum(1) + rows.gaps.shape[1] * rows.shift) / vocab.size


def delta(rows: Open, labels: Tensor, slopes: Slopes, view: View, mm: torch.dtype) -> Delta:
    """The gradient by the model's logits, as a matrix and a power of two for each row; overwrites the buffers
    of `rows`. `labels` [r] are -1 where another shard has the target."""
    gaps, p, peak, shift, stats = rows
    scale, rest = slopes.scale * view.slope, slopes.extra * view.slope
    bonus = None if slopes.bonus is None else slopes.bonus * view.slope
    largest = torch.maximum(scale.abs(), rest.abs())
    if bonus is not None:
        largest = torch.maximum(largest, bonus.abs())
    # Hidden states that are multiplied by a power of two are not rounded once more.
    unit = torch.ldexp(torch.ones_like(largest), largest.frexp().exponent.clamp_min(-100) - BITS)
    scale, rest = scale / unit, rest / unit
    uniform = scale * (slopes.smoothing / slopes.words)
    column, softcap = labels.clamp_min(0).unsqueeze(1), view.softcap is not None
    p.mul_(shift.exp().unsqueeze(1))
    owned = p.gather(1, column).squeeze(1)
    if bonus is None:
        p.mul_((scale + rest).unsqueeze(1))
    else:
        bonus = bonus / unit
        level = (scale + rest + bonus * (shift + stats.entropy)).unsqueeze(1)
        rest = rest + bonus * (stats.log_probs + stats.entropy)
        bonus = bonus.unsqueeze(1)
        # The softcap reads the gaps once more.
        p.mul_(torch.addcmul(level, gaps, bonus) if softcap else gaps.mul_(bonus).add_(level))
    if slopes.smoothing:
        p.sub_(uniform.unsqueeze(1))
    # s (p - 1 + eps) without the cancellation of p - 1.
    target = scale * (torch.expm1(stats.log_probs) + slopes.smoothing) + owned * rest - uniform
    target = torch.where(labels >= 0, target, p.gather(1, column).squeeze(1))
    p.scatter_(1, column, target.unsqueeze(1))
    if softcap:
        p.mul_(view.bend(gaps.add_(peak.unsqueeze(1))))
    return Delta(p.to(mm), unit)
