"""The control pictures of the page: pass@N by temperature, and cross-entropy at its best against another run.

Left out: the choice of the best (`controls.py`), the other pictures (`plots.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from posttrain.report.controls import Over, envelope, last_by_temperature, options, pairs, temperatures
from posttrain.report.measured import controls
from posttrain.report.numbers import Curve, curves
from posttrain.report.plots import attempts_axis, interval_band
from posttrain.report.svg import colour, end_labels, figure, panel, wrapped
from posttrain.rundir.reading import RunData

MOST_LINES = 8
"""Temperatures with a line in one panel; of more, this many spread over them."""
MOST_PAIRS = 3
"""Pairs of runs with pictures; more are counted."""
CHOICES: dict[Over, tuple[str, Any]] = {
    "temperature": ("Best temperature", (0, (4, 2))),
    "checkpoint": ("Best checkpoint", (0, (1, 1.6))),
    "both": ("Best of both", (0, (9, 2.5))),
}
"""What may be chosen for each N -> the title of its panel, and its line style."""
ALONE = "Last checkpoint. Strong: the run's own temperature, with its 95 % interval; thin: the others."
LINES = "Strong: last checkpoint at its own temperature. Thin: at its best, both runs alike."
FLATTERS = (
    " For each N the best is chosen on the problems that it is shown on, which flatters it: next to"
    " cross-entropy at its best, the other run as it is (strong) has the harder part."
)


def control_parts(members: dict[int, str], runs: list[RunData], task: str, prefix: str) -> list[dict]:
    """The parts of the page about one task: title, note, figures. Empty where no run has another temperature.

    `members`: index on the page -> label, of the runs that measured the same; `prefix` begins the ids.
    """
    held = {i: run for i, run in enumerate(runs) if i in members}
    panels = {i: found for i, run in held.items() if len(found := last_by_temperature(run, task)) > 1}
    ks = sorted({k for run in held.values() for points in curves(run, task).values() for k in points})
    if not panels or len(ks) < 2:
        return []
    figures = []
    for i, found in panels.items():
        svg = by_temperature(f"{prefix}T{i}", found, _own(held[i], task, found), i, ks)
        figures.append(figure("", svg, _listed(found), run=i))
    parts = [{"title": "By temperature", "note": ALONE, "figures": figures}]
    place = {id(run): i for i, run in held.items()}
    found = pairs([*held.values()], task)
    for n, (a, b) in enumerate(found[:MOST_PAIRS]):
        i, j = place[id(a)], place[id(b)]
        figures = _against(f"{prefix}p{n}", {i: a, j: b}, members, task, ks)
        title = f"Cross-entropy against its controls: {members[i]} and {members[j]}"
        parts.append({"title": title, "note": LINES + FLATTERS * (n == 0), "figures": figures})
    if (left := len(found) - MOST_PAIRS) > 0:
        parts[-1]["note"] += f" Not drawn: {left:,} more pair{'s' * (left != 1)} of runs."
    return parts


def _against(
    prefix: str, pair: dict[int, RunData], names: dict[int, str], task: str, ks: list[int]
) -> list[dict]:
    """One panel for each choice that one of the runs has."""
    figures = []
    last = {i: list(curves(run, task).values())[-1] for i, run in pair.items()}
    for over, (title, style) in CHOICES.items():
        choices = {i: _options(run, task, over) for i, run in pair.items()}
        best = {i: envelope(run, task, over) for i, run in pair.items() if choices[i]}
        if not best:
            continue
        lines = {i: {k: b.value for k, b in found.items()} for i, found in best.items()}
        svg = against(f"{prefix}{over}", title, {i: (names[i], last[i]) for i in pair}, lines, style, ks)
        alike = len(set(choices.values())) == 1
        told = [f"{names[i]}: {text or 'as it is'}" for i, text in choices.items()]
        figures.append(figure(title, svg, choices[next(iter(pair))] if alike else "; ".join(told)))
    return figures


def _options(run: RunData, task: str, over: Over) -> str:
    """What the run may choose from; empty where there is one only."""
    ts, grid = temperatures(run, task), options(run, task)
    count = len(grid)
    parts = [_listed(ts)] if over != "checkpoint" and len(ts) > 1 else []
    parts += [f"{count} checkpoints"] if over != "temperature" and count > 1 else []
    tables = [curves(run, task, settings) for settings in controls(run, task).values()]
    scored = sum(checkpoint in table for table in tables for checkpoint in grid)
    whole = len(parts) < 2 or scored == len(ts) * count
    return " × ".join(parts) + ("" if whole else f", {scored} of them scored")


def _own(run: RunData, task: str, found: dict[float, Curve]) -> float:
    """The temperature of `found` that is the run's own."""
    own = next(iter(run.settings(task)))
    return next(t for t, points in found.items() if next(iter(points.values())).settings == own)


def _listed(ts: Any) -> str:
    """`T 0.5, 1, 1.5`; of many the first, the last and their number."""
    ts = [f"{t:g}" for t in ts]
    if len(ts) > MOST_LINES:
        return f"{len(ts):,} temperatures from {ts[0]} to {ts[-1]}"
    return f"T {', '.join(ts)}"


def by_temperature(name: str, found: dict[float, Curve], own: float, run: int, ks: list[int]) -> str:
    """pass@N of one checkpoint: strong at temperature `own`, thin at the others, hot ones faint.

    `found`: temperature -> curve, ascending; `ks` sets the axis that the panels share.
    """
    alt = f"pass@N against N at {len(found)} temperatures"
    shown = [t for t in _spread(list(found), MOST_LINES) if t != own]
    with panel(name, alt, right=58) as p:
        attempts_axis(p.ax, ks)
        ends = []
        for rank, t in enumerate(shown):
            faint = 1.0 - 0.6 * rank / max(len(shown) - 1, 1)
            _line(p.ax, found[t], run, alpha=faint, linewidth=1.2)
            ends.append((_end(found[t]), f"T {t:g}", colour(run)))
        _line(p.ax, found[own], run, linewidth=2.6)
        interval_band(p.ax, found[own], colour(run))
        ends.append((_end(found[own]), f"T {own:g}", colour(run)))
        end_labels(p.ax, ends)
    return p.svg


def against(
    name: str,
    what: str,
    last: dict[int, tuple[str, Curve]],
    best: Mapping[int, Mapping[int, float]],
    style: Any,
    ks: list[int],
) -> str:
    """Runs as they are and at their best. `last`: index -> (label, curve); `best`: index -> k -> value."""
    alt = f"pass@N against N, {what[0].lower()}{what[1:]}: " + ", ".join(label for label, _ in last.values())
    with panel(name, alt, right=106) as p:
        attempts_axis(p.ax, ks)
        for i, (_, points) in last.items():
            _line(p.ax, points, i, linewidth=2.6)
        for i, points in best.items():
            x = [math.log2(k) for k in points]
            p.ax.plot(x, [*points.values()], color=colour(i), linewidth=1.5, linestyle=style)
        end_labels(p.ax, [(_end(points), wrapped(label), colour(i)) for i, (label, points) in last.items()])
    return p.svg


def _spread(values: list[float], most: int) -> list[float]:
    """At most `most` of `values`, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _end(points: Curve) -> float:
    return list(points.values())[-1].value


def _line(ax: Any, points: Curve, run: int, **style: float) -> None:
    ax.plot([math.log2(k) for k in points], [s.value for s in points.values()], color=colour(run), **style)
