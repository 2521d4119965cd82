"""A head whose rows (tokens of the vocabulary) are spread over the ranks of a process group.

Each rank holds rows start .. start + V_local of the head and computes logits for them only. The
softmax of a token needs three numbers a rank: the largest logit, the sum of exponentials below it,
and the target's logit, which only the rank that owns the label has; with the entropy, four.

Left out: how a model comes to be split this way, and the split of the hidden states.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """Rows `start` .. `start + V_local` of a head of `size` rows; `group` holds all its shards."""

    start: int
    size: int
    group: "dist.ProcessGroup | None" = None

    def local(self, labels: Tensor, rows: int) -> Tensor:
        """Labels [R] within this shard, -1 where another rank owns them."""
        mine = labels - self.start
        return torch.where((mine >= 0) & (mine < rows), mine, -1)

    def widest(self) -> int:
        """Rows of the largest shard of an even split: the same number on every rank."""
        return -(-self.size // dist.get_world_size(self.group))

    def sum_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self.group)
        return values

    def merge(self, peak: Tensor, total: Tensor, target: Tensor, mean: Tensor):
        """Statistics of the whole row from those of each shard, all [R].

        peak: largest z. total: sum of e = exp(z - peak). target: z of the label, or -inf where it
        is not here. mean: sum of e (z - peak). Returns the same four for all shards together.
        """
        highest = peak.clone()
        both = torch.stack([highest, target])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.group)
        highest, target = both
        shrink = torch.exp(peak - highest)
        # sum e' (z - highest) with e' = e * shrink; a shard of -inf logits adds nothing.
        gap = torch.where(shrink == 0, 0.0, peak - highest)
        sums = torch.stack([total * shrink, shrink * (mean + total * gap)])
        total, mean = self.sum_(sums)
        return highest, total, target, mean
