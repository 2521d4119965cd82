"""Mode B's forward pass without any logits in memory: a matmul whose tiles are reduced in registers.

    program (block of rows, split of the vocabulary):
        for each tile of the vocabulary in the split:   Z = X W_tile^T by tl.dot, fp32, registers
            peak, sum of e = exp(z - peak), target, sum of e (z - peak)   online, for each row
        -> tables [splits, R], no atomics: the same bits every time; `rows.merge` joins them

Tiles are loaded by TMA where addresses allow it (rows of a multiple of 16 bytes), else by pointers.

It runs only if POSTTRAIN_KERNELS_TILED=1. The default computes slices of logits with cuBLAS and reduces them
with `rows_triton`: cuBLAS tiles run at a higher rate than Triton's, and a slice costs 8 bytes of traffic per
logit against 2 H operations. Which of the two is faster on a GPU is not measured. The switch exists to
measure it, and for cases where two gigabytes of slices do not fit.

Left out: a bias or LoRA on the head, and fp32 outside the interpreter (the default runs for both); tuning.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import environment
from .rows import Partial
from .rows_triton import _view
from .spec import View

ROWS, DEPTH, WARPS = 128, 64, 8
COLUMNS, STAGES = 256, 3
"""Two warp groups of 64 x 256 fp32 sums; 3 x 48 KiB of tiles in shared memory."""
NARROW, NARROW_STAGES = 128, 4
"""The same under a softcap and for tiles loaded by pointers: with 256 columns the arithmetic of tanh, or of
unaligned addresses, would spill registers."""
EMULATED_PROCESSORS = 4


@triton.jit
def _tile(ptr, row, k, rows, width, stride, HEIGHT: tl.constexpr, DEPTH: tl.constexpr, TMA: tl.constexpr):
    """[HEIGHT, DEPTH] of a [rows, width] matrix, zeros beyond it."""
    if TMA:
        return ptr.load([row, k])
    else:
        rs, ks = row + tl.arange(0, HEIGHT), k + tl.arange(0, DEPTH)
        places = ptr + rs.to(tl.int64)[:, None] * stride + ks[None, :]
        return tl.load(places, mask=(rs[:, None] < rows) & (ks[None, :] < width), other=0.0)


@triton.jit
def tiled_statistics(
    x,
    w,
    x_stride,
    w_stride,
    label_ptr,
    peak_ptr,
    total_ptr,
    target_ptr,
    mean_ptr,
    R,
    V,
    H,
    inner,
    outer,
    tiles,
    TMA: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Grid: [blocks of rows, splits]. `x` and `w` are descriptors under TMA, else pointers; `tiles`
    is the number of vocabulary tiles per split."""
    tl.assume(H > 0)  # otherwise a second copy of the reduction is compiled for an empty loop
    row, split = tl.program_id(0) * ROWS, tl.program_id(1)
    rows = row + tl.arange(0, ROWS)
    label = tl.load(label_ptr + rows, mask=rows < R, other=-1).to(tl.int32)
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    target = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS], tl.float32)
    last = tl.minimum((split + 1) * tiles, tl.cdiv(V, COLUMNS))
    # `flatten` makes one loop of two, so that the loads of a tile start while the tile before is reduced.
    for tile in tl.range(split * tiles, last, flatten=True):
        acc = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in range(0, H, DEPTH):
            a = _tile(x, row, k, R, H, x_stride, ROWS, DEPTH, TMA)
            b = _tile(w, tile * COLUMNS, k, V, H, w_stride, COLUMNS, DEPTH, TMA)
            if INTERPRET:  # which has no bf16 arithmetic
                a, b = a.to(tl.float32), b.to(tl.float32)
            acc = tl.dot(a, b.T, acc, input_precision="ieee")
        columns = tile * COLUMNS + tl.arange(0, COLUMNS)
        z, _ = _view(acc, inner, outer, SOFTCAP, INTERPRET)
        z = tl.where(columns[None, :] < V, z, -float("inf"))
        mine = tl.where(columns[None, :] == label[:, None], z, -float("inf"))
        target = tl.maximum(target, tl.max(mine, 1))
        high = tl.maximum(peak, tl.max(z, 1))
        # Where every logit so far is -inf, the peak counts as 0: -inf - -inf would be NaN.
        base = tl.where(high == -float("inf"), 0.0, high)
        gap = tl.where(total > 0, peak - base, 0.0)
        shrink = tl.exp(gap)
        gap_z = z - base[:, None]
        e = tl.exp(gap_z)
        mean = shrink * (mean + total * gap) + tl.sum(e * tl.where(e != 0, gap_z, 0.0), 1)
        total = total * shrink + tl.sum(e, 1)
        peak = high
    out = split.to(tl.int64) * R + rows
    tl.store(peak_ptr + out, peak, mask=rows < R)
    tl.store(total_ptr + out, total, mask=rows < R)
    tl.store(target_ptr + out, target, mask=rows < R)
    tl.store(mean_ptr + out, mean, mask=rows < R)


