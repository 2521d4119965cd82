"""Differences of pass@k between two sides, each a checkpoint of one run or the same one of several seeds.

The interval is over the test problems, paired, where a side is one run, and over problems and seeds where
both sides have several: then it speaks of recipes. Left out: the formulas (`evaluate/intervals.py`), and
words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np

from posttrain.evaluate.intervals import Interval, detectable, p_value, paired
from posttrain.evaluate.seeds import over_seeds, seeds_difference, seeds_paired
from posttrain.report.numbers import curve, problem_values
from posttrain.rundir.reading import RunData
from posttrain.types import Score

ROUNDING = 1e-12
"""A difference of two means below this is rounding."""
SAME = 1e-3
"""Most by which the mean of the samples may differ from the score that they are said to be behind."""


class Place(NamedTuple):
    """A checkpoint of a run, as it was scored under one settings hash (default: the run's own)."""

    run: RunData
    checkpoint: str
    settings: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference b - a of two means.

    `low` and `high` are its 95 % interval, None where it is unknown. `over` is what the interval covers:
    `problems` of two runs, paired; `seeds`: problems and seeds; `scores`: the intervals of two scores that
    could not be paired, which is wider than it need be. `p` is the two-sided p-value, `detectable` the
    difference that would be found in about four of five repetitions. `reason`: why there is no interval.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    over: Literal["problems", "seeds", "scores", ""] = ""
    p: float | None = None
    detectable: float | None = None
    reason: str = ""
    problems: int = 0
    """Of a paired difference: the problems that both sides have a value of."""
    left_out: int = 0
    """The problems that one side has no value of: a check failed."""

    @property
    def equal(self) -> bool:
        """Whether the two means are the same, up to rounding."""
        return abs(self.mean) < ROUNDING

    @property
    def clear(self) -> bool | None:
        """Whether the interval excludes 0; None where there is none."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 0.0 <= self.high


class Values(NamedTuple):
    """pass@k of each problem and seed, [S, M], of problems `ids` in clusters `groups`; `left_out` problems
    have no value in some seed."""

    table: np.ndarray
    ids: list[str]
    groups: list[str]
    left_out: int = 0


def mean_score(task: str, k: int, places: Sequence[Place]) -> float | None:
    """The mean of pass@k over `places`; None where one has no such score."""
    found = [_score(task, k, place) for place in places]
    return None if None in found or not found else fmean(score.value for score in found)


def values(task: str, k: int, *sides: Sequence[Place]) -> list[Values] | None:
    """The values behind the scores of all places of `sides`, at the problems that every one has a value of: a
    check that failed leaves a problem without one. None where the samples of a place do not reproduce its
    score, or no problem is shared."""
    tables: list[list[dict[str, float]]] = []
    groups: dict[str, str] = {}
    for places in sides:
        tables.append([])
        for place in places:
            rows, score = place.run.samples(place.checkpoint, task, place.settings), _score(task, k, place)
            by_id = problem_values(rows, k)
            if score is None or not by_id or abs(fmean(by_id.values()) - score.value) > SAME:
                return None
            groups |= {str(r.get("id")): str(not r.get("independent") and r.get("group") or "") for r in rows}
            tables[-1].append(by_id)
    every = [table for side in tables for table in side]
    ids = [i for i in every[0] if all(i in table for table in every)] if every else []
    if not ids:
        return None
    out = len(set().union(*every)) - len(ids)
    of = [groups[i] for i in ids]
    return [Values(np.array([[t[i] for i in ids] for t in side]), ids, of, out) for side in tables]


def difference(
    task: str, k: int, a: Sequence[Place], b: Sequence[Place], by_seed: bool = False
) -> Difference | None:
    """pass@k of `b` minus that of `a`, at the problems that all have a value of; None where either has no
    score. `by_seed`: place i of `b` follows from place i of `a` (a stage and its start), so that they are
    compared seed by seed, as two checkpoints of the same runs are."""
    means = mean_score(task, k, a), mean_score(task, k, b)
    if means[0] is None or means[1] is None:
        return None
    if (found := values(task, k, a, b)) is not None:
        first, second = found
        d = _between(first.table, second.table, first.groups, by_seed or _same_runs(a, b))
        return replace(d, problems=len(first.ids), left_out=first.left_out)
    if len(a) == len(b) == 1 and not _other_problems(task, a[0], b[0]):
        return _unpaired(_score(task, k, a[0]), _score(task, k, b[0]))
    return Difference(means[1] - means[0], reason="no samples of the same problems")


def _other_problems(task: str, a: Place, b: Place) -> bool:
    """Whether both places have samples, and share no problem."""
    ids = [{str(row.get("id")) for row in p.run.samples(p.checkpoint, task, p.settings)} for p in (a, b)]
    return all(ids) and not set.intersection(*ids)


def difference_of_changes(
    task: str, k: int, a: tuple[Sequence[Place], Sequence[Place]], b: tuple[Sequence[Place], Sequence[Place]]
) -> Difference | None:
    """How much more pass@k changed between the two places of `b` than between those of `a`."""
    found = values(task, k, *a, *b)
    if found is None:
        return None
    start_a, end_a, start_b, end_b = (v.table for v in found)
    return _between(end_a - start_a, end_b - start_b, found[0].groups, _same_runs(a[0], b[0]))


def side_interval(task: str, k: int, places: Sequence[Place]) -> Interval | None:
    """The mean of several seeds, with its interval over problems and seeds; None where the samples of a seed
    do not reproduce its score, or are not of every problem."""
    found = values(task, k, places)
    if found is None or found[0].left_out:
        return None
    return over_seeds(found[0].table, found[0].groups)


def unpaired(run: RunData, task: str) -> list[str]:
    """A sentence where the last checkpoint of a run has scores, but no samples that reproduce them."""
    checkpoint = next(reversed(run.rows(task)), "")
    ks = curve(run, task, checkpoint)
    if not ks or values(task, min(ks), [Place(run, checkpoint)]) is not None:
        return []
    return [
        f"the samples of {task} are missing or do not fit the scores, so differences are not paired: their"
        " intervals are wider than they need be."
    ]


def _score(task: str, k: int, place: Place) -> Score | None:
    return curve(place.run, task, place.checkpoint, place.settings).get(k)


def _same_runs(a: Sequence[Place], b: Sequence[Place]) -> bool:
    return len(a) == len(b) and all(
        x.run.path.resolve() == y.run.path.resolve() for x, y in zip(a, b, strict=True)
    )


def _between(a: np.ndarray, b: np.ndarray, groups: list[str], same: bool) -> Difference:
    """The difference of two tables [S, M]; `same`: row by row of the same runs."""
    if same and len(a) > 1:
        return _of(seeds_paired(a, b, groups), "seeds")
    if min(len(a), len(b)) > 1:
        return _of(seeds_difference(a, b, groups), "seeds")
    return _of(paired(a.mean(0), b.mean(0), groups), "problems")


def _of(found: Interval, over: Literal["problems", "seeds"]) -> Difference:
    known = found.low is not None
    return Difference(
        found.value,
        found.low,
        found.high,
        over if known else "",
        p_value(found) if known else None,
        detectable(found) if known else None,
        found.reason,
    )


def _unpaired(a: Score, b: Score) -> Difference:
    """From the intervals of two scores (Newcombe 1998, method 10); too wide on the same problems."""
    mean = b.value - a.value
    if any(bound is None for bound in (a.low, a.high, b.low, b.high)):
        return Difference(mean, reason="the scores have no intervals")
    low = mean - math.hypot(b.value - b.low, a.high - a.value)
    high = mean + math.hypot(b.high - b.value, a.value - a.low)
    return Difference(mean, low, high, "scores")
