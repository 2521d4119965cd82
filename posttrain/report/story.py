"""What one side did on one task, as a value: its first, best and last checkpoint by pass@k, and the changes
between them.

`findings.py`, `comparison.py` and `chains.py` put it into sentences. Left out: pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

from posttrain.report.differences import Difference, Place, comparable, difference
from posttrain.report.numbers import Curve, curves, headline_k
from posttrain.report.sides import Side
from posttrain.rundir.reading import RunData
from posttrain.types import Score

SMALL_CHANGE = 0.05
"""pass@k is called kept where its interval excludes a fall of more than this from its best (our choice)."""


@dataclass(slots=True)
class Story:
    """One side on one task: a run, or the mean over several seeds of it.

    `small` and `large` are the k of the headlines, `count` the number of checkpoints with pass@`large`.
    `first`, `best` and `last` are their scores; `last_small` is pass@`small` of the last checkpoint. The best
    is chosen on the problems that all checkpoints have a value of.
    """

    side: Side
    task: str
    small: int
    large: int
    count: int
    first: Score
    best: Score
    last: Score
    last_small: Score
    change: Difference | None
    """From the best checkpoint to the last one."""
    change_small: Difference | None
    """The same of pass@`small`."""
    gain: Difference | None
    """From the first checkpoint to the last one."""
    ranked: bool = True
    """Whether the checkpoints could be compared on the same problems; else `best` is the last one."""
    uneven: bool = False
    """Whether a seed was scored at a later checkpoint, which others lack."""
    chosen: bool = False
    """Whether `last` is a checkpoint that somebody chose."""

    @property
    def label(self) -> str:
        return self.side.title

    @property
    def run(self) -> RunData:
        """The first seed."""
        return self.side.runs[0]

    def at(self, checkpoint: str) -> list[Place]:
        """A checkpoint of every seed."""
        return [Place(run, checkpoint) for run in self.side.runs]

    @property
    def end(self) -> list[Place]:
        return self.at(self.last.checkpoint)

    @property
    def verdict(self) -> str:
        """`single` (one checkpoint), `unranked` (of different problems), `peaks last` (the best is the last),
        `keeps` (the interval of the change excludes a fall of `SMALL_CHANGE`), `falls` (it excludes no fall
        at all), `unclear` (neither)."""
        if self.count == 1:
            return "single"
        if not self.ranked:
            return "unranked"
        if self.change is None or self.best.checkpoint == self.last.checkpoint:
            return "peaks last"
        low, high = self.change.low, self.change.high
        if low is None or high is None:
            return "unclear"
        if low > -SMALL_CHANGE:
            return "keeps"
        return "falls" if high < 0.0 else "unclear"


def story(side: Side, task: str) -> Story | None:
    """The story of `side` on `task`; None where no checkpoint of it has a pass@k in every seed."""
    table = mean_curves(side.runs, task)
    if not table:
        return None
    *_, last = table
    small = min(table[last])
    large = headline_k(table[last])
    having = [checkpoint for checkpoint in table if large in table[checkpoint]]
    first = having[0]
    ends = [[Place(run, checkpoint) for run in side.runs] for checkpoint in having]
    alike = comparable(task, large, ends) if large in table[last] else None
    best = last if alike is None else max(zip(alike.means, having, strict=True), key=lambda x: x[0])[1]
    found = Story(
        side,
        task,
        small,
        large,
        count=len(having),
        first=table[first][large],
        best=table[best][large],
        last=table[last][large],
        last_small=table[last][small],
        change=None,
        change_small=None,
        gain=None,
        ranked=alike is not None,
        uneven=any([*curves(run, task)][-1] != last for run in side.runs),
    )
    # at the problems that the best was chosen on
    among = ends if alike is not None and alike.left_out else ()
    if first != last:
        found.gain = difference(task, large, found.at(first), found.end, among=among)
    if best != last:
        found.change = difference(task, large, found.at(best), found.end, among=among)
        found.change_small = difference(task, small, found.at(best), found.end, among=among)
        if found.change is not None and found.change.mean > 0:  # on the problems that both have
            found.best, found.change, found.change_small = found.last, None, None
    return found


def mean_curves(runs: list[RunData], task: str) -> dict[str, Curve]:
    """checkpoint -> the mean over `runs` of its pass@k, for checkpoints and k that all of them have. Those of
    several runs have no interval."""
    tables = [curves(run, task) for run in runs]
    if len(tables) == 1:
        return tables[0]
    found = {}
    for checkpoint, points in tables[0].items():
        others = [table.get(checkpoint, {}) for table in tables]
        shared = [k for k in points if all(k in other for other in others)]
        if shared:
            means = {k: fmean(other[k].value for other in others) for k in shared}
            found[checkpoint] = {
                k: replace(points[k], value=value, low=None, high=None) for k, value in means.items()
            }
    return found


def page_title(runs: list[RunData]) -> str:
    """Title of a page about `runs`: their names, or how many there are."""
    names = list(dict.fromkeys(run.name for run in runs))
    return " against ".join(names) if len(names) <= 3 else f"{len(names)} runs"