def enabled(x: Tensor, u: Tensor | None) -> bool:
    """Whether it is switched on and can do this call: operands of 16 bits, without low-rank addition `u`."""
    fits = u is None and (x.dtype.itemsize == 2 or environment.interpreted())
    return fits and environment.tiled()


def splits(blocks: int, tiles: int, processors: int) -> int:
    """Splits of the vocabulary: of up to 32 the fewest that finish first, with one program per processor."""

    def ends(count: int) -> int:
        return -(-blocks * count // processors) * -(-tiles // count)

    return min(range(1, min(tiles, 32) + 1), key=ends)


def shape(tma: bool, softcap: bool) -> tuple[int, int]:
    """(columns of a tile, stages of its loads)"""
    return (COLUMNS, STAGES) if tma and not softcap else (NARROW, NARROW_STAGES)


def statistics(x: Tensor, head: Tensor, labels: Tensor, view: View) -> list[Partial]:
    """`Partial`s [R] of the splits of the vocabulary. `x` [R, H] and `head` [V, H] of one type;
    `labels` [R], -1 where another rank has the target."""
    (count, width), vocab = x.shape, len(head)
    x, head = (t if t.stride(1) == 1 else t.contiguous() for t in (x, head))
    softcap = view.softcap is not None
    tma = _reachable(x) and _reachable(head)
    columns, stages = shape(tma, softcap)
    blocks, all_tiles = triton.cdiv(count, ROWS), triton.cdiv(vocab, columns)
    tiles = triton.cdiv(all_tiles, splits(blocks, all_tiles, _processors(x)))
    parts = triton.cdiv(all_tiles, tiles)
    tables = torch.empty(4, parts, count, dtype=torch.float32, device=x.device)
    tiled_statistics[(blocks, parts)](
        _descriptor(x, ROWS) if tma else x,
        _descriptor(head, columns) if tma else head,
        x.stride(0),
        head.stride(0),
        labels,
        *tables,
        count,
        vocab,
        width,
        view.inner,
        view.outer,
        tiles,
        TMA=tma,
        SOFTCAP=softcap,
        ROWS=ROWS,
        COLUMNS=columns,
        DEPTH=DEPTH,
        INTERPRET=environment.interpreted(),
        num_warps=WARPS,
        num_stages=stages,
    )
    return [Partial(*part) for part in tables.unbind(1)]


def _reachable(matrix: Tensor) -> bool:
    """Whether TMA can read it: rows at multiples of 16 bytes."""
    row = matrix.stride(0) * matrix.element_size()
    return matrix.data_ptr() % 16 == 0 and row % 16 == 0


def _descriptor(matrix: Tensor, height: int):
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(matrix, [height, DEPTH])


def _processors(x: Tensor) -> int:
    if not x.is_cuda:
        return EMULATED_PROCESSORS
    return torch.cuda.get_device_properties(x.device).multi_processor_count
