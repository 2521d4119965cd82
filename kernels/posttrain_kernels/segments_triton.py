"""The segment tables by one Triton kernel per group of rows: sums, family, gates, scale.

One program per segment. It reads the ids of the group's rows (at most a few thousand, in L2) and adds the
log-probabilities of its own rows in fp64 and in the order of the rows, so that the bits are the same every
time, which atomics would not give. Then it evaluates the formulas of `family` in fp32, one number each.

A member of the family needs a branch in `_value_and_weight` and its name in `MEMBERS`. One without a branch
stops the compilation, and one that is not in `MEMBERS` is refused before that: the kernel never computes
another member's loss.

Left out: what `segments` already has: lengths, denominator, loss.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import segments
from .environment import interpreted
from .spec import Spec
from .triton_math import expm1, log, log1p

MEMBERS = ("confidence", "cross_entropy", "dft", "power", "focal", "maxrl")
"""What `_value_and_weight` has a branch for."""
ROWS = 1024  # rows per step of a program
LN2 = tl.constexpr(math.log(2.0))
SERIES_BELOW = tl.constexpr(-4.6)  # as in `family`
TINY_P = tl.constexpr(16.0)


@triton.jit
def _log1mexp(x, INTERPRET: tl.constexpr):
    """log(1 - exp(-x)) for x >= 0, without cancellation at either end."""
    return tl.where(x <= LN2, log(-expm1(-x, INTERPRET), INTERPRET), log1p(-tl.exp(-x), INTERPRET))


@triton.jit
def _series(x):
    return 1.0 + x * (0.5 + x * (0.16666666666666666 + x * 0.041666666666666664))


@triton.jit
def _confidence(logp, n, INTERPRET: tl.constexpr):
    c = -logp
    log_n = log(n, INTERPRET)
    a = -_log1mexp(c, INTERPRET)
    log_a = tl.where(c > TINY_P, tl.exp(-c) / 2 - c, log(a, INTERPRET))
    log_z = log_a + log_n
    z = n * a
    small = log_z < SERIES_BELOW
    value = tl.where(small, z / 2 - z * z / 24 - log_z, -_log1mexp(z, INTERPRET))
    weight = tl.where(
        small, _series(a) / _series(z), tl.exp(log_n - c - (n - 1.0) * a) / -expm1(-z, INTERPRET)
    )
    return tl.where(n == 1.0, c, value), tl.where(n == 1.0, 1.0, weight)


@triton.jit
def _power_of(q, g, INTERPRET: tl.constexpr):
    """q ** g for 0 <= q <= 1."""
    return tl.where(q == 0.0, tl.where(g == 0.0, 1.0, 0.0), tl.exp(g * log(q, INTERPRET)))


@triton.jit
def _focal(logp, g, INTERPRET: tl.constexpr):
    q = -expm1(logp, INTERPRET)
    qg = _power_of(q, g, INTERPRET)
    value = tl.where(logp == 0.0, 0.0, -qg * logp)
    slope = -g * tl.exp(logp) * tl.exp((g - 1.0) * log(q, INTERPRET)) * logp
    ends = (logp == 0.0) | (logp == -float("inf")) | (g == 0.0)
    return value, qg + tl.where(ends, 0.0, slope)


@triton.jit
def _maxrl(logp, exponent, terms, INTERPRET: tl.constexpr):
    """`exponent` is `terms` as a float: Triton makes a constant of an integer argument of 1, which has no
    `.to`."""
    q = -expm1(logp, INTERPRET)
    value = logp * 0.0
    value = tl.where(logp == -float("inf"), 0.0, value)
    for i in range(0, terms):
        k = (terms - i).to(tl.float32)
        value = (value + 1.0 / k) * q
    return value, -expm1(exponent * _log1mexp(-logp, INTERPRET), INTERPRET)


@triton.jit
def _value_and_weight(logp, n, exponent, terms, MEMBER: tl.constexpr, INTERPRET: tl.constexpr):
    """(L, F) of one log p <= 0, as `family.value_and_weight`."""
    if MEMBER == "confidence":
        value, coef = _confidence(logp, n, INTERPRET)
    elif MEMBER == "cross_entropy":
        value, coef = -logp, tl.full([], 1.0, tl.float32)
    elif MEMBER == "dft":
        value, coef = -expm1(logp, INTERPRET), tl.exp(logp)
    elif MEMBER == "power":
        value = -expm1(exponent * logp, INTERPRET) / exponent
        coef = tl.exp(exponent * logp)
    elif MEMBER == "focal":
        value, coef = _focal(logp, exponent, INTERPRET)
    elif MEMBER == "maxrl":
        value, coef = _maxrl(logp, exponent, terms, INTERPRET)
    else:
        tl.static_assert(False, "MEMBER has no branch in segments_triton._value_and_weight")
    return value, coef


@triton.jit
def _sum(ids_ptr, log_p_ptr, rows, slot, ROWS: tl.constexpr):
    """The log-probabilities of the rows whose id is `slot`, added in fp64."""
    lanes = tl.arange(0, ROWS)
    part = tl.zeros([ROWS], tl.float64)
    for start in range(0, rows, ROWS):
        inside = start + lanes < rows
        mine = tl.load(ids_ptr + start + lanes, mask=inside, other=-1) == slot
        log_p = tl.load(log_p_ptr + start + lanes, mask=mine, other=0.0)
        part += log_p.to(tl.float64)
    return tl.sum(part, 0)


# Groups differ in length and in where they start: one variant for all, or training stops now and then to
# compile another.
@triton.jit(
    do_not_specialize=["rows", "low", "terms"], do_not_specialize_on_alignment=["ids_ptr", "log_p_ptr"]
)
def close_segments(
    ids_ptr,
    log_p_ptr,
    rows,
    low,
    sums_ptr,
    lengths_ptr,
    value_ptr,
    scale_ptr,
    coef_ptr,
    n_ptr,
    p_ptr,
    weights_ptr,
    n,
    exponent,
    terms,
    p_threshold,
    weight_threshold,
    MEMBER: tl.constexpr,
    N_TABLE: tl.constexpr,
    EXTERNAL: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SURROGATE: tl.constexpr,
    P_GATE: tl.constexpr,
    F_GATE: tl.constexpr,
    PER_LENGTH: tl.constexpr,
    ROWS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Grid: [1 + number of ids]. Program 0 is slot 0, program i the segment low + i - 1."""
    i = tl.program_id(0)
    slot = tl.where(i == 0, 0, low + i - 1)
    total = tl.load(sums_ptr + slot) + _sum(ids_ptr, log_p_ptr, rows, slot, ROWS)
    tl.store(sums_ptr + slot, total)
    if i > 0:
        own = total.to(tl.float32)
        logp = tl.minimum(own, 0.0)
        logp = tl.where(own == own, logp, own)  # NaN stays NaN
        if EXTERNAL:
            p = tl.load(p_ptr + slot - 1)
            logp = log(p, INTERPRET)
        if N_TABLE:
            n = tl.load(n_ptr + slot - 1)
        value, coef = _value_and_weight(logp, n, exponent, terms, MEMBER, INTERPRET)
        length = tl.load(lengths_ptr + slot)
        if SURROGATE:
            value = tl.where(coef == 0.0, 0.0, -coef * own)
        stop = length == 0
        if P_GATE:
            stop = stop | (tl.exp(logp) >= p_threshold)
        if F_GATE:
            stop = stop | (coef <= weight_threshold)
        coef = tl.where(stop, 0.0, coef)
        value = tl.where(stop, 0.0, value)
        scale = coef
        if WEIGHTED:
            w = tl.load(weights_ptr + slot - 1)
            value = tl.where(w == 0.0, 0.0, w * value)
            scale = scale * w
        if PER_LENGTH:
            count = tl.maximum(length, 1).to(tl.float32)
            value = value / count
            scale = scale / count
        tl.store(coef_ptr + slot - 1, coef)
        tl.store(value_ptr + slot, value)
        tl.store(scale_ptr + slot, scale)


