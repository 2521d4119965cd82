"""Intervals over training seeds: what a recipe does, not what one of its runs did.

Every seed answers the same problems, so a mean varies with both: with the problems (or their clusters), with
the seeds, and with what a seed does at a problem. The variances are estimated by moments and added (two-way
clustering, Cameron, Gelbach & Miller 2011), with Satterthwaite's degrees of freedom: with few seeds that
differ much the interval is wide, as it should be. Seeds of two sides are taken as independent, also where
they have the same numbers, and so may share data order or initial weights: the interval is wider than need be
where these go together. Left out: the choice of seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from posttrain.evaluate.intervals import (
    Interval,
    Spread,
    cluster_numbers,
    interval,
    limit_of,
    paired,
    proportion,
    spread,
    symmetric,
)


def over_seeds(values: ArrayLike, groups: Sequence[str] | None = None, level: float = 0.95) -> Interval:
    """The mean of `values` [S, M] of S seeds at the same M problems, with its interval at `level`.

    Problems and seeds are both taken as drawn at random. `groups` [M] as in `interval`, which this is for one
    seed.

    Raises:
        ValueError: `values` is not a table of finite numbers, or groups have another length.
    """
    v = _table(values)
    if len(v) == 1:
        return interval(v[0], groups, level=level)
    of = cluster_numbers(groups, v.shape[1])
    problems = spread(v.mean(0), of)
    seeds, both = _of_seeds(v, of)
    found = _joined(problems, [(seeds, len(v) - 1)], [(both, (len(v) - 1) * (problems.clusters - 1))])
    within = bool(((v >= 0.0) & (v <= 1.0)).all())
    return (proportion if within else symmetric)(float(v.mean()), found, level)


def seeds_paired(
    a: ArrayLike, b: ArrayLike, groups: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """The mean of `b` minus that of `a`, both [S, M]: row i of both is of one seed, as of two checkpoints of
    the same runs. With one seed this is `paired`.

    Raises:
        ValueError: as `over_seeds`, or the tables have different shapes.
    """
    a, b = _table(a), _table(b)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} values cannot be paired with {b.shape}")
    if len(a) == 1:
        return paired(a[0], b[0], groups, level)
    d = b - a
    of = cluster_numbers(groups, d.shape[1])
    problems = spread(d.mean(0), of)
    seeds, both = _of_seeds(d, of)
    found = _joined(problems, [(seeds, len(d) - 1)], [(both, (len(d) - 1) * (problems.clusters - 1))])
    # never the interval of a proportion: a difference has a sign, even where no problem got worse
    return symmetric(float(d.mean()), found, level, limit_of(a, b))


def seeds_difference(
    a: ArrayLike, b: ArrayLike, groups: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """The mean of `b` [Sb, M] minus that of `a` [Sa, M]: two recipes at the same problems.

    Problems are paired, seeds are independent and may be of different number and spread (Welch). With one
    seed each this is `paired`, which compares two models and not two recipes.

    Raises:
        ValueError: as `over_seeds`, other problems on one side, or one side has a single seed and the other
            several.
    """
    a, b = _table(a), _table(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} problems cannot be paired with {b.shape[1]}")
    if len(a) == len(b) == 1:
        return paired(a[0], b[0], groups, level)
    if min(len(a), len(b)) == 1:
        raise ValueError(
            f"one side has a single seed and the other {max(len(a), len(b))}: how far the single one would "
            "vary is unknown; give both sides at least two seeds, or compare two runs"
        )
    of = cluster_numbers(groups, a.shape[1])
    d = b.mean(0) - a.mean(0)
    problems = spread(d, of)
    seeds, both = [], []
    for side in (a, b):
        own, mixed = _of_seeds(side, of)
        seeds.append((own, len(side) - 1))
        both.append((mixed, (len(side) - 1) * (problems.clusters - 1)))
    return symmetric(float(d.mean()), _joined(problems, seeds, both), level, limit_of(a, b))


def _of_seeds(v: np.ndarray, of: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of `v` [S, M] by the seeds, and the part of it that is due to what each seed does
    at each cluster of problems: that part is also in the variance by the problems."""
    s, n = v.shape
    means = v.mean(1)
    rest = v - v.mean(0) - (means - v.mean())[:, None]
    sums = np.array([np.bincount(of, row) for row in rest])
    clusters = sums.shape[1]
    both = float((sums**2).sum()) / (s * (s - 1) * n * n) * clusters / max(clusters - 1, 1)
    return float(means.var(ddof=1)) / s, both


def _joined(problems: Spread, seeds: list[tuple[float, int]], both: list[tuple[float, int]]) -> Spread:
    """`problems` with the variance of the seeds added. Parts are (variance, degrees of freedom); those of
    `both` were counted twice. Estimates can be off: no sum is below either of its two parts."""
    by_seed = sum(part for part, _ in seeds)
    total = problems.variance + by_seed - sum(part for part, _ in both)
    total = max(total, problems.variance, by_seed)
    parts = [(problems.variance, problems.df), *seeds, *both]
    square = sum(part * part / df for part, df in parts if df > 0)
    df = total * total / square if square > 0.0 else problems.df
    return dataclasses.replace(problems, variance=total, df=df, flat=problems.flat and by_seed <= 1e-24)


def _table(values: ArrayLike) -> np.ndarray:
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 2 or not v.size or not np.isfinite(v).all():
        raise ValueError("an interval over seeds needs a table of finite values, a row for each seed")
    return v
