"""Row operations as Triton kernels: one program per row, which writes the row's D over its logits.

    pass 1  z of the row, once: largest, sum of exponentials, sum of e (z - peak); the target's z
    pass 2  z again (partly still in L2): D = exp(z - log_z), the target expm1(log p), in place

D in bf16 takes the first half of the row's fp32 logits, so a tile of D overwrites logits of this tile and of
earlier ones; a barrier makes all loads of a tile come before its stores. All statistics come from the same
fp32 logits. Offsets of rows are 64-bit. `W` is V rounded up to a multiple of 16-byte accesses: if a tile's
mask cut such an access, every element would be loaded separately. Columns V..W are read and written but never
used.

The long argument lists of the kernels are pointers, sizes and compile-time switches, as Triton takes them.

Left out: several rows per program (one vocabulary keeps a program busy), and a row split over programs (a
chunk has hundreds of rows, a GPU 132 multiprocessors).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .autotune import Config, choose
from .environment import interpreted
from .rows import Delta, Partial, RowStats
from .spec import View
from .triton_math import expm1, log, narrow, tanh

ALIGN = 64
"""Rows of the buffer start at multiples of 64 elements, 256 bytes, whatever V is: 16-byte loads need it."""
CONFIGS = (Config(4096, 8), Config(8192, 16), Config(4096, 16), Config(2048, 8), Config(2048, 4))
"""All of them compile for sm_90 without spills, which a test checks."""
TUNING_ROWS = 264  # two waves on an H100 or H200


@triton.jit
def _view(x, inner, outer, SOFTCAP: tl.constexpr, INTERPRET: tl.constexpr):
    """(z, tanh of the softcap or 0) from raw logits."""
    if SOFTCAP:
        bent = tanh(x * inner, INTERPRET)
        return bent * outer, bent
    else:
        return x * outer, x * 0.0


@triton.jit
def _scan(x_ptr, V, W, inner, outer, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr, INTERPRET: tl.constexpr):
    """Pass 1 over one row: peak, sum of e = exp(z - peak), sum of e (z - peak).

    The sums stay in BLOCK lanes until the end: one reduction per tile (the maximum) instead of three."""
    lanes = tl.arange(0, BLOCK)
    peak = -float("inf")
    total = tl.zeros([BLOCK], tl.float32)
    mean = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        inside = start + lanes < V
        reach = start + lanes < W
        x = tl.load(x_ptr + start + lanes, mask=reach, other=0.0, eviction_policy="evict_last")
        z, _ = _view(x, inner, outer, SOFTCAP, INTERPRET)
        z = tl.where(inside, z, -float("inf"))
        high = tl.maximum(peak, tl.max(z, 0))
        # While every logit so far is -inf there is nothing to rescale (and inf - inf is NaN).
        gap = tl.where(peak == high, 0.0, peak - high)
        shrink = tl.exp(gap)
        mean = tl.where(total > 0, shrink * (mean + total * gap), 0.0)
        total = total * shrink
        gap_z = z - tl.where(high == -float("inf"), 0.0, high)
        e = tl.exp(gap_z)
        total += e
        mean += tl.where(inside & (e != 0), e * gap_z, 0.0)
        peak = high
    return peak, tl.sum(total, 0), tl.sum(mean, 0)


@triton.jit
def _write(
    x_ptr,
    d_ptr,
    W,
    label,
    log_z,
    log_p,
    inner,
    outer,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Pass 2 over one row: D over the logits. `label` is -1 where another shard has the target."""
    lanes = tl.arange(0, BLOCK)
    target = expm1(log_p, INTERPRET)
    for start in range(0, W, BLOCK):
        reach = start + lanes < W
        x = tl.load(x_ptr + start + lanes, mask=reach, other=0.0, eviction_policy="evict_first")
        z, bent = _view(x, inner, outer, SOFTCAP, INTERPRET)
        d = tl.where(start + lanes == label, target, tl.exp(z - log_z))
        if SOFTCAP:
            d = d * (1.0 - bent * bent)
        # Another warp may still have to load what this one is about to overwrite.
        tl.debug_barrier()
        tl.store(d_ptr + start + lanes, narrow(d, d_ptr.dtype.element_ty, INTERPRET), mask=reach)


