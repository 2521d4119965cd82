"""The parts of a page that shows sides together: a sweep, recipes with several seeds, or many recipes.

For each task and stage a table and pictures of the sides; training as means over the seeds; then every run by
itself, to be opened. Left out: which runs are a side (`sides.py`), sentences (`findings.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from posttrain.base.files import number
from posttrain.report import axes, openings
from posttrain.report.control_plots import control_parts
from posttrain.report.facts import component_rows
from posttrain.report.measured import Measured, measured
from posttrain.report.side_plots import choose, short_names, side_figures
from posttrain.report.side_tables import group_table, inside, title
from posttrain.report.sides import MANY, Group, Side, side_difference, side_groups
from posttrain.report.svg import RUN_COLOURS
from posttrain.report.task_parts import task_parts
from posttrain.report.training_figures import fact_table, sections
from posttrain.rundir.reading import RunData

OTHER = len(RUN_COLOURS) - 1
"""Colour, grey, of the pictures of a run whose side is not drawn with others."""


MOST_ALONE = 36
"""Runs that the page shows each by itself; of more runs, none: the page would be too large to open."""


@dataclass(slots=True)
class SidesView:
    """The page by side. `colours`: run -> the colour of its side, None where it is not drawn; `names`: the
    title of each side and its colour, for sentences that begin with it."""

    groups: list[Group]
    colours: list[int | None]
    names: list[tuple[str, int | None]]
    tasks: list[dict[str, Any]] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    folded: bool = True
    """Whether single runs have to be opened."""
    difference: list[tuple[str, list[str]]] = field(default_factory=list)
    """(key, a value for each of `sides`) where they differ."""
    sides: list[Side] = field(default_factory=list)

    @property
    def many(self) -> bool:
        return max((len(group.sides) for group in self.groups), default=0) > MANY


def sides_view(
    runs: list[RunData],
    names: list[str],
    axis: axes.Axis,
    starts: list[openings.Start | None],
    swept: bool,
) -> SidesView | None:
    """The view of `runs`; None where they are neither a sweep (`swept`) nor many sides or seeds."""
    groups = side_groups(runs)
    if not runs or not (swept or any(group.many for group in groups)):
        return None
    every = measured(runs)
    at = {id(run): i for i, run in enumerate(runs)}
    drawn: list[tuple[list[Side], str]] = []
    for group in groups:
        first = next((m for m in every if inside(group, m.runs)), None)
        drawn.append(choose(group.sides, first.task if first else ""))
    colour = {side.label: i for sides, _ in drawn for i, side in enumerate(sides)}
    every_side = [side for group in groups for side in group.sides]
    of_run = {id(run): colour.get(side.label) for side in every_side for run in side.runs}
    view = SidesView(groups, [of_run[id(run)] for run in runs], [], folded=len(runs) > MANY)
    view.sides = every_side
    settled = [(side.settled.title, colour.get(side.label)) for side in view.sides]
    view.names = sorted({*settled, *((s.title, colour.get(s.label)) for s in view.sides)}, key=str)

    def place(side: Side, step: int) -> float:
        return fmean(axis.at[at[id(run)]](step) for run in side.runs)

    x = {"x": axis.label, "ticks": axis.ticks}
    for t, m in enumerate(every):
        for g, (group, (chosen, note)) in enumerate(zip(groups, drawn, strict=True)):
            held = inside(group, m.runs)
            short = short_names(group, chosen)
            kept = [(colour[w.label], short[w.label], side) for w, side in held if w.label in short]
            figures = side_figures(kept, m.task, f"s{t}g{g}", place, x)
            table = group_table(group, m.task, m.runs)
            if figures or table:
                rows = [(colour.get(row.side.label), row) for row in table.rows] if table else []
                view.tasks.append(
                    {"name": title(m.title, group), "figures": figures, "table": table, "rows": rows}
                    | {"key": _key(group, chosen), "controls": _controls(chosen, m, f"s{t}g{g}")}
                    | {"note": note if len(kept) < len(held) else ""}
                )
    for g, (group, (chosen, note)) in enumerate(zip(groups, drawn, strict=True)):
        view.training += _training(group, chosen, note, f"g{g}", runs)
    view.difference = side_difference(view.sides) if len(view.sides) > 1 else []
    order = [at[id(run)] for side in every_side for run in side.runs]
    if len(runs) > MOST_ALONE:
        return view
    view.runs = [_alone(runs, i, names[i], every, axis, starts, view.colours[i]) for i in order]
    return view


def _controls(chosen: list[Side], m: Measured, prefix: str) -> list[dict[str, Any]]:
    """Cross-entropy against its controls, first seeds; the panels of single runs stand with the runs."""
    first = [side.settled.runs[0] for side in chosen]
    members = {i: run.name for i, run in enumerate(first) if any(run is other for other in m.runs)}
    parts = control_parts(members, first, m.task, prefix)[1:]
    for part in parts:
        part["note"] += " Of each side its first seed." * any(len(side.settled.runs) > 1 for side in chosen)
    return parts


def _key(group: Group, chosen: list[Side]) -> list[tuple[int, str]]:
    """(colour, what it stands for) of the sides that are drawn."""
    texts = [*short_names(group, chosen).items()]
    return [(i, f"{s} {name}" if s == f"#{i + 1}" else name) for i, (name, s) in enumerate(texts)]


def _alone(
    runs: list[RunData],
    i: int,
    name: str,
    every: list[Measured],
    axis: axes.Axis,
    starts: list[openings.Start | None],
    colour: int | None,
) -> dict[str, Any]:
    """One run by itself: pictures and tables of its tasks in the colour of its side."""
    run, at = runs[i], OTHER if colour is None else colour
    before: list[Any] = [None] * at  # the place of a run in a picture is its colour
    own = replace(axis, at=[*before, axis.at[i]])
    found = []
    for t, m in enumerate(every):
        if any(other is run for other in m.runs):
            alone = Measured(m.task, m.title, [run])
            part = task_parts([*before, run], [*before, name], alone, f"{t}r{i}", own, [*before, starts[i]])
            panels = [f for c in part["controls"] for f in c["figures"]]
            for what, figures in (("By checkpoint", part["main"]), ("Last checkpoint", panels)):
                for figure in figures:
                    figure |= {"title": figure["title"] or what, "run": None}
            part["tables"] = [(None, shown) for _, shown in part["tables"]]
            found.append(part)
    return {"run": i, "tasks": found, "status": run.status}


def _training(
    group: Group, chosen: list[Side], note: str, prefix: str, runs: list[RunData]
) -> list[dict[str, Any]]:
    """The pictures of training of a stage, means over the seeds of the sides that are drawn; facts and
    rewards of every run."""
    found = sections(
        [averaged(side.settled) for side in chosen], [*short_names(group, chosen).values()], prefix
    )
    members = [i for run in group.runs for i, other in enumerate(runs) if other is run]
    for section in found:
        parts = [note] if len(chosen) < len(group.sides) else []
        if any(len(side.runs) > 1 for side in chosen):
            parts.append("Lines are means over the seeds, at steps that all of them logged.")
        section["title"] += f", {group.stage}" if group.stage else ""
        section |= {
            "note": " ".join(parts),
            "key": _key(group, chosen),
            "runs": [],
            "facts": fact_table(members, runs),
        }
        if section["rewards"]:
            section["rewards"] = [(i, rows) for i in members if (rows := component_rows(runs[i]))]
    return found


def averaged(side: Side) -> RunData:
    """The first seed of a side with the mean of every metric over the seeds, at steps and in columns that all
    of them logged."""
    first, *others = side.runs
    if not others:
        return first
    metrics = {}
    for split, rows in first.metrics.items():
        tables_of = [{row["step"]: row for row in run.metrics.get(split, [])} for run in others]
        metrics[split] = [
            _mean([row, *(table[row["step"]] for table in tables_of)])
            for row in rows
            if all(row["step"] in table for table in tables_of)
        ]
    return replace(first, metrics=metrics)


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"step": rows[0]["step"]}
    for key in rows[0]:
        values = [number(row.get(key)) for row in rows]
        if key != "step" and None not in values:
            found[key] = fmean(values)
    return found
