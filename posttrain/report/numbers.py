"""Arithmetic on scores and metrics: pass@k curves, crossovers, trends over steps.

Scores are taken from `scores.jsonl`, values of single problems from samples, trends from `metrics.jsonl`.
Left out: the formulas (`evaluate/metrics.py`), unions of models (`unions.py`), differences
(`differences.py`), and words (`findings.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from posttrain.base.files import number
from posttrain.evaluate.metrics import pass_at_k, pass_at_n
from posttrain.rundir.reading import RunData, step_of
from posttrain.rundir.rows import pass_k
from posttrain.types import Score

Curve = dict[int, Score]
"""k -> score of pass@k, k ascending."""
ROUNDING = 1e-12
"""A difference of two means below this is rounding."""
LARGE = 256
"""Headlines use the largest k that was measured, up to this one."""
END = 0.1
"""Share of the logged steps at either end that a trend averages over (our choice)."""


def headline_k(ks: Iterable[int]) -> int:
    """The largest of `ks` up to `LARGE`, or the smallest one where all are above."""
    every = list(ks)
    return max((k for k in every if k <= LARGE), default=min(every))


def curve(run: RunData, task: str, checkpoint: str, settings: str | None = None) -> Curve:
    """pass@k of one checkpoint under one settings hash (default: the run's own)."""
    return _curve(run.rows(task, settings).get(checkpoint, {}))


def _curve(metrics: dict[str, Score]) -> Curve:
    found = {k: s for m, s in metrics.items() if (k := pass_k(m)) is not None}
    return dict(sorted(found.items()))


def curves(run: RunData, task: str, settings: str | None = None) -> dict[str, Curve]:
    """checkpoint -> curve under one settings hash (default: the run's own), for every checkpoint with a
    pass@k, by step."""
    found = {checkpoint: _curve(metrics) for checkpoint, metrics in run.rows(task, settings).items()}
    return {checkpoint: points for checkpoint, points in found.items() if points}


def unscored(run: RunData, task: str) -> list[tuple[str, int]]:
    """(checkpoint, step) of those that have no score of `task` although they were to."""
    rows = run.rows(task)
    found = [u.checkpoint for u in run.unscored if u.task == task and u.checkpoint not in rows]
    return [(name, step) for name in found if (step := step_of(name)) is not None]


def problem_values(rows: list[dict[str, Any]], k: int) -> dict[str, float]:
    """id -> pass@k of each problem: exact from `logp`, or else from the counts of its completions.

    A problem with fewer than k judged completions has no value.
    """
    exact = {str(row.get("id")): row["logp"] for row in rows if is_exact(row)}
    found = dict(zip(exact, pass_at_n([*exact.values()], k).tolist(), strict=True))
    for row in rows:
        if not is_exact(row) and row.get("completions"):
            right, judged = counts(row)
            if judged >= k:
                found[str(row.get("id"))] = float(pass_at_k(right, judged, k)[0])
    return found


def is_exact(row: dict[str, Any]) -> bool:
    """Whether a row of samples has the probability of its answer."""
    return isinstance(row.get("logp"), (int, float))


def counts(row: dict[str, Any]) -> tuple[int, int]:
    """(right, judged) completions of a row of samples; one whose check failed is not judged."""
    judged = [v for c in row["completions"] if (v := c.get("value")) is not None]
    return sum(v >= 1.0 for v in judged), len(judged)


def crossovers(a: Curve, b: Curve) -> list[float]:
    """Every N where two curves cross; none where a score of one is of more problems than the other's."""
    ks = [k for k in a if k in b]
    alike = all(a[k].n == b[k].n for k in ks)
    return crossings({k: b[k].value - a[k].value for k in ks}) if alike else []


def crossings(gaps: dict[int, float]) -> list[float]:
    """Every N where the gap between two curves changes sign, linear in log2 N between neighbouring k.

    A stretch of ties (of what is `ROUNDING`, too) between two signs counts once, at its middle; ties at
    either end are not a crossing.
    """
    signed = [(math.log2(k), d) for k, d in gaps.items()]
    apart = [(x, d) for x, d in signed if abs(d) >= ROUNDING]
    found = []
    for (x0, d0), (x1, d1) in zip(apart, apart[1:], strict=False):
        if (d0 < 0) != (d1 < 0):
            ties = [x for x, d in signed if abs(d) < ROUNDING and x0 < x < x1]
            x = (ties[0] + ties[-1]) / 2 if ties else x0 + (x1 - x0) * d0 / (d0 - d1)
            found.append(2.0**x)
    return found


def series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a metric where it was logged."""
    found = [(row["step"], v) for row in rows if (v := number(row.get(key))) is not None]
    return [step for step, _ in found], [value for _, value in found]


@dataclass(frozen=True, slots=True)
class Trend:
    """Means of the first and last `count` logged values, with the first and the last logged step.

    `error` is the standard error of the difference of the two means; 0 where each is a single value.
    """

    first: float
    last: float
    steps: tuple[int, int]
    count: int
    error: float

    @property
    def change(self) -> float:
        return self.last - self.first

    @property
    def clear(self) -> bool:
        """Whether the change exceeds twice its standard error, which assumes that logged values are
        independent."""
        return abs(self.change) > 2 * self.error


def trend(rows: Sequence[dict[str, Any]], key: str) -> Trend | None:
    """The trend of `key` over `rows`; None where it was never logged."""
    steps, values = series(rows, key)
    if not values:
        return None
    count = max(1, min(round(len(values) * END), len(values) // 2))
    ends = values[:count], values[-count:]
    error = math.sqrt(sum(variance(end) / count for end in ends)) if count > 1 else 0.0
    return Trend(fmean(ends[0]), fmean(ends[1]), (steps[0], steps[-1]), count, error)


def mean(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Mean of `key` over all logged steps."""
    _, values = series(rows, key)
    return fmean(values) if values else None
