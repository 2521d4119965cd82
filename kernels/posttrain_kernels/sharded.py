"""A head that FSDP2 holds in shards (DTensor), made whole for a call outside the head's forward.

Inside the forward of the module that owns it, FSDP2 has already gathered the weight and none of
this happens. Outside, plain `full_tensor()` leaves every rank with its own gradient only: that of a
data-parallel shard is the average over the mesh.

Left out: tensor parallelism, where each rank needs its own rows only. Pass those and `vocab=`.
"""

import torch
from torch import Tensor


def whole(weight: Tensor | None) -> Tensor | None:
    """`weight` itself, or the full tensor of a DTensor; its gradient is averaged over the mesh."""
    if weight is None or type(weight) is Tensor or type(weight) is torch.nn.Parameter:
        return weight
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(weight, DTensor):
        return weight
    return weight.full_tensor(grad_placements=[Partial("avg")] * weight.device_mesh.ndim)
