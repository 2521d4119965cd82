"""Matrix products with fp32 results whatever the inputs, the dtype of their operands, and the context of both
modes.

cuBLAS multiplies bf16 or fp16 tiles and adds in fp32; with `out_dtype` the sum is returned as it is. On a CPU
that needs fp32 copies of the operands. fp64 stays fp64.

Left out: TF32, which follows torch's own switch for fp32 operands.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .spec import work_dtype


def multiply_dtype(hidden: Tensor, weight: Tensor, backend: str) -> torch.dtype:
    """The dtype of the operands of all matmuls: autocast's, or else the common dtype of hidden states and
    head.

    For the torch back-end on a CPU it is the dtype of the sums: one conversion saves a copy in every product.
    """
    if backend == "torch" and not hidden.is_cuda:
        return work_dtype(hidden, weight)
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


@contextlib.contextmanager
def outside_autograd(hidden: Tensor) -> Iterator[None]:
    """Without autograd and autocast, and with the device of `hidden` as the current one: Triton launches on
    the current device, which need not be that of the tensors."""
    here = torch.cuda.device(hidden.device) if hidden.is_cuda else contextlib.nullcontext()
    with here, torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        yield
