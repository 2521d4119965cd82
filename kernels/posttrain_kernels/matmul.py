"""Products with fp32 results whatever the inputs, and the dtype in which they are taken.

cuBLAS multiplies bf16 or fp16 tiles and adds in fp32; `out_dtype` lets the sum leave as it is. On a
CPU that needs fp32 copies of the operands. fp64 stays fp64.

Left out: TF32, which follows torch's own switch for fp32 operands.
"""

import torch
from torch import Tensor


def multiply_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What hidden states and head are multiplied in: autocast's choice, else their common type."""
    device = hidden.device.type
    common = torch.promote_types(hidden.dtype, weight.dtype)
    if common != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return common


def product(a: Tensor, b: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """a @ b, or out + a @ b with `add`, in fp32 (fp64 for fp64); `out` may have padded rows."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    if a.dtype == wide:
        if out is None:
            return torch.mm(a, b)
        return out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    if a.is_cuda:
        if out is None:
            return torch.mm(a, b, out_dtype=wide)
        if add:
            return torch.addmm(out, a, b, out_dtype=wide, out=out)
        return torch.mm(a, b, out_dtype=wide, out=out)
    return product(a.to(wide), b.to(wide), out, add)
