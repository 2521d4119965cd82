"""Numbers of a whole task rather than of its problems: over instance sets, and over versions of a problem.

A set has one instance of every template (GSM-Symbolic); versions are the same problem in other words or
numbers (UGMathBench). Left out: means over problems and groups (`summary.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from posttrain.evaluate.intervals import FEWEST, Interval, interval
from posttrain.types import Problem

SETS = ("_set_mean", "_set_sd")
VERSIONS = ("_all_right", "_version_mean", "_version_gap")
"""Ends of the names of metrics."""
NORMAL = 1.959964
"""The .975 quantile of the normal distribution."""


def summaries(
    values: dict[str, list[float | None]], problems: list[Problem], clustered: bool
) -> dict[str, Interval]:
    """metric -> its number, of the first metric of `values` [M]; empty where the problems [M] have neither
    sets nor versions. `clustered`: problems of one group are not independent."""
    metric, found = next(iter(values.items()))
    known = [i for i, value in enumerate(found) if value is not None]
    some, of = [found[i] for i in known], [problems[i] for i in known]
    groups = [problem.group for problem in of] if clustered else None
    numbers: dict[str, Interval] = {}
    if of and all(problem.set for problem in of):
        each = over_sets(some, [problem.set for problem in of], groups)
        numbers |= {f"{metric}{end}": number for end, number in zip(SETS, each, strict=False)}
    if of and all(problem.version_of for problem in of):
        each = over_versions(some, [problem.version_of for problem in of], groups)
        numbers |= {f"{metric}{end}": number for end, number in zip(VERSIONS, each, strict=True)}
    return numbers


def over_sets(values: Sequence[float], sets: Sequence[str], clusters: Sequence[str] | None) -> list[Interval]:
    """The mean over S sets of the mean of each, and its standard deviation between sets (S - 1).

    `sets` [M] is the set of each of `values` [M], `clusters` [M] as in `intervals.interval`. The interval of
    the mean is over problems; that of the deviation takes the means of sets as normally distributed, and is
    absent below 8 sets. With one set there is no deviation.
    """
    v, of = np.asarray(values, dtype=np.float64), np.unique(np.asarray(sets), return_inverse=True)[1]
    sizes = np.bincount(of)
    count, each = len(sizes), np.bincount(of, v) / sizes
    equal = bool((sizes == sizes[0]).all())
    weighed = v if equal else v * (len(v) / count / sizes[of])
    mean = interval(weighed, clusters, "auto" if equal else "t")
    if count < 2:
        return [mean]
    sd = float(each.std(ddof=1))
    if count < FEWEST:
        return [mean, Interval(sd, None, None, count, reason="too few sets")]
    low, high = (sd * math.sqrt((count - 1) / _chi_square(count - 1, z)) for z in (NORMAL, -NORMAL))
    return [mean, Interval(sd, low, high, count)]


def over_versions(
    values: Sequence[float], versions: Sequence[str], clusters: Sequence[str] | None
) -> list[Interval]:
    """Of problems in several versions: the probability that all versions are right (EAcc of UGMathBench, Xu
    et al. 2025, arXiv 2501.13766), the mean over versions (AAcc), and the second less the first.

    `versions` [M] names the problem that each of `values` [M], a probability, is a version of. Each mean is
    over problems, which are all weighed alike; those with a single version count too.
    """
    v = np.asarray(values, dtype=np.float64)
    _, first, of = np.unique(np.asarray(versions), return_index=True, return_inverse=True)
    every = np.ones(len(first))
    np.multiply.at(every, of, v)
    mean = np.bincount(of, v) / np.bincount(of)
    named = None if clusters is None else [clusters[i] for i in first]
    return [interval(every, named), interval(mean, named), interval(mean - every, named)]


def drop_rate(new: float, seed: float) -> float:
    """1 - new / seed: how much of the score on the original questions is lost on changed ones (the
    performance drop rate of GSM-Plus, Li et al. 2024, arXiv 2402.19255). NaN where `seed` is 0."""
    return 1 - new / seed if seed else math.nan


def _chi_square(df: int, z: float) -> float:
    """The quantile of chi-square at the normal quantile `z` (Wilson & Hilferty 1931); to 2 % from 7 on."""
    return df * (1 - 2 / (9 * df) + z * math.sqrt(2 / (9 * df))) ** 3
