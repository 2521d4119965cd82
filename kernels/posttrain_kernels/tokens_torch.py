"""Mode B's elementwise step in plain torch: from a slice of logits to the gradient with respect to them.

`tokens_torch.Slice` and `tokens_triton.Slice` have the same methods:

    logits(width)               [R, width] buffer for the product of hidden states and a slice
    gradient(z, slopes, own)    G [R, width] in the dtype of the matmuls; z is overwritten

Left out: fusion of the passes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .spec import View


class Slopes(NamedTuple):
    """Of R rows: G = exp(s) (level - tilt s) with s = (z - peak) - log_total, `target` at the
    label, and times 1 - tanh^2 under a softcap. The slope of the view is in the tables."""

    peak: Tensor  # [R]
    log_total: Tensor  # [R]
    level: Tensor  # [R]
    tilt: Tensor | None  # [R]; None where no gradient comes from the entropy
    target: Tensor  # [R]


class Slice:
    """See above."""

    def __init__(
        self, rows: int, columns: int, view: View, work: torch.dtype, mm: torch.dtype, like: Tensor
    ) -> None:
        """Buffers for slices of up to `columns` logits of `rows` rows, on the device of `like`."""
        self.buffers = torch.empty(2, rows * columns, dtype=work, device=like.device)
        self.rows, self.view, self.mm = rows, view, mm

    def logits(self, width: int) -> Tensor:
        return self._buffer(0, width)

    def _buffer(self, which: int, width: int) -> Tensor:
        # Cut from one stretch of memory, so that the last, narrower slice is contiguous too.
        return self.buffers[which, : self.rows * width].view(self.rows, width)

    def gradient(self, z: Tensor, slopes: Slopes, own: Tensor) -> Tensor:
        """`own` [R]: column of the label in this slice, -1 where it is elsewhere."""
        peak, log_total, level, tilt, target = (None if t is None else t.unsqueeze(1) for t in slopes)
        bent = self.view.softcap is not None
        self.view.apply_(z)
        z.sub_(peak).sub_(log_total)
        g = torch.exp(z, out=self._buffer(1, z.shape[1]))
        if tilt is None:
            g.mul_(level)
        elif bent:
            g.mul_(torch.addcmul(level, z, tilt, value=-1))  # z is still needed
        else:
            g.mul_(z.mul_(tilt).sub_(level).neg_())
        column = own.clamp_min(0).unsqueeze(1)
        here = (own >= 0).unsqueeze(1)
        g.scatter_(1, column, torch.where(here, target, g.gather(1, column)))
        if bent:
            g.mul_(self.view.bend(z.add_(log_total).add_(peak)))
        return g.to(self.mm)
