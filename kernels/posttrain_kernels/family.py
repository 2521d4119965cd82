"""The confidence-limited loss family: value and weight as functions of log p of a segment.

    value   L(log p)              what the loss of a segment is
    weight  F = -dL/dlog p        the share of the cross-entropy gradient that the segment receives

| member        | L                      | F                                  | source (arXiv)   |
|---------------|------------------------|------------------------------------|------------------|
| confidence    | -log(1 - (1-p)^N)      | N (1-p)^(N-1) p / (1 - (1-p)^N)    | DCO, 2502.07154  |
| cross_entropy | -log p                 | 1                                  |                  |
| dft           | 1 - p                  | p                                  | 2508.05629       |
| power         | (1 - p^a) / a          | p^a                                | generalised CE   |
| focal         | -(1-p)^g log p         | (1-p)^g - g p (1-p)^(g-1) log p    | F can exceed 1   |
| maxrl         | sum_{k<=T} (1-p)^k / k | 1 - (1-p)^T                        | 2602.02710       |

Everything is elementwise, in the dtype of `logp` (fp32 or fp64), and detached: callers install F as the
gradient themselves. The naive form of `confidence` is non-finite for about a fifth of the useful range in
fp32, so it is evaluated in log space, with a series where 1 - exp(-z) would cancel.

A new member is a function here and a line in `FORMULAS`, which serves the torch and reference back-ends, and
a branch in `segments_triton`; the README lists every place.

Left out: autograd, reductions, gates, anything that depends on tokens or vocabularies. In fp64 the series
branch is accurate to about 1e-10, which is what its truncation allows.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_LN2 = math.log(2.0)
_SERIES_BELOW = -4.6  # log z: under z = 0.01 the truncated series is exact to fp32
_TINY_P = 16.0  # c = -log p: beyond it -log(1 - p) is p (1 + p/2) to fp32, and keeps its logarithm


class Exponent(NamedTuple):
    meaning: str
    allowed: Callable[[float], bool]


EXPONENTS = {
    "power": Exponent("a > 0", lambda a: a > 0),
    "focal": Exponent("g >= 0", lambda g: g >= 0),
    "maxrl": Exponent("an integer T >= 1", lambda t: t >= 1 and t == int(t)),
}
"""The members that take an `exponent`. The others take none."""


def value_and_weight(
    logp: Tensor, n: float | Tensor = 1.0, member: str = "confidence", exponent: float | None = None
) -> tuple[Tensor, Tensor]:
    """(L, F), each shaped like `logp`.

    `n`, a number or a tensor like `logp`, is read by `confidence` only. log p = 0 and log p = -inf give the
    limits; a log p rounded above 0 counts as 0; NaN stays NaN. Raises ValueError for an unknown member; other
    arguments are checked by the caller.
    """
    if member not in FORMULAS:
        raise ValueError(f"member: {member!r} is not one of {', '.join(MEMBERS)}")
    return FORMULAS[member](logp.detach().clamp_max(0), n, exponent)


def _confidence(logp: Tensor, n: float | Tensor, _: float | None) -> tuple[Tensor, Tensor]:
    if not isinstance(n, Tensor):
        if n == 1:  # cross-entropy bit for bit, not merely to rounding
            return -logp, torch.ones_like(logp)
        log_n = math.log(n)
    else:
        n = n.to(logp.dtype)
        log_n = n.log()
    c = -logp
    a = -_log1mexp(c)  # -log(1 - p)
    log_a = torch.where(c > _TINY_P, torch.exp(-c) / 2 - c, a.log())
    log_z = log_a + log_n
    z = n * a  # (1 - p)^N = exp(-z)
    small = log_z < _SERIES_BELOW
    # where, never a product with a mask: the branch that is not taken may be inf or NaN.
    value = torch.where(small, z / 2 - z * z / 24 - log_z, -_log1mexp(z))
    weight = torch.where(
        small, _series(a) / _series(z), torch.exp(log_n - c - (n - 1) * a) / -torch.expm1(-z)
    )
    if isinstance(n, Tensor):
        plain = n == 1
        value = torch.where(plain, -logp, value)
        weight = torch.where(plain, 1.0, weight)
    return value, weight


def _cross_entropy(logp: Tensor, n: float | Tensor, _: float | None) -> tuple[Tensor, Tensor]:
    return -logp, torch.ones_like(logp)


def _dft(logp: Tensor, n: float | Tensor, _: float | None) -> tuple[Tensor, Tensor]:
    return -torch.expm1(logp), logp.exp()


def _power(logp: Tensor, n: float | Tensor, a: float) -> tuple[Tensor, Tensor]:
    return -torch.expm1(a * logp) / a, (a * logp).exp()


def _focal(logp: Tensor, n: float | Tensor, g: float) -> tuple[Tensor, Tensor]:
    if g == 0:
        return -logp, torch.ones_like(logp)
    q = -torch.expm1(logp)  # 1 - p
    qg = q**g
    value = torch.where(logp == 0, 0.0, -qg * logp)
    # g p q^(g-1) (-log p): 0 * inf at both ends, where its limit is 0.
    slope = -g * logp.exp() * q ** (g - 1) * logp
    ends = (logp == 0) | (logp == -math.inf)
    return value, qg + torch.where(ends, 0.0, slope)


def _maxrl(logp: Tensor, n: float | Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """The value costs T steps of Horner's rule: all terms are positive, nothing cancels."""
    terms = int(exponent)
    q = -torch.expm1(logp)
    value = torch.zeros_like(logp)
    for k in range(terms, 0, -1):
        value = value.add_(1 / k).mul_(q)
    return value, -torch.expm1(terms * _log1mexp(-logp))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x >= 0, without cancellation at either end."""
    return torch.where(x <= _LN2, (-torch.expm1(-x)).log(), torch.log1p(-torch.exp(-x)))


def _series(x: Tensor) -> Tensor:
    """(exp(x) - 1) / x to third order."""
    return 1 + x * (1 / 2 + x * (1 / 6 + x / 24))


FORMULAS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "confidence": _confidence,
    "cross_entropy": _cross_entropy,
    "dft": _dft,
    "power": _power,
    "focal": _focal,
    "maxrl": _maxrl,
}
"""Member -> (logp <= 0, n, exponent) -> (L, F)."""
MEMBERS = tuple(FORMULAS)
