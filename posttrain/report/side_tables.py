"""The table of a sweep: sides down, k across, the mean over the seeds with its spread, the best in bold.

Left out: the checkpoints of a single run (`score_tables.py`), sentences (`comparison.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import stdev

from posttrain.evaluate.seeds import over_seeds
from posttrain.report.differences import Place, values
from posttrain.report.numbers import curve
from posttrain.report.sides import Side
from posttrain.report.story import mean_curves
from posttrain.report.text import share

SHOWN_K = (1, 4, 16, 64, 256, 1024, 4096)
MOST_K = 7


@dataclass(frozen=True, slots=True)
class SideCell:
    """A mean as text; the standard deviation over the seeds and the 95 % interval (over problems, and seeds
    where there are several), each empty where it is unknown; and whether it is the best of its column."""

    text: str
    spread: str = ""
    interval: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class SideRow:
    side: Side
    step: int
    cells: list[SideCell]


@dataclass(frozen=True, slots=True)
class SideTable:
    """`note` says how the best was chosen and what the small type is."""

    columns: list[str]
    rows: list[SideRow]
    note: str


def side_table(every: list[Side], task: str) -> SideTable | None:
    """The last checkpoints of `every` on `task`; None where fewer than two sides have a pass@k."""
    last = [(side, *end) for side in every if (end := _end(side, task))]
    ks = sorted({k for _, _, points in last for k in points})
    if len(last) < 2 or not ks:
        return None
    ks = ks if len(ks) <= MOST_K else [k for k in SHOWN_K if k in ks] or ks[:MOST_K]
    best = {k: max(points[k].value for _, _, points in last if k in points) for k in ks}
    apart = {k: len({points[k].value for _, _, points in last if k in points}) > 1 for k in ks}
    rows = []
    for side, checkpoint, points in last:
        step = next(iter(points.values())).step
        cells = [
            _cell(side, task, checkpoint, k, apart[k] and points[k].value == best[k])
            if k in points
            else SideCell("–")
            for k in ks
        ]
        rows.append(SideRow(side, step, cells))
    return SideTable([f"pass@{k:,}" for k in ks], rows, _note([side for side, _, _ in last]))


def _end(side: Side, task: str):
    table = mean_curves(side.runs, task)
    return list(table.items())[-1] if table else None


def _cell(side: Side, task: str, checkpoint: str, k: int, best: bool) -> SideCell:
    places = [Place(run, checkpoint) for run in side.runs]
    scores = [curve(run, task, checkpoint)[k] for run in side.runs]
    mean = sum(score.value for score in scores) / len(scores)
    if len(scores) == 1:
        low, high = scores[0].low, scores[0].high
        return SideCell(share(mean), "", _span(low, high), best)
    found = values(task, k, places)
    interval = over_seeds(found.table, found.groups) if found is not None else None
    bounds = (interval.low, interval.high) if interval is not None else (None, None)
    return SideCell(share(mean), f"± {share(stdev(s.value for s in scores))}", _span(*bounds), best)


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{share(low)}–{share(high)}"


def _note(every: list[Side]) -> str:
    seeds = [len(side.runs) for side in every]
    parts = [
        f"last checkpoints; best of each column in bold, chosen among {len(every)} on the problems shown, "
        "which flatters it"
    ]
    if max(seeds) > 1:
        parts.append("±: standard deviation over the seeds")
        parts.append("small type: 95 % interval over problems and seeds")
    else:
        parts.append("small type: 95 % interval over the problems of one run each")
    return "; ".join(parts)
