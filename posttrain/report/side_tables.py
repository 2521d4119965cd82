"""The table of a sweep: sides down, k across, the mean over the seeds with its spread, the best in bold.

Left out: the checkpoints of a single run (`score_tables.py`), sentences (`comparison.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import stdev

from posttrain.report.differences import Place, side_interval
from posttrain.report.measured import measured
from posttrain.report.numbers import curve
from posttrain.report.sides import ENDED, Group, Side
from posttrain.report.story import mean_curves
from posttrain.report.tables import ABSENT, plain, short
from posttrain.report.text import share
from posttrain.rundir.reading import RunData

SHOWN_K = (1, 4, 16, 64, 256, 1024, 4096)
MOST_K = 7
VALUE_SHOWN = 40
"""Characters of a value of a sweep."""


@dataclass(frozen=True, slots=True)
class SideCell:
    """A mean as text; the standard deviation over the seeds and the 95 % interval (over problems, and seeds
    where there are several), each empty where it is unknown; and whether it is the best of its column, as are
    all that print the same."""

    text: str
    spread: str = ""
    interval: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class SideRow:
    """`names`: what the side is called, a text for each of the table's `heads`. `seeds`: how many runs are
    in it, `1 of 3` where more were asked for; `whole`: whether none is missing."""

    side: Side
    step: int
    cells: list[SideCell]
    names: list[str]
    seeds: str
    whole: bool


@dataclass(frozen=True, slots=True)
class SideTable:
    """`note` says how the best was chosen and what the small type is."""

    columns: list[str]
    rows: list[SideRow]
    note: str
    heads: list[str]
    """The keys of a sweep, or `recipe`."""


def group_tables(groups: list[Group]) -> list[tuple[str, SideTable]]:
    """The tables of `groups`, one for each task that a stage was scored on, and their titles."""
    found = []
    for m in measured([run for group in groups for run in group.runs]):
        for group in groups:
            if table := group_table(group, m.task, m.runs):
                found.append((title(m.title, group), table))
    return found


def title(task: str, group: Group) -> str:
    return f"{task}, {group.stage}" if group.stage else task


def group_table(group: Group, task: str, runs: list[RunData]) -> SideTable | None:
    """As `side_table`, of those of `runs`, which measured the same; with the values of a sweep as columns."""
    every = inside(group, runs)
    if (table := side_table([side for _, side in every], task)) is None:
        return None
    cells = {side.label: group.cell(whole) for whole, side in every}
    asked = {side.label: cells[side.label].asked if cells[side.label] else len(w.runs) for w, side in every}
    keys = list(dict.fromkeys(key for cell in cells.values() if cell for key in cell.values))
    rows = []
    for row in table.rows:
        cell, known = cells[row.side.label], len(row.side.runs)
        values = cell.values if cell else {}
        names = [short(plain(values[k]), VALUE_SHOWN) if k in values else ABSENT for k in keys]
        if cell is None:  # not sorted by its values: called by itself
            names[:1] = [short(row.side.label, VALUE_SHOWN)]
        ended = all(run.status in ENDED for run in row.side.runs)
        count = f"{known} of {max(known, asked[row.side.label])}"
        seeds = str(known) if count == f"{known} of {known}" else count
        seeds += "" if ended else ", unfinished"
        rows.append(replace(row, names=names if keys else row.names, seeds=seeds, whole=seeds == str(known)))
    parts = [table.note]
    if any(not row.whole for row in rows):
        parts.append("seeds in red: not all that were asked for are in the row and have ended")
    return replace(table, heads=keys or table.heads, rows=rows, note="; ".join(parts))


def inside(group: Group, runs: list[RunData]) -> list[tuple[Side, Side]]:
    """(a side of `group`, its ended runs that are among `runs`); sides without any are left out."""
    among = {id(run) for run in runs}
    found = [(side, [run for run in side.runs if id(run) in among]) for side in group.sides]
    return [(side, Side(side.label, held).settled) for side, held in found if held]


def side_table(every: list[Side], task: str) -> SideTable | None:
    """The last checkpoints of `every` on `task`; None where there are fewer than two runs with a pass@k."""
    last = [(side, *end) for side in every if (end := _end(side, task))]
    ks = sorted({k for _, _, points in last for k in points})
    if sum(len(side.runs) for side, _, _ in last) < 2 or not ks:
        return None
    ks = ks if len(ks) <= MOST_K else [k for k in SHOWN_K if k in ks] or ks[:MOST_K]
    best = {k: share(max(points[k].value for _, _, points in last if k in points)) for k in ks}
    apart = {k: len({share(points[k].value) for _, _, points in last if k in points}) > 1 for k in ks}
    rows = []
    for side, checkpoint, points in last:
        step = next(iter(points.values())).step
        cells = [
            _cell(side, task, checkpoint, k, apart[k] and share(points[k].value) == best[k])
            if k in points
            else SideCell("–")
            for k in ks
        ]
        rows.append(SideRow(side, step, cells, [side.label], str(len(side.runs)), True))
    return SideTable([f"pass@{k:,}" for k in ks], rows, _note([side for side, _, _ in last]), ["recipe"])


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
    interval = side_interval(task, k, places)
    bounds = (interval.low, interval.high) if interval is not None else (None, None)
    return SideCell(share(mean), f"± {share(stdev(s.value for s in scores))}", _span(*bounds), best)


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{share(low)}–{share(high)}"


def _note(every: list[Side]) -> str:
    seeds = [len(side.runs) for side in every]
    parts = ["Last checkpoints"]
    if len(every) > 1:
        parts.append(
            f"best of each column in bold, chosen among {len(every)} on the problems shown, which flatters it"
        )
    if max(seeds) > 1:
        parts.append("±: standard deviation over the seeds")
        some = ", and over seeds where there are several" if min(seeds) == 1 else " and seeds"
        parts.append(f"small type: 95 % interval over problems{some}")
    else:
        parts.append("small type: 95 % interval over the problems of one run each")
    return "; ".join(parts)
