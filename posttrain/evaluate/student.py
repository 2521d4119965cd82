"""Student's t with any positive number of degrees of freedom, also a fraction or infinity. Plain math."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

NORMAL_FROM = 1e7
"""Degrees of freedom from which t is taken as normal: their quantiles agree to 1e-6."""


@lru_cache(maxsize=4096)
def t_quantile(q: float, df: float) -> float:
    """Quantile of Student's t with `df` degrees of freedom.

    Raises:
        ValueError: `q` is not between 0 and 1, or `df` is not positive.
    """
    if not (0.0 < q < 1.0 and df > 0.0):
        raise ValueError(f"no quantile {q} of Student's t with {df} degrees of freedom")
    if q < 0.5:
        return -t_quantile(1.0 - q, df)
    t = NormalDist().inv_cdf(q)
    if df >= NORMAL_FROM:
        return t
    # The tail is convex and heavier than the normal one, so Newton's steps rise to the quantile from below.
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    for _ in range(200):
        density = scale * math.exp(-(df + 1) / 2 * math.log1p(t * t / df))
        step = (t_tail(t, df) - (1.0 - q)) / density
        t += step
        if abs(step) <= 1e-13 * t:
            break
    return t


def t_tail(t: float, df: float) -> float:
    """P(T > t), with its relative precision also where it is tiny.

    Half the regularised incomplete beta function I_x(df/2, 1/2) at x = df / (df + t^2) (Abramowitz & Stegun
    26.7.1)."""
    if t < 0:
        return 1.0 - t_tail(-t, df)
    if df >= NORMAL_FROM:
        return math.erfc(t / math.sqrt(2.0)) / 2.0
    a, b, ratio = df / 2, 0.5, t * t / df
    if ratio == 0.0:
        return 0.5
    x = 1.0 / (1.0 + ratio)
    beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(b * math.log(ratio) - (a + b) * math.log1p(ratio) - beta)
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a / 2
    return (1.0 - front * _beta_fraction(b, a, ratio * x) / b) / 2


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b) (A & S 26.5.8) by Lentz's method; fast for x < (a+1) / (a+b+2)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1) or tiny)
    value = d
    for m in range(1, 10_000):
        before = value
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d or tiny)
            c = 1.0 + term / c or tiny
            value *= c * d
        if abs(value - before) <= 1e-15 * abs(value):
            break
    return value
