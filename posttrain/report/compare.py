"""What `posttrain compare` prints, as values: paired differences of two sides at every k that both have, with
p-values, Holm's correction over everything that is compared, the difference that could have been found, and
what the controls of cross-entropy leave of a lead.

Left out: how it is printed (`commands/compare.py`), and which runs are allowed to be a side there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

from posttrain.evaluate.intervals import holm
from posttrain.report.comparison import compare, crossed
from posttrain.report.control_words import remains
from posttrain.report.differences import Difference, differences
from posttrain.report.measured import measured
from posttrain.report.numbers import headline_k
from posttrain.report.sides import Side
from posttrain.report.story import Story, mean_curves, story
from posttrain.report.text import share


@dataclass(frozen=True, slots=True)
class Entrant:
    """A side, and the checkpoint of it that is compared (None: its last)."""

    side: Side
    checkpoint: str | None = None


@dataclass(slots=True)
class Line:
    """pass@k of both sides, `difference.a` and `difference.b`. `adjusted` is Holm's p-value at the two k of
    the headlines, else None."""

    k: int
    difference: Difference
    adjusted: float | None = None


@dataclass(slots=True)
class Pair:
    """Two sides on one task, at every k that both have."""

    a: Entrant
    b: Entrant
    task: str
    checkpoints: tuple[str, str]
    problems: int
    lines: list[Line] = field(default_factory=list)
    crossings: list[float] = field(default_factory=list)
    sentence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task,
            "a": _side(self.a, self.checkpoints[0]),
            "b": _side(self.b, self.checkpoints[1]),
            "problems": self.problems,
            "differences": [
                {"k": line.k, "adjusted_p": line.adjusted}
                | {key: None if value != value else value for key, value in asdict(line.difference).items()}
                | {"clear": line.difference.clear}
                for line in self.lines
            ],
            "crossings": self.crossings,
            "sentence": self.sentence,
        }


def compared(entrants: Sequence[Entrant], tasks: Sequence[str] = ()) -> tuple[list[Pair], list[str]]:
    """Every two of `entrants` on every task (default: all) that both measured alike, empty where there is
    none; and the sentences about the controls, over all entrants that measured a task alike.

    Holm's correction (Holm 1979) is over all pairs and tasks, at the smallest and the largest k of each.
    """
    runs = [run for entrant in entrants for run in entrant.side.runs]
    found: list[Pair] = []
    controls: list[tuple[str, str]] = []
    for group in measured(runs):
        inside = {id(run) for run in group.runs}
        told = [
            (e, s)
            for e in entrants
            if all(id(run) in inside for run in e.side.runs) and (s := _story(e, group.task))
        ]
        if not tasks or group.task in tasks:
            found += [p for x, y in combinations(told, 2) if (p := _pair(group.title, *x, *y))]
            controls += [(group.title, text) for text in remains([s for _, s in told])]
    _correct(found)
    several = len({pair.task for pair in found}) > 1
    return found, [f"{title}: " * several + text for title, text in controls]


def _story(entrant: Entrant, task: str) -> Story | None:
    told = story(entrant.side, task)
    if told is None or entrant.checkpoint is None:
        return told
    points = mean_curves(entrant.side.runs, task).get(entrant.checkpoint)
    if not points:
        return None
    large = headline_k(points)
    return replace(told, last=points[large], last_small=points[min(points)], chosen=True)


def _pair(title: str, a: Entrant, told_a: Story, b: Entrant, told_b: Story) -> Pair | None:
    task = told_a.task
    first, second = (mean_curves(s.side.runs, task)[s.last.checkpoint] for s in (told_a, told_b))
    gaps = differences(task, told_a.end, told_b.end)
    if not gaps:
        return None
    k = min(gaps)
    found = Pair(
        a,
        b,
        title,
        (told_a.last.checkpoint, told_b.last.checkpoint),
        problems=min(first[k].n, second[k].n),
        lines=[Line(k, d) for k, d in gaps.items()],
        crossings=crossed(gaps),
        sentence=compare(told_a, told_b),
    )
    return found


def headline(pair: Pair) -> list[Line]:
    """The lines at the smallest and the largest k of the headlines."""
    ks = [line.k for line in pair.lines]
    return [line for line in pair.lines if line.k in (ks[0], headline_k(ks))]


def _correct(found: list[Pair]) -> None:
    lines = [line for pair in found for line in headline(pair) if line.difference.p is not None]
    for line, p in zip(lines, holm([line.difference.p for line in lines]), strict=True):
        line.adjusted = p


def corrected(found: list[Pair]) -> str:
    """What holds after the correction, in one sentence; empty where only one comparison was made."""
    lines = [(pair, line) for pair in found for line in headline(pair) if line.adjusted is not None]
    if len(lines) < 2:
        return ""
    several = len({pair.task for pair in found}) > 1
    many = len({id(entrant) for pair in found for entrant in (pair.a, pair.b)}) > 2
    names = []
    for pair, line in lines:
        if line.adjusted < 0.05:
            ahead, behind = (pair.b, pair.a) if line.difference.mean > 0 else (pair.a, pair.b)
            over = f" over {behind.side.title}" if many else ""
            where = f" of {pair.task}" if several else ""
            p = "p < .001" if line.adjusted < 0.001 else f"p = {share(line.adjusted)}"
            names.append(f"{ahead.side.title}{over} at pass@{line.k}{where} (adjusted {p})")
    start = f"After Holm's correction over {len(lines)} comparisons"
    return (
        f"{start} these leads remain: {'; '.join(names)}." if names else f"{start}, no difference is clear."
    )


def _side(entrant: Entrant, checkpoint: str) -> dict[str, Any]:
    return {
        "label": entrant.side.label,
        "runs": [str(run.path) for run in entrant.side.runs],
        "checkpoint": checkpoint,
    }