class Segments(segments.Segments):
    def __init__(self, ids: Tensor, spec: Spec, dtype: torch.dtype) -> None:
        """As `segments.Segments`. Raises ValueError for a member that the kernel has no branch for."""
        if spec.member not in MEMBERS:
            raise ValueError(
                f"member: {spec.member!r} has no Triton kernel; those of {', '.join(MEMBERS)} have one. "
                'Use backend="torch", or add a branch to segments_triton.py'
            )
        super().__init__(ids, spec, dtype)
        self._n = spec.n.to(dtype).contiguous() if isinstance(spec.n, Tensor) else None
        self._p = None if spec.p is None else spec.p.to(dtype).contiguous()
        weights = spec.segment_weights
        self._weights = None if weights is None else weights.to(dtype).contiguous()

    def close(self, low: int, high: int, ids: Tensor, log_probs: Tensor) -> None:
        spec = self.spec
        unused = self.sums  # a pointer that the kernel does not read
        close_segments[(1 + max(0, high - low + 1),)](
            ids,
            log_probs,
            len(ids),
            low,
            self.sums,
            self.lengths,
            self.value,
            self.scale,
            self.coef,
            *(unused if t is None else t for t in (self._n, self._p, self._weights)),
            1.0 if self._n is not None else float(spec.n),
            float(spec.exponent or 0),
            int(spec.exponent or 0) if spec.member == "maxrl" else 0,
            float(spec.p_threshold or 0),
            float(spec.weight_threshold or 0),
            MEMBER=spec.member,
            N_TABLE=self._n is not None,
            EXTERNAL=self._p is not None,
            WEIGHTED=self._weights is not None,
            SURROGATE=spec.value == "surrogate",
            P_GATE=spec.p_threshold is not None,
            F_GATE=spec.weight_threshold is not None,
            PER_LENGTH=spec.reduction == "length_mean",
            ROWS=ROWS,
            INTERPRET=interpreted(),
        )
