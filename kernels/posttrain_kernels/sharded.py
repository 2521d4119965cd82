"""An output head that is spread over the ranks of a process group: by rows (`VocabShard`) or by FSDP2
(`gathered`).

With `VocabShard` each rank holds rows start .. start + V_local of the head (tokens of the vocabulary) and
computes logits for them only. The softmax of a token needs three numbers of each rank: the largest logit, the
sum of exponentials relative to it, and the target's logit, which only the rank that owns the label has; the
entropy needs a fourth.

`gathered` makes a full tensor of a DTensor that is passed from outside the forward pass of the module that
owns it. Inside that forward pass FSDP2 has already gathered the weight, and none of this happens. Outside,
plain `full_tensor()` would leave every rank with its own gradient only: the gradient of a data-parallel shard
is the average over the mesh.

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
    """Rows `start` .. `start + V_local` of a head of `size` rows; the ranks of `group` together hold all of
    them."""

    start: int
    size: int
    group: "dist.ProcessGroup | None" = None

    def local(self, labels: Tensor, rows: int) -> Tensor:
        """Labels [R] relative to this shard of `rows` rows, -1 where another rank owns them."""
        mine = labels - self.start
        return torch.where((mine >= 0) & (mine < rows), mine, -1)

    def widest(self) -> int:
        """Rows of the largest shard of an even split: the same number on every rank."""
        return -(-self.size // dist.get_world_size(self.group))

    def sum_(self, values: Tensor) -> Tensor:
        """`values` summed over the group, in place."""
        dist.all_reduce(values, group=self.group)
        return values

    def merge(self, part: Partial) -> Partial:
        """Statistics of all columns from those of this shard, with the same bits on every rank."""
        own = torch.stack(part)  # [4, R]
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, own, group=self.group)
        return functools.reduce(merge, (Partial(*each) for each in parts))


def gathered(weight: Tensor | None) -> Tensor | None:
    """`weight` itself, or the full tensor of a DTensor, whose gradient is averaged over the mesh.

    For data-parallel shards. Under tensor parallelism each rank needs its own rows only: pass those and
    `vocab=`.
    """
    if weight is None or type(weight) is Tensor or type(weight) is torch.nn.Parameter:
        return weight
    from torch.distributed import tensor as distributed

    if not isinstance(weight, distributed.DTensor):
        return weight
    return weight.full_tensor(grad_placements=[distributed.Partial("avg")] * weight.device_mesh.ndim)
