"""Intervals of a mean over problems, of one model or of the paired difference of two; what follows from them.

The sampling unit is the problem, or the cluster of problems that are not independent (made from one template
or source). One standard error serves all of them: clusters may differ in size, and the correction for few of
them (CR2) and the degrees of freedom follow Bell & McCaffrey 2002. Values that are proportions get Wilson's
form of the interval, which stays within 0 and 1 and is right for means near either end; differences get
Student's. `python -m tests.evaluate.coverage` measures how often the intervals hold the true mean.

Left out: the uncertainty of a single problem's value, which the spread between problems contains;
variation between training seeds (`seeds.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from posttrain.evaluate.student import t_quantile, t_tail

Method = Literal["auto", "t", "wilson", "share"]
FEWEST = 8
"""Clusters below which no interval is given: for differences that mostly have one sign its coverage would
fall below .9."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` problems in `clusters` clusters, and its interval.

    `error` is the standard error of `value` and `df` its degrees of freedom. Where no interval can be trusted
    `low`, `high`, `error` and `df` are None and `reason` tells why, for a sentence such as "no interval:
    too few problems".
    """

    value: float
    low: float | None
    high: float | None
    n: int
    error: float | None = None
    df: float | None = None
    clusters: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """The variance of a mean over `clusters` clusters of `n` problems, with its degrees of freedom.

    `effective` is the number of independent problems that would know as much, from `clusters` to `n`.
    """

    variance: float
    df: float
    n: int
    clusters: int
    effective: float
    flat: bool
    """All clusters have the same mean, up to rounding."""


def interval(
    values: ArrayLike,
    groups: Sequence[str] | None = None,
    method: Method = "auto",
    level: float = 0.95,
) -> Interval:
    """The mean of `values` [M] with its interval at `level`.

    `groups` [M]: problems with the same name form a cluster; an empty name is a cluster of one. `auto` is
    `wilson` where all values are in [0, 1], else `t`.

    - wilson: Wilson's 1927 interval of a proportion. Where values lie between 0 and 1, or are grouped, it
      takes as many trials as give the standard error (Korn & Graubard 1998) and Student's quantile. One more
      problem, right or wrong, is supposed in the variance, so that equal values do not seem certain.
    - share: the same of values whose mean is a proportion, whatever they are: those of `metrics.weighted`.
    - t: the mean -+ Student's quantile times the standard error. For quantities without known limits.

    No interval, with a `reason`, for fewer than `FEWEST` clusters (ungrouped values of 0 and 1 need none, as
    their variance follows from their mean), and for `t` of equal values, or means of clusters.

    Raises:
        ValueError: no values, a value that is not finite, groups of another length, or values outside [0, 1]
            for `wilson`, a mean outside it for `share`.
    """
    v = _finite(values)
    of = cluster_numbers(groups, len(v))
    within = bool(((v >= 0.0) & (v <= 1.0)).all())
    if method == "wilson" and not within:
        raise ValueError("wilson takes values between 0 and 1")
    mean = float(v.mean())
    if method == "share":
        if not -1e-9 <= mean <= 1.0 + 1e-9:
            raise ValueError("a share is between 0 and 1")
        mean = min(max(mean, 0.0), 1.0)
    wilsons = method == "share" or (method != "t" and within)
    if wilsons and bool(((v == 0.0) | (v == 1.0)).all()) and of[-1] == len(v) - 1:
        low, high = wilson(int(v.sum()), len(v), level)
        return Interval(mean, low, high, len(v), math.sqrt(mean * (1 - mean) / len(v)), math.inf, len(v))
    found = spread(v, of)
    return proportion(mean, found, level) if wilsons else symmetric(mean, found, level)


def paired(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
) -> Interval:
    """The mean of `b` - `a` [M] over the same problems: far narrower than the difference of two intervals.

    The method is `t`. Where all differences are the same and the values proportions, the interval tells what
    share of other problems they do not exclude: no difference at all is 0 with an interval around it. Values
    without known limits then have no interval.

    Raises:
        ValueError: as `interval`, or the lengths differ.
    """
    a, b = _finite(a), _finite(b)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} values cannot be paired with {b.shape}")
    d = b - a
    return symmetric(float(d.mean()), spread(d, cluster_numbers(groups, len(d))), level, limit_of(a, b))


def limit_of(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of values like these: 1 of proportions, 2 of changes of proportions."""
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    return math.inf if max(-low, high) > 1.0 else 1.0 if low >= 0.0 else 2.0


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion: valid also for few trials, and where none or all of them succeed."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return _wilson(successes / n, z * z / n)


def _wilson(mean: float, k: float) -> tuple[float, float]:
    """The m with (mean - m)^2 <= k m (1 - m)."""
    centre = (mean + k / 2) / (1 + k)
    half = math.sqrt(k * mean * (1 - mean) + k * k / 4) / (1 + k)
    # at both ends centre and half agree up to rounding
    return 0.0 if mean == 0.0 else centre - half, 1.0 if mean == 1.0 else centre + half


