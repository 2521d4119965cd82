"""Mode B's elementwise step as one Triton kernel: from a slice of logits to the gradient with respect to
them.

fp32 logits are read once, and G is written once in the dtype of the matmuls, into a second buffer. Written
over the logits, half-width G would need one program per row and a barrier at every tile, to save a third of a
budget that only decides how wide a slice is. fp32 G replaces the logits it was made from, each element by the
thread that read it. Offsets of rows are 64-bit. As in `rows_triton`, rows start at multiples of 256 bytes,
and columns up to `reach` are read and written without use.

Left out: expm1 and log1p; what needs them is computed for the tables of rows, in `tokens`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .environment import interpreted
from .rows_triton import ALIGN, _view
from .spec import View
from .tokens_torch import Slopes
from .triton_math import narrow

BLOCK = 2048
WARPS = 4
"""16 logits per thread, four 16-byte loads. Not tuned: the time is that of moving 6 bytes per logit."""


@triton.jit
def slice_gradient(
    z_ptr,
    z_stride,
    g_ptr,
    g_stride,
    own_ptr,
    peak_ptr,
    log_total_ptr,
    level_ptr,
    tilt_ptr,
    target_ptr,
    reach,
    inner,
    outer,
    TILT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Grid: [R * tiles of a row]."""
    tiles = tl.cdiv(reach, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    columns = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < reach
    x = tl.load(z_ptr + row * z_stride + columns, mask=inside, other=0.0)
    z, bent = _view(x, inner, outer, SOFTCAP, INTERPRET)
    s = (z - tl.load(peak_ptr + row)) - tl.load(log_total_ptr + row)
    factor = tl.load(level_ptr + row)
    if TILT:
        factor = factor - tl.load(tilt_ptr + row) * s
    g = tl.where(columns == tl.load(own_ptr + row), tl.load(target_ptr + row), tl.exp(s) * factor)
    if SOFTCAP:
        g = g * (1.0 - bent * bent)
    g = narrow(g, g_ptr.dtype.element_ty, INTERPRET)
    tl.store(g_ptr + row * g_stride + columns, g, mask=inside)


class Slice:
    """See `tokens_torch`."""

    def __init__(
        self, rows: int, columns: int, view: View, work: torch.dtype, mm: torch.dtype, like: Tensor
    ) -> None:
        """Buffers for slices of up to `columns` logits of `rows` rows, on the device of `like`."""
        stride = -(-columns // ALIGN) * ALIGN
        self.z = torch.empty(rows, stride, dtype=work, device=like.device)
        self.g = self.z if mm == work else torch.empty_like(self.z, dtype=mm)
        self.softcap = view.softcap is not None
        self.inner, self.outer = view.inner, view.outer

    def logits(self, width: int) -> Tensor:
        return self.z[:, :width]

    def gradient(self, z: Tensor, slopes: Slopes, own: Tensor) -> Tensor:
        """`own` [R]: column of the label in this slice, -1 where it is elsewhere."""
        rows, width = z.shape
        reach = -(-width // 16) * 16
        block = min(BLOCK, triton.next_power_of_2(reach))
        tables = [slopes.peak if t is None else t for t in slopes]
        slice_gradient[(rows * triton.cdiv(reach, block),)](
            z,
            z.stride(0),
            self.g,
            self.g.stride(0),
            own,
            *tables,
            reach,
            self.inner,
            self.outer,
            TILT=slopes.tilt is not None,
            SOFTCAP=self.softcap,
            BLOCK=block,
            INTERPRET=interpreted(),
            num_warps=WARPS,
        )
        return self.g[:, :width]
