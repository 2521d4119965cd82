"""Operations on rows of logits: what each of the torch and Triton back-ends has in its own way.

`rows_torch.Rows` and `rows_triton.Rows` have the same methods (the other difference is in the segment
tables):

    logits(r)                       [r, V] buffer for the product of hidden states and head
    forward(z, labels, delta)       (RowStats, Delta | None); z is overwritten
    partial(z, labels)              Partial: the same in two steps, for a head that is split over ranks;
    delta(z, labels, part, stats)   Delta    z must not be changed in between

Delta is D = softmax(z) - onehot (times 1 - tanh^2 under a softcap): the gradient of -log p by the logits,
without the slope of the view. `times` [r] or None is a factor on each row of D that the caller multiplies
into the row's scale, which saves a pass over [r, V].

Left out: the choice of a back-end (`backends`), matmuls and segments (`chunked`).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class RowStats(NamedTuple):
    """Of r rows, fp32 (fp64 for fp64 logits)."""

    log_probs: Tensor  # [r]
    log_z: Tensor  # [r]
    entropy: Tensor  # [r]
    correct: Tensor  # [r] bool


class Delta(NamedTuple):
    matrix: Tensor  # [r, V] in the dtype of the matmuls
    times: Tensor | None  # [r]


class Partial(NamedTuple):
    """Of one part's logits z [r, V_part]: a slice of the vocabulary, or the shard of a rank. `merge` joins
    them."""

    peak: Tensor  # [r] largest z
    total: Tensor  # [r] sum of e = exp(z - peak)
    target: Tensor  # [r] z of the label, -inf where another part has it
    mean: Tensor  # [r] sum of e (z - peak)


def stats_of(part: Partial) -> RowStats:
    """Statistics of rows whose vocabulary is all in `part`."""
    log_total = part.total.log()
    return RowStats(
        (part.target - part.peak) - log_total,
        part.peak + log_total,
        log_total - part.mean / part.total,
        part.target == part.peak,
    )


def merge(a: Partial, b: Partial) -> Partial:
    """Statistics of two parts of the same rows' logits as those of both."""
    peak = torch.maximum(a.peak, b.peak)
    total, mean = [], []
    for part in (a, b):
        # A part whose logits are all -inf adds 0, and its 0 * -inf must not become NaN.
        gap = torch.where(part.peak == peak, 0.0, part.peak - peak)
        shrink = gap.exp()
        total.append(shrink * part.total)
        mean.append(torch.where(shrink == 0, 0.0, shrink * (part.mean + part.total * gap)))
    return Partial(peak, sum(total), torch.maximum(a.target, b.target), sum(mean))


def pick(table: Tensor, rows: Tensor | None) -> Tensor:
    """Trained rows of a [T, ...] table; `rows` [R], or None where all T are trained."""
    return table if rows is None else table[rows]


def scatter(table: Tensor, rows: Tensor | None, total: int) -> Tensor:
    """[R, ...] -> [T, ...], zeros elsewhere."""
    if rows is None:
        return table
    return table.new_zeros(total, *table.shape[1:]).index_copy_(0, rows, table)
