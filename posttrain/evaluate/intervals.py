"""Intervals of a mean over problems: bootstrap, Student's t, Wilson; clustered; paired.

The sampling unit is the problem: none of the three needs the uncertainty of a single problem's value.
Problems of one group (made from one template or source) are resampled together. Plain numpy. Left out:
variation between training seeds, which no interval over problems shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Method = Literal["auto", "bootstrap", "t", "wilson"]
RESAMPLES = 2000
"""Of the bootstrap."""
CHUNK = 1 << 22
"""Most random numbers that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` problems; `low` and `high` are None for a single cluster, which has no spread."""

    value: float
    low: float | None
    high: float | None
    n: int


def interval(
    values: ArrayLike,
    groups: Sequence[str] | None = None,
    method: Method = "auto",
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of `values` [M] with its interval at `level`.

    `groups` [M]: problems with the same name form a cluster; an empty name is a cluster of one. `auto` is
    `wilson` where all values are 0 or 1 and none is grouped (the only method of the three that is right when
    all values are equal), else `bootstrap`.

    - bootstrap: percentiles of 2,000 resamples of the clusters.
    - t: standard error sqrt(C/(C-1) sum_c (sum_{i in c} (v_i - mean))^2) / M over C clusters (Miller 2024,
      arXiv 2411.00640, eq. 4) with C - 1 degrees of freedom.
    - wilson: Wilson 1927.

    Raises:
        ValueError: no values, a value that is not finite, groups of another length, or values that are not 0
            or 1 for `wilson`.
    """
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not len(v) or not np.isfinite(v).all():
        raise ValueError("an interval needs a list of finite values")
    names = [""] * len(v) if groups is None else list(groups)
    if len(names) != len(v):
        raise ValueError(f"{len(v)} values, but {len(names)} groups")
    binary = bool(np.isin(v, (0.0, 1.0)).all()) and not any(names)
    if method == "auto":
        method = "wilson" if binary else "bootstrap"
    mean = float(v.mean())
    if method == "wilson":
        if not binary:
            raise ValueError("wilson takes values of 0 and 1 without groups")
        return Interval(mean, *wilson(int(v.sum()), len(v), level), len(v))
    sums, sizes = _clusters(v, names)
    if len(sums) < 2:
        return Interval(mean, None, None, len(v))
    if method == "t":
        count = len(sums)
        error = math.sqrt(count / (count - 1) * float(((sums - mean * sizes) ** 2).sum())) / len(v)
        half = t_quantile(0.5 + level / 2, count - 1) * error
        return Interval(mean, mean - half, mean + half, len(v))
    tail = (1 - level) / 2
    low, high = np.quantile(_bootstrap(sums, sizes, seed), [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(v))


def paired(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str] | None = None,
    method: Literal["bootstrap", "t"] = "bootstrap",
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of `b` - `a` [M] over the same problems: far narrower than the difference of two intervals.

    Raises:
        ValueError: as `interval`, or the lengths differ.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} values cannot be paired with {b.shape}")
    return interval(b - a, groups, method, level, seed)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion: valid also for few trials, and where none or all of them succeed."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at both ends centre and half agree up to rounding
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


def t_quantile(q: float, df: int) -> float:
    """Quantile of Student's t with `df` degrees of freedom: bisection of the finite series of its CDF."""
    low, high = 0.0, 1.0
    target = abs(q - 0.5)
    while _t_half(high, df) < target and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_half(middle, df) < target else (low, middle)
    return math.copysign(high, q - 0.5)


def _t_half(t: float, df: int) -> float:
    """P(0 < T < t) (Abramowitz & Stegun 26.7.3, 26.7.4); from 100,000 degrees of freedom on, T is taken as
    normal."""
    if df >= 100_000:
        return NormalDist().cdf(t) - 0.5
    angle = math.atan(t / math.sqrt(df))
    square = math.cos(angle) ** 2
    odd = df % 2
    j = np.arange(1, (df - odd) // 2)
    terms = np.cumprod((2 * j - 1 + odd) / (2 * j + odd) * square)  # after the leading 1
    series = math.sin(angle) * (1 + float(terms.sum())) * (df > 1)
    return (angle + series * math.cos(angle)) / math.pi if odd else series / 2


def _clusters(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each cluster [C]."""
    keys = [(group, -1) if group else ("", i) for i, group in enumerate(groups)]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    of = np.array([number[key] for key in keys])
    return np.bincount(of, values), np.bincount(of).astype(np.float64)


def _bootstrap(sums: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Means of resampled clusters [RESAMPLES]."""
    rng = np.random.default_rng(seed)
    rows = max(1, min(RESAMPLES, CHUNK // len(sums)))
    means = []
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, len(sums), (min(rows, RESAMPLES - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return np.concatenate(means)
