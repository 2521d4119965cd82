"""What one run did on one task, as a value: its first, best and last checkpoint by pass@k, and the changes
between them.

`findings.py`, `comparison.py` and `chains.py` put it into sentences. Left out: pictures, and any judgement
across training seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.report.numbers import Difference, curves, difference
from posttrain.rundir.reading import RunData
from posttrain.types import Score

LARGE = 256
"""Headlines use the largest k that was measured, up to this one."""
SMALL_CHANGE = 0.05
"""pass@k that ends less than this below its best counts as kept, however narrow the interval (our choice)."""


@dataclass(slots=True)
class Story:
    """One run on one task.

    `small` and `large` are the k of the headlines, `count` the number of checkpoints with pass@`large`.
    `first`, `best` and `last` are their scores; `best_small` and `last_small` are pass@`small` of the best
    and the last checkpoint.
    """

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
    """The story of `run` on `task`, labelled `name`; None where no checkpoint has a pass@k."""
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
    """Title of a page about `runs`: their names, or how many there are."""
    names = list(dict.fromkeys(run.name for run in runs))
    return " against ".join(names) if len(names) <= 3 else f"{len(names)} runs"
