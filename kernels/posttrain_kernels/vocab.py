"""A head whose rows (tokens of the vocabulary) are spread over the ranks of a process group.

Each rank holds rows start .. start + V_local of the head and computes logits for them only. The
softmax of a token needs three numbers a rank: the largest logit, the sum of exponentials below it,
and the target's logit, which only the rank that owns the label has; with the entropy, four.

Left out: how a model comes to be split this way, and the split of the hidden states.
"""

import functools
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .rows import Partial, merge


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

    def merge(self, part: Partial) -> Partial:
        """Statistics of the whole rows from those of this shard, the same bits on every rank."""
        own = torch.stack(part)  # [4, R]
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, own, group=self.group)
        return functools.reduce(merge, (Partial(*each) for each in parts))
