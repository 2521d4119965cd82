"""Row operations in plain torch, for any device: in place, in two buffers of logits.

Left out: fusion of the passes; a row is read about six times.
"""

import torch
from torch import Tensor

from .rows import Delta, Partial, RowStats, stats_of
from .spec import View


class Rows:
    """See `rows`."""

    def __init__(self, rows: int, vocab: int, view: View, work: torch.dtype, mm: torch.dtype, device) -> None:
        """Buffers for up to `rows` rows of `vocab` logits in `work`; deltas leave in `mm`."""
        self.buffers = torch.empty(2, rows, vocab, dtype=work, device=device)
        self.view, self.mm = view, mm

    def logits(self, r: int) -> Tensor:
        return self.buffers[0, :r]

    def forward(self, z: Tensor, labels: Tensor, delta: bool) -> tuple[RowStats, Delta | None]:
        part = self.partial(z, labels)
        stats = stats_of(part)
        if not delta:
            return stats, None
        if self.mm == torch.float16:  # `total` may pass its largest number, 65504
            return stats, self.delta(z, labels, part, stats)
        # The exponentials stay undivided: 1 / total goes into the row's scale, which saves a pass.
        target = torch.expm1(stats.log_probs) * part.total
        return stats, self._delta(z, labels, part, target, 1 / part.total)

    def partial(self, z: Tensor, labels: Tensor) -> Partial:
        """`labels` [r] are -1 where another shard has the target. Leaves z - peak in `z`."""
        self.view.apply_(z)
        peak = z.amax(1)  # [r]
        here = labels >= 0
        target = z.gather(1, labels.clamp_min(0).unsqueeze(1)).squeeze(1)
        target = torch.where(here, target, float("-inf"))
        # A shard may consist of masked tokens only: exp(-inf) is the 0 it adds, -inf - -inf would be NaN.
        z.sub_(torch.where(peak == float("-inf"), 0.0, peak).unsqueeze(1))
        exps = torch.exp(z, out=self.buffers[1, : len(z)])
        # E[z - peak] as a batch of dot products: no third buffer.
        mean = torch.bmm(exps.unsqueeze(1), z.unsqueeze(2)).view(-1)
        return Partial(peak, exps.sum(1), target, mean)

    def delta(self, z: Tensor, labels: Tensor, part: Partial, stats: RowStats) -> Delta:
        """D of this shard, after `partial` on `z`; `part` is that of this shard, `stats` that of all shards.
        Here a factor on the row could underflow, so the exponentials are divided."""
        exps = self.buffers[1, : len(z)].mul_(torch.exp(part.peak - stats.log_z).unsqueeze(1))
        owned = exps.gather(1, labels.clamp_min(0).unsqueeze(1)).squeeze(1)
        target = torch.where(labels >= 0, torch.expm1(stats.log_probs), owned)
        return self._delta(z, labels, part, target, None)

    def _delta(self, z, labels, part, target, times) -> Delta:
        exps = self.buffers[1, : len(z)]
        exps.scatter_(1, labels.clamp_min(0).unsqueeze(1), target.unsqueeze(1))
        if self.view.softcap is not None:
            exps.mul_(self.view.bend(z.add_(part.peak.unsqueeze(1))))
        return Delta(exps.to(self.mm), times)
