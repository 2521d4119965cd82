"""What one run did on one task, as a value: its first, best and last checkpoint by pass@k; and how runs are named.

`findings.py` and `comparison.py` put it into sentences. Left out: pictures, and any judgement over training seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.report.numbers import Difference, curves, difference
from posttrain.rundir.reading import RunData
from posttrain.types import Score

LARGE = 256
"""The k the headlines speak of: the largest one measured up to this."""
SMALL_CHANGE = 0.05
"""pass@k that ends less than this below its best counts as kept, however sure the loss is (our choice)."""


@dataclass(slots=True)
class Story:
    """One run on one task: its curve at the best checkpoint by pass@`large`, at the last one, and the change."""

    run: RunData
    label: str
    task: str
    small: int
    large: int
    count: int
    first: Score
    best: Score
    last: Score
    best_small: Score | None
    last_small: Score
    change: Difference | None
    """From the best checkpoint to the last one."""
    gain: Difference | None
    """From the first checkpoint to the last one."""

    @property
    def verdict(self) -> str:
        """`falls`, `keeps`, `peaks last` (the best is the last), `single` (one checkpoint)."""
        if self.count == 1:
            return "single"
        if self.change is None or self.best.checkpoint == self.last.checkpoint:
            return "peaks last"
        falls = self.change.mean <= -SMALL_CHANGE and self.change.clear is not False
        return "falls" if falls else "keeps"


def story(run: RunData, name: str, task: str) -> Story | None:
    """None where the last scored checkpoint has no pass@k."""
    table = curves(run, task)
    if not table:
        return None
    *_, last = table
    small = min(table[last])
    large = max((k for k in table[last] if k <= LARGE), default=small)
    first = next(c for c in table if large in table[c])
    best = max((c for c in table if large in table[c]), key=lambda c: table[c][large].value)
    gain, change = (
        difference(task, large, (run, c), (run, last)) if c != last else None for c in (first, best)
    )
    return Story(
        run,
        name,
        task,
        small,
        large,
        count=sum(large in points for points in table.values()),
        first=table[first][large],
        best=table[best][large],
        last=table[last][large],
        best_small=table[best].get(small),
        last_small=table[last][small],
        change=change,
        gain=gain,
    )


def page_title(runs: list[RunData]) -> str:
    """What a page about `runs` is called: their names, or how many there are."""
    names = list(dict.fromkeys(run.name for run in runs))
    return " against ".join(names) if len(names) <= 3 else f"{len(names)} runs"
