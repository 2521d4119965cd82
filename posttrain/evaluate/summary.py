"""Means of the values of problems, with their intervals: over all problems, and over groups.

A mean over groups weighs every group alike, however many problems it has. Left out: the values (`values.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from posttrain.evaluate import metrics
from posttrain.evaluate.intervals import Interval, Spread, cluster_numbers, interval, proportion, symmetric

log = logging.getLogger(__name__)
MACRO = "_macro"
"""Ends the name of a metric over groups."""


class Grouped(Protocol):
    """What a task says of its groups."""

    clusters: bool
    """Whether problems of one group are not independent."""
    macro: Sequence[str]
    """Metrics whose mean over groups is a metric too, `acc_macro` of `acc`."""


def means(
    values: dict[str, list[float | None]], groups: list[str], task: Grouped, where: str
) -> dict[str, Interval]:
    """metric -> its mean over the problems that have a value. One that no problem has is left out, which is
    logged with `where`."""
    found, over_groups = {}, {}
    for metric, each in values.items():
        known = [i for i, value in enumerate(each) if value is not None]
        if not known:
            log.warning("%s: no problem has a value of %s", where, metric)
            continue
        some, of = [each[i] for i in known], [groups[i] for i in known]
        method = "t" if metric in metrics.UNBOUNDED else "share" if metric in metrics.SHARES else "auto"
        found[metric] = interval(some, of if task.clusters else None, method)
        if metric in task.macro:
            over_groups[f"{metric}{MACRO}"] = macro(some, of, method)
    return found | over_groups


def macro(
    values: Sequence[float], groups: Sequence[str], method: str = "auto", level: float = 0.95
) -> Interval:
    """The mean over G groups of the mean of each; of `values` [M], problem i of group `groups[i]`.

    The problems of a group are a sample, the groups are not: the variance is sum_g s_g^2 / n_g / G^2, with
    Satterthwaite's degrees of freedom. `method` as in `intervals.interval`. No interval where a group has one
    problem, of which no spread is known.
    """
    v, of = np.asarray(values, dtype=np.float64), cluster_numbers(groups, len(values))
    n = np.bincount(of)
    inner = np.bincount(of, v) / n
    mean = float(inner.mean())
    if n.min() < 2:
        return Interval(mean, None, None, len(v), clusters=len(n), reason="a group has a single problem")
    squares = np.bincount(of, (v - inner[of]) ** 2)
    parts = squares / (n - 1) / n / len(n) ** 2
    variance = float(parts.sum())
    flat = variance <= 1e-24
    df = float(len(v) - len(n)) if flat else variance**2 / float((parts**2 / (n - 1)).sum())
    around = float(((v - mean) ** 2).sum()) / (len(v) - 1)
    effective = float(len(n)) if flat else min(max(around / variance, len(n)), len(v))
    spread = Spread(variance, df, len(v), len(v), effective, flat)
    if method != "t" and bool(((v >= 0.0) & (v <= 1.0)).all()):
        return proportion(mean, spread, level)
    return symmetric(mean, spread, level)
