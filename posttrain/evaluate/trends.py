"""Numbers that a run logged, read with care: what is finite, what a metric did from its beginning to its end.

A single logged step is noise, so a trend compares the mean of the first tenth of the log with that of the last.
Left out: words (`stage_facts.py`) and pictures (`training_figures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

PART = 0.1
"""Share of the logged steps at either end that a trend averages over (our choice)."""


def number(value: Any) -> float | None:
    """`value` where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a metric where it was logged."""
    found = [(row["step"], v) for row in rows if (v := number(row.get(key))) is not None]
    return [step for step, _ in found], [value for _, value in found]


@dataclass(frozen=True, slots=True)
class Trend:
    """Means of the first and last `count` logged values, the steps of the first and the very last one, and the
    standard error of the difference of both means (0 where one value stands for each)."""

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
        """Whether the change exceeds twice its standard error, which takes the logged values as independent."""
        return abs(self.change) > 2 * self.error


def trend(rows: Sequence[dict[str, Any]], key: str) -> Trend | None:
    """What `key` did over `rows`; None where it was never logged."""
    steps, values = series(rows, key)
    if not values:
        return None
    count = max(1, min(round(len(values) * PART), len(values) // 2))
    ends = values[:count], values[-count:]
    error = math.sqrt(sum(variance(end) / count for end in ends)) if count > 1 else 0.0
    return Trend(fmean(ends[0]), fmean(ends[1]), (steps[0], steps[-1]), count, error)


def mean(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Mean of `key` over all logged steps."""
    _, values = series(rows, key)
    return fmean(values) if values else None