# Labels start anywhere in their table, and only one is read per row: no variant by their alignment.
@triton.jit(do_not_specialize_on_alignment=["label_ptr"])
def row_loss(
    x_ptr,
    x_stride,
    d_ptr,
    d_stride,
    label_ptr,
    log_p_ptr,
    log_z_ptr,
    entropy_ptr,
    correct_ptr,
    V,
    W,
    inner,
    outer,
    DELTA: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Both passes. Grid: [r]."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    label = tl.load(label_ptr + row)
    target, _ = _view(tl.load(x_ptr + label), inner, outer, SOFTCAP, INTERPRET)
    peak, total, mean = _scan(x_ptr, V, W, inner, outer, SOFTCAP, BLOCK, INTERPRET)
    log_total = log(total, INTERPRET)
    log_p = (target - peak) - log_total
    log_z = peak + log_total
    tl.store(log_p_ptr + row, log_p)
    tl.store(log_z_ptr + row, log_z)
    tl.store(entropy_ptr + row, log_total - mean / total)
    tl.store(correct_ptr + row, (target == peak).to(tl.int8))
    if DELTA:
        _write(x_ptr, d_ptr + row * d_stride, W, label, log_z, log_p, inner, outer, SOFTCAP, BLOCK, INTERPRET)


@triton.jit(do_not_specialize_on_alignment=["label_ptr"])
def row_partial(
    x_ptr,
    x_stride,
    label_ptr,
    peak_ptr,
    total_ptr,
    target_ptr,
    mean_ptr,
    V,
    W,
    inner,
    outer,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Pass 1 of a shard of the vocabulary. Grid: [r]."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    label = tl.load(label_ptr + row)
    raw = tl.load(x_ptr + label, mask=label >= 0, other=0.0)
    target, _ = _view(raw, inner, outer, SOFTCAP, INTERPRET)
    peak, total, mean = _scan(x_ptr, V, W, inner, outer, SOFTCAP, BLOCK, INTERPRET)
    tl.store(peak_ptr + row, peak)
    tl.store(total_ptr + row, total)
    tl.store(target_ptr + row, tl.where(label >= 0, target, -float("inf")))
    tl.store(mean_ptr + row, mean)


@triton.jit(do_not_specialize_on_alignment=["label_ptr"])
def row_delta(
    x_ptr,
    x_stride,
    d_ptr,
    d_stride,
    label_ptr,
    log_p_ptr,
    log_z_ptr,
    W,
    inner,
    outer,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Pass 2 of a shard of the vocabulary. Grid: [r]."""
    row = tl.program_id(0).to(tl.int64)
    _write(
        x_ptr + row * x_stride,
        d_ptr + row * d_stride,
        W,
        tl.load(label_ptr + row),
        tl.load(log_z_ptr + row),
        tl.load(log_p_ptr + row),
        inner,
        outer,
        SOFTCAP,
        BLOCK,
        INTERPRET,
    )


class Rows:
    """See `rows`."""

    def __init__(self, rows: int, vocab: int, view: View, work: torch.dtype, mm: torch.dtype, device) -> None:
        """One fp32 buffer for up to `rows` rows of `vocab` logits; it also contains the deltas, in `mm`."""
        stride = -(-vocab // ALIGN) * ALIGN
        self.buffer = torch.empty(rows, stride, dtype=work, device=device)
        self.vocab, self.reach = vocab, -(-vocab // 16) * 16
        self.softcap = view.softcap is not None
        self.inner, self.outer = view.inner, view.outer
        self.deltas = self.buffer.view(mm)  # [rows, stride * 4 / itemsize]
        fits = [c for c in CONFIGS if c.block <= triton.next_power_of_2(vocab)]
        self.config = Config(max(16, triton.next_power_of_2(vocab)), 4)
        if fits and rows < TUNING_ROWS:
            self.config = fits[0]  # too short to tell configurations apart
        elif fits:
            key = f"V={-(-vocab // 4096) * 4096} {mm} softcap={self.softcap}".replace("torch.", "")
            self.config = choose("row_loss", key, fits, self._try, self.buffer.device)

    def logits(self, r: int) -> Tensor:
        return self.buffer[:r, : self.vocab]

    def forward(self, z: Tensor, labels: Tensor, delta: bool) -> tuple[RowStats, Delta | None]:
        stats = RowStats(
            *(z.new_empty(len(z)) for _ in range(3)), torch.empty(len(z), dtype=torch.bool, device=z.device)
        )
        d = self._deltas(z)
        if len(z):
            row_loss[(len(z),)](
                z,
                z.stride(0),
                d,
                d.stride(0),
                labels,
                *stats[:3],
                stats.correct.view(torch.int8),
                self.vocab,
                self.reach,
                self.inner,
                self.outer,
                DELTA=delta,
                **self._constants(),
            )
        return stats, Delta(d, None) if delta else None

    def partial(self, z: Tensor, labels: Tensor) -> Partial:
        part = Partial(*(z.new_empty(len(z)) for _ in range(4)))
        if len(z):
            row_partial[(len(z),)](
                z,
                z.stride(0),
                labels,
                *part,
                self.vocab,
                self.reach,
                self.inner,
                self.outer,
                **self._constants(),
            )
        return part

    def delta(self, z: Tensor, labels: Tensor, part: Partial, stats: RowStats) -> Delta:
        d = self._deltas(z)
        if len(z):
            row_delta[(len(z),)](
                z,
                z.stride(0),
                d,
                d.stride(0),
                labels,
                stats.log_probs,
                stats.log_z,
                self.reach,
                self.inner,
                self.outer,
                **self._constants(),
            )
        return Delta(d, None)

    def _try(self, config: Config) -> None:
        """One launch on whatever the buffer contains."""
        self.config = config
        z = self.logits(TUNING_ROWS)
        self.forward(z, torch.zeros(len(z), dtype=torch.int64, device=z.device), True)

    def _deltas(self, z: Tensor) -> Tensor:
        return self.deltas[: len(z), : self.vocab]

    def _constants(self) -> dict:
        return {
            "SOFTCAP": self.softcap,
            "BLOCK": self.config.block,
            "num_warps": self.config.warps,
            "INTERPRET": interpreted(),
        }
