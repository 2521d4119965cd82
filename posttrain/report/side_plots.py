"""The pictures of sides on one task: the mean over the seeds with a band, at most six sides in one picture.

Left out: pictures of single runs (`task_parts.py`), the table beside them (`side_tables.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from posttrain.base.printable import printable
from posttrain.report.differences import Place, side_interval
from posttrain.report.numbers import curve, curves, headline_k
from posttrain.report.plots import attempts_axis
from posttrain.report.sides import Group, Side
from posttrain.report.step_plots import Line, over_steps
from posttrain.report.story import mean_curves
from posttrain.report.svg import LABEL_WIDTH, RUN_COLOURS, colour, end_labels, figure, panel, wrapped
from posttrain.report.tables import plain
from posttrain.report.task_parts import histogram

MOST_DRAWN = len(RUN_COLOURS)
MOST_NAMED = 8
"""Sides that are left out and named; more are counted."""
PROBLEMS, SEEDS, RANGE = "95 % interval over problems", "95 % interval over problems and seeds", "min to max"
"""What a band is: of one run, of several seeds, and of several seeds without samples of the same problems."""


def choose(every: list[Side], task: str) -> tuple[list[Side], str]:
    """At most six of `every` to draw, in their order: the best of the last checkpoints at the largest k of
    the headlines and at the smallest one, in turn; and a sentence about the others."""
    ends = {side.label: points for side in every if (points := _end(side, task))}
    if len(every) <= MOST_DRAWN:
        return every, ""
    shared = sorted({k for points in ends.values() for k in points})
    kept: list[str] = []
    if shared:
        ks = dict.fromkeys([headline_k(shared), shared[0]])
        ranked = [_ranked(ends, k) for k in ks]
        kept = list(dict.fromkeys(name for places in zip(*ranked, strict=False) for name in places))
    kept = list(dict.fromkeys([*kept, *ends, *(side.label for side in every)]))[:MOST_DRAWN]
    left = [side.label for side in every if side.label not in kept]
    more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
    best = f", the best at {' and '.join(f'pass@{k:,}' for k in ks)} of {task}" if shared else ""
    note = f"Drawn: {MOST_DRAWN} of {len(every)}{best}. Not drawn: {'; '.join(left[:MOST_NAMED])}{more}."
    return [side for side in every if side.label in kept], note


def _ranked(ends: dict[str, dict[int, float]], k: int) -> list[str]:
    having = [name for name in ends if k in ends[name]]
    return sorted(having, key=lambda name: -ends[name][k])


def _end(side: Side, task: str) -> dict[int, float]:
    table = mean_curves(side.settled.runs, task)
    return {k: s.value for k, s in [*table.values()][-1].items()} if table else {}


@dataclass(frozen=True, slots=True)
class Band:
    """The last checkpoint of a side: k, mean, and the bounds of a band, empty where there is none; `kind` is
    what the band is."""

    ks: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    kind: str


def band(side: Side, task: str) -> Band | None:
    """None where no checkpoint has a pass@k in every seed."""
    table = mean_curves(side.runs, task)
    if not table:
        return None
    checkpoint, points = list(table.items())[-1]
    ks, mean = [*points], [score.value for score in points.values()]
    if len(side.runs) == 1:
        scores = list(points.values())
        known = all(s.low is not None and s.high is not None for s in scores)
        bounds = [(s.low, s.high) for s in scores] if known else []
        return _band(ks, mean, bounds, PROBLEMS if known else "")
    found = []
    for k in ks:
        interval = side_interval(task, k, [Place(run, checkpoint) for run in side.runs])
        if interval is None or interval.low is None or interval.high is None:
            each = [curve(run, task, checkpoint) for run in side.runs]
            ends = [[points[k].value for points in each] for k in ks]
            return _band(ks, mean, [(min(end), max(end)) for end in ends], RANGE)
        found.append((interval.low, interval.high))
    return _band(ks, mean, found, SEEDS)


def _band(ks: list[int], mean: list[float], bounds: list[tuple[float, float]], kind: str) -> Band:
    return Band(ks, mean, [low for low, _ in bounds], [high for _, high in bounds], kind)


def short_names(group: Group, drawn: list[Side]) -> dict[str, str]:
    """Label of a side -> what stands beside its lines: `16 · 0.001` in a sweep, the label itself where the
    labels are short or few, or else `#1`, which the key of the page explains."""
    cells = [group.cell(side) for side in drawn]
    found = [printable(" · ".join(map(plain, cell.values.values()))) if cell else "" for cell in cells]
    if len(set(found)) < len(found) or not all(0 < len(text) <= LABEL_WIDTH for text in found):
        few = len(drawn) <= 3 or all(len(side.label) <= LABEL_WIDTH for side in drawn)
        found = [side.label if few else f"#{i + 1}" for i, side in enumerate(drawn)]
    return {side.label: text for side, text in zip(drawn, found, strict=True)}


def side_figures(
    drawn: list[tuple[int, str, Side]],
    task: str,
    t: str,
    place: Callable[[Side, int], float],
    x: dict[str, Any],
) -> list[dict[str, Any]]:
    """The pictures of (colour, short name, side). `place`: where a step of a side lies on the axis; `x`: what
    `over_steps` is told of that axis."""
    bands = [(i, name, side, found) for i, name, side in drawn if (found := band(side, task))]
    if not bands:
        return []
    figures = []
    ks = sorted({k for *_, found in bands for k in found.ks})
    if len(ks) > 1:
        note = _kinds([(name, found) for _, name, _, found in bands])
        figures.append(figure("Last checkpoints compared", last_checkpoints(f"t{t}x", bands, ks), note))
    for k in dict.fromkeys([headline_k(ks), ks[0]]):
        lines = [_over_training(i, name, side, task, k, place) for i, name, side, _ in bands]
        svg = over_steps(f"t{t}k{k}", f"pass@{k}", lines, "share" if k > 16 else "zero", **x)
        several = any(len(side.runs) > 1 for _, _, side, _ in bands)
        note = "mean over the seeds; band: smallest to largest seed" if several else ""
        figures.append(figure(f"pass@{k:,} over training", svg, note))
    return figures + histogram({i: (name, side.runs) for i, name, side, _ in bands}, task, t)


def _kinds(bands: list[tuple[str, Band]]) -> str:
    """What the bands are, naming the sides where they are not the same."""
    kinds: dict[str, list[str]] = {}
    for name, found in bands:
        kinds.setdefault(found.kind, []).append(name)
    if len(kinds) == 1:
        return f"mean; band: {next(iter(kinds))}" if all(kinds) else ""
    if kinds.keys() == {PROBLEMS, SEEDS}:
        return f"mean; band: {PROBLEMS}, and over seeds where there are several"
    told = [f"{kind or 'none'} of {'; '.join(names)}" for kind, names in kinds.items()]
    return f"mean; band: {', '.join(told)}"


def last_checkpoints(name: str, bands: list[tuple[int, str, Side, Band]], ks: list[int]) -> str:
    """pass@N of the last checkpoints, a line with its band for each (colour, short name, side,
    band)."""
    alt = "pass@N against N, last checkpoints of " + ", ".join(side.label for _, _, side, _ in bands)
    with panel(name, alt, right=112) as p:
        attempts_axis(p.ax, ks)
        ends = []
        for i, short, _, found in bands:
            x = [math.log2(k) for k in found.ks]
            if found.low:
                p.ax.fill_between(x, found.low, found.high, color=colour(i), alpha=0.13, linewidth=0)
            p.ax.plot(x, found.mean, color=colour(i), linewidth=2.2, marker="o" * (len(x) < 3), markersize=4)
            ends.append((found.mean[-1], wrapped(short), colour(i)))
        end_labels(p.ax, ends)
    return p.svg


def _over_training(
    i: int, name: str, side: Side, task: str, k: int, place: Callable[[Side, int], float]
) -> Line:
    """The mean over the seeds of the checkpoints that all of them have."""
    each = [curves(run, task) for run in side.runs]
    shared = [c for c in each[0] if all(k in table.get(c, {}) for table in each)]
    found = [[table[c][k].value for table in each] for c in shared]
    line = Line(name, [place(side, each[0][c][k].step) for c in shared], [fmean(v) for v in found], i)
    line.marker = True
    if len(side.runs) > 1:
        line.band = ([min(v) for v in found], [max(v) for v in found])
    return line