def proportion(mean: float, s: Spread, level: float) -> Interval:
    """Wilson's interval of a mean of values in [0, 1] with the spread `s`.

    Its variance in units of m (1 - m) is that of `s.effective` problems and of one more, right or wrong.
    """
    if s.clusters < FEWEST:
        return absent(mean, s)
    n, limit = s.effective, mean * (1 - mean)
    units = (n * s.variance / limit + 1 / n) / (n + 1) if limit > 0.0 else 1 / n
    low, high = _wilson(mean, t_quantile(0.5 + level / 2, s.df) ** 2 * units)
    return Interval(mean, low, high, s.n, math.sqrt(units * limit), s.df, s.clusters)


def symmetric(mean: float, s: Spread, level: float, limit: float = math.inf) -> Interval:
    """`mean` -+ Student's quantile times the standard error.

    `limit`: the values are in [-limit, limit]. If they are all the same, at most a share q of all problems
    has others, by Wilson's interval of 0 of as many clusters; at worst they are at either limit.
    """
    if s.clusters < FEWEST:
        return absent(mean, s)
    quantile = t_quantile(0.5 + level / 2, s.df)
    if not s.flat:
        error = math.sqrt(s.variance)
        return Interval(mean, mean - quantile * error, mean + quantile * error, s.n, error, s.df, s.clusters)
    if not math.isfinite(limit):
        return absent(mean, s, "no spread between")
    share = wilson(0, s.clusters, level)[1]
    low, high = mean - share * (mean + limit), mean + share * (limit - mean)
    return Interval(mean, low, high, s.n, max(high - mean, mean - low) / quantile, s.df, s.clusters)


def absent(mean: float, s: Spread, what: str = "too few") -> Interval:
    unit = "problems" if s.clusters == s.n else "clusters"
    return Interval(mean, None, None, s.n, clusters=s.clusters, reason=f"{what} {unit}")


def spread(values: np.ndarray, of: np.ndarray) -> Spread:
    """How far the mean of `values` [M] varies, given the cluster of each (`of` [M]).

    CR2: the sum of residuals of a cluster of m of the M problems counts 1 / (1 - m/M) times, squared. The
    degrees of freedom are Satterthwaite's for problems that are alike within their cluster (Bell & McCaffrey
    2002), C - 1 for C clusters of one size. Problems without groups are clusters of one: the usual s^2 / M.
    """
    n, mean = len(values), float(values.mean())
    m = np.bincount(of).astype(np.float64)
    clusters = len(m)
    if clusters < 2:
        return Spread(math.nan, 0.0, n, clusters, 1.0, True)
    away = values - mean
    ungrouped = float(away @ away) / (n * (n - 1))
    residuals = np.bincount(of, away)
    flat = bool((np.abs(residuals) <= 1e-12 * max(1.0, abs(mean)) * m).all())
    if clusters == n:
        return Spread(ungrouped, n - 1.0, n, n, n, flat)
    weight = 1.0 / (1.0 - m / n)
    variance = float(weight @ residuals**2) / n**2
    effective = float(clusters) if flat else min(max(n * ungrouped / variance, clusters), n)
    # trace(G)^2 / trace(G^2), G the covariance of the weighted residuals: diag(own) + m u' + u m'
    own = m**2
    u = m * own.sum() / (2 * n * n) - own / n
    trace = float(weight @ (own + 2 * m * u))
    square = weight**2 @ (own * (own + 4 * m * u))
    square += 2 * ((weight @ own) * (weight @ u**2) + (weight @ (m * u)) ** 2)
    return Spread(variance, trace * trace / float(square), n, clusters, effective, flat)


def p_value(found: Interval) -> float | None:
    """Probability of a mean at least as far from 0 if the true one were 0: two-sided, Student's t.

    None where there is no interval.
    """
    if found.error is None or found.df is None:
        return None
    if found.error == 0.0:
        return 1.0 if found.value == 0.0 else 0.0
    return 2.0 * t_tail(abs(found.value) / found.error, found.df)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons (Holm 1979): those below .05 are claims of which, with
    probability .95, none is wrong."""
    adjusted, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def detectable(found: Interval, power: float = 0.8, level: float = 0.95) -> float | None:
    """The smallest true difference that exceeds its noise with probability `power`, at this error and these
    degrees of freedom (Bloom 1995). Approximate with few of them: with 3, as of few seeds, .8 is .78, with 1
    .73; from 7 on it is .80. None where there is no interval."""
    if found.error is None or found.df is None:
        return None
    return (t_quantile(0.5 + level / 2, found.df) + t_quantile(power, found.df)) * found.error


def cluster_numbers(groups: Sequence[str] | None, n: int) -> np.ndarray:
    """Number of the cluster of each of `n` problems [n]: counted in the order in which they appear."""
    names = [""] * n if groups is None else list(groups)
    if len(names) != n:
        raise ValueError(f"{n} values, but {len(names)} groups")
    if not any(names):
        return np.arange(n)
    keys: list[object] = [name or i for i, name in enumerate(names)]
    number = {key: c for c, key in enumerate(dict.fromkeys(keys))}
    return np.fromiter(map(number.__getitem__, keys), np.int64, n)


def _finite(values: ArrayLike) -> np.ndarray:
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not len(v) or not np.isfinite(v).all():
        raise ValueError("an interval needs a list of finite values")
    return v
