"""Differences of pass@k between two sides, each a checkpoint of one run or the same one of several seeds.

The interval is over the test problems, paired, where a side is one run, and over problems and seeds where
both sides have several: then it speaks of recipes. Sides are compared on the problems that all have a value
of, never by scores of different problems. Left out: the formulas (`evaluate/intervals.py`), and words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np

from posttrain.evaluate.intervals import Interval, detectable, p_value, paired
from posttrain.evaluate.seeds import over_seeds, seeds_difference, seeds_paired
from posttrain.report.numbers import ROUNDING, curve, problem_values
from posttrain.rundir.reading import RunData
from posttrain.types import Score

SAME = 1e-3
"""Most by which the mean of the samples may differ from the score that they are said to be behind."""
OTHER = "no samples of the same problems"


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
    difference that would be found in about four of five repetitions. `reason`: why there is no interval. The
    means are NaN where both sides have scores, but of different problems.
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
    """The problems that one side has no value of: a check failed, or a row of samples is missing."""
    a: float = math.nan
    b: float = math.nan
    """The two means: scores or, where problems are left out, over the problems of the difference."""

    @property
    def known(self) -> bool:
        """Whether both means are of the same problems."""
        return not math.isnan(self.mean)

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


def reverse(d: Difference) -> Difference:
    """a - b instead of b - a."""
    low, high = (None if v is None else -v for v in (d.high, d.low))
    return replace(d, mean=-d.mean, low=low, high=high, a=d.b, b=d.a)


class Values(NamedTuple):
    """pass@k of each problem and seed, [S, M], of problems `ids` in clusters `groups`; `left_out` problems
    have no value in some place."""

    table: np.ndarray
    ids: list[str]
    groups: list[str]
    left_out: int = 0


class Shared(NamedTuple):
    """pass@k of several sides over the same problems; `left_out` problems have no value in some side."""

    means: list[float]
    left_out: int


def mean_score(task: str, k: int, places: Sequence[Place]) -> float | None:
    """The mean of pass@k over `places`; None where one has no such score."""
    found = [_score(task, k, place) for place in places]
    return None if None in found or not found else fmean(score.value for score in found)


def values(task: str, k: int, *sides: Sequence[Place]) -> list[Values] | str:
    """The values behind the scores of all places of `sides`, at the problems that every one has a value of: a
    check that failed, or a row that is missing, leaves a problem without one. Why there are none, where the
    samples of a place do not fit its score, or no problem is shared."""
    tables: list[list[dict[str, float]]] = []
    groups: dict[str, str] = {}
    total = 0
    for places in sides:
        tables.append([])
        for place in places:
            rows, score = place.run.samples(place.checkpoint, task, place.settings), _score(task, k, place)
            by_id = problem_values(rows, k)
            if score is None or not by_id:
                return "there are no samples"
            if not _fits([*by_id.values()], score):
                return "the samples do not fit the scores"
            total = max(total, score.n)
            groups |= {str(r.get("id")): str(not r.get("independent") and r.get("group") or "") for r in rows}
            tables[-1].append(by_id)
    every = [table for side in tables for table in side]
    ids = [i for i in every[0] if all(i in table for table in every)] if every else []
    if not ids:
        return OTHER
    out = max(total, len(set().union(*every))) - len(ids)
    of = [groups[i] for i in ids]
    return [Values(np.array([[t[i] for i in ids] for t in side]), ids, of, out) for side in tables]


def _fits(found: list[float], score: Score) -> bool:
    """Whether `score` can be the mean of the values `found` and of those of the problems that are missing,
    which are between 0 and 1."""
    missing, total = max(score.n - len(found), 0), sum(found)
    n = len(found) + missing
    return total / n - SAME <= score.value <= (total + missing) / n + SAME


def comparable(task: str, k: int, sides: Sequence[Sequence[Place]]) -> Shared | None:
    """pass@k of each of `sides`, all over the same problems: their scores, or where a check failed, means
    over the problems that all have a value of. None where they are of different problems, and the samples
    do not tell."""
    scores = [[_score(task, k, place) for place in side] for side in sides]
    every = [score for side in scores for score in side]
    if not every or None in every:
        return None
    alike = len({score.n for score in every}) == 1
    places = [place for side in sides for place in side]
    rows = [len(p.run.samples(p.checkpoint, task, p.settings)) for p in places]
    if not alike or any(count != score.n for count, score in zip(rows, every, strict=True)):
        found = values(task, k, *sides)
        if not isinstance(found, str):
            return Shared([float(v.table.mean()) for v in found], found[0].left_out)
        if found == OTHER or not alike:
            return None
    return Shared([fmean(score.value for score in side) for side in scores], 0)


def difference(
    task: str,
    k: int,
    a: Sequence[Place],
    b: Sequence[Place],
    by_seed: bool = False,
    among: Sequence[Sequence[Place]] = (),
) -> Difference | None:
    """pass@k of `b` minus that of `a`, at the problems that all (and all of `among`) have a value of; None
    where either has no score. `by_seed`: place i of `b` follows from place i of `a` (a stage and its start),
    so that they are compared seed by seed, as two checkpoints of the same runs are."""
    means = mean_score(task, k, a), mean_score(task, k, b)
    if means[0] is None or means[1] is None:
        return None
    b = b if by_seed else _in_order(b, a)
    found = values(task, k, a, b, *among)
    if not isinstance(found, str):
        first, second = found[:2]
        d = _between(first.table, second.table, first.groups, by_seed or _same_runs(a, b))
        if first.left_out:
            means = float(first.table.mean()), float(second.table.mean())
        return replace(d, problems=len(first.ids), left_out=first.left_out, a=means[0], b=means[1])
    one, other = ([_score(task, k, place) for place in side] for side in (a, b))
    if found == OTHER or len({score.n for score in [*one, *other]}) > 1:
        return Difference(math.nan, reason=found)
    if len(a) == len(b) == 1:
        return replace(_unpaired(one[0], other[0]), a=means[0], b=means[1])
    return Difference(means[1] - means[0], reason=found, a=means[0], b=means[1])


def differences(task: str, a: Sequence[Place], b: Sequence[Place]) -> dict[int, Difference]:
    """k -> the difference of pass@k, for every k that all places have a score of, ascending."""
    ks = sorted(set.intersection(*({*curve(p.run, task, p.checkpoint, p.settings)} for p in [*a, *b])))
    return {k: found for k in ks if (found := difference(task, k, a, b)) is not None}


def difference_of_changes(
    task: str, k: int, a: tuple[Sequence[Place], Sequence[Place]], b: tuple[Sequence[Place], Sequence[Place]]
) -> Difference | None:
    """How much more pass@k changed between the two places of `b` than between those of `a`."""
    start = _in_order(b[0], a[0])
    found = values(task, k, a[0], _in_order(a[1], a[0]), start, _in_order(b[1], start))
    if isinstance(found, str):
        return None
    start_a, end_a, start_b, end_b = (v.table for v in found)
    moved = end_a - start_a, end_b - start_b
    d = _between(*moved, found[0].groups, _same_runs(a[0], b[0]))
    one, other = (float(table.mean()) for table in moved)
    return replace(d, problems=len(found[0].ids), left_out=found[0].left_out, a=one, b=other)


def side_interval(task: str, k: int, places: Sequence[Place]) -> Interval | None:
    """The mean of several seeds, with its interval over problems and seeds; None where the samples of a seed
    do not reproduce its score, or are not of every problem."""
    found = values(task, k, places)
    if isinstance(found, str) or found[0].left_out:
        return None
    return over_seeds(found[0].table, found[0].groups)


def unpaired(run: RunData, task: str) -> list[str]:
    """A sentence where the last checkpoint of a run has scores, but no samples that reproduce them."""
    checkpoint = next(reversed(run.rows(task)), "")
    ks = curve(run, task, checkpoint)
    place = Place(run, checkpoint)
    lost = [k for k in ks if isinstance(values(task, k, [place]), str)]
    if not lost:
        return []
    at = "" if len(lost) == len(ks) else f" of pass@{', '.join(f'{k:,}' for k in lost)}"
    return [
        f"the samples of {task} are missing or do not fit the scores{at}, so its differences{at} are not"
        " paired: an interval is wider than it need be, or absent."
    ]


def _score(task: str, k: int, place: Place) -> Score | None:
    return curve(place.run, task, place.checkpoint, place.settings).get(k)


def _paths(places: Sequence[Place]) -> list[Path]:
    return [place.run.path.resolve() for place in places]


def _in_order(places: Sequence[Place], others: Sequence[Place]) -> Sequence[Place]:
    """`places` in the order of `others` where they are of the same runs, in any order."""
    order = _paths(others)
    if sorted(_paths(places)) != sorted(order):
        return places
    return sorted(places, key=lambda place: order.index(place.run.path.resolve()))


def _same_runs(a: Sequence[Place], b: Sequence[Place]) -> bool:
    return sorted(_paths(a)) == sorted(_paths(b))


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
