"""The pictures and tables of the page about one task, each run by itself and the last checkpoints compared.

Left out: sides of several seeds (`side_plots.py`), how a picture is drawn (`plots.py`, `step_plots.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from posttrain.report import axes, openings, plots
from posttrain.report.control_plots import control_parts
from posttrain.report.differences import Place
from posttrain.report.measured import Measured
from posttrain.report.numbers import Curve, headline_k, unscored
from posttrain.report.score_tables import score_tables
from posttrain.report.step_plots import Line, over_steps
from posttrain.report.svg import figure
from posttrain.report.text import loss_name
from posttrain.report.unions import of_last, pooled
from posttrain.rundir.reading import RunData


def task_parts(
    runs: list[RunData],
    names: list[str],
    m: Measured,
    t: int | str,
    axis: axes.Axis,
    starts: list[openings.Start | None],
) -> dict[str, Any]:
    """Pictures and tables of runs that measured the same; `t` makes the ids of the pictures unique on the
    page."""
    task, same = m.task, set(map(id, m.runs))
    members = {i: run for i, run in enumerate(runs) if id(run) in same}
    tables_of = {i: openings.opened(run, task, starts[i]) for i, run in members.items()}
    opened_by = {i: by for i, (_, by) in tables_of.items()}
    held = [(i, run, table) for i, run in members.items() if (table := tables_of[i][0])]
    ks = sorted({k for _, _, table in held for points in table.values() for k in points})
    main, more = [], []
    if len(ks) > 1:
        for i, run, table in held:
            pool, number = pooled(run, task, ks)
            note = "one line per checkpoint; band: 95 % interval of the last"
            if pool:
                note += f"; dashed: the same attempts spread over {number} checkpoints"
            note += openings.note([(names[i], opened_by[i])]) + _left_out([run], task)
            steps = {next(iter(points.values())).step: points for points in table.values()}
            main.append(figure("", plots.pass_curves(f"t{t}c{i}", steps, i, pool, ks), note, run=i))
    if len(held) > 1:
        last = [(names[i], list(table.values())[-1], i) for i, _, table in held]
        note = "95 % intervals" if len(held) <= 3 else ""
        note += "; ring: the curves cross" if len(held) == 2 else ""
        places = [Place(run, [*table][-1]) for _, run, table in held]
        together, told = of_last(places, task, ks, [*last[0][1].values()][0].n)
        note += f"; {told}" if told else ""
        svg = plots.comparison(f"t{t}x", last, together)
        main.append(figure("Last checkpoints compared", svg, note.removeprefix("; ")))
    few = len(held) <= 3
    for k in dict.fromkeys([ks[0], headline_k(ks)] if ks else []):
        lines = [
            _score_line(i, names[i] if len(held) > 1 else "", table, k, few, axis.at[i])
            for i, _, table in held
        ]
        scale = "share" if k > 16 else "zero"
        svg = over_steps(f"t{t}k{k}", f"pass@{k}", lines, scale, x=axis.label, ticks=axis.ticks)
        title = f"pass@{k} {'through the stages' if axis.chained else 'over training'}"
        note = ("95 % intervals" if few else "") + _left_out([run for _, run, _ in held], task)
        note += openings.note([(names[i], opened_by[i]) for i, _, _ in held])
        more.append(figure(title, svg, note.removeprefix("; ")))
    more += histogram({i: (names[i], [run]) for i, run in members.items()}, task, t)
    shown = [(i, score_tables(run, task)) for i, run in members.items()]
    if len(held) == 1:
        main, more = main + more, []
    controls = control_parts({i: names[i] for i in members}, runs, task, f"t{t}")
    found = {"main": main, "more": more, "controls": controls, "tables": shown}
    return {"name": m.title, "task": task, **found}


def _left_out(runs: list[RunData], task: str) -> str:
    """The part of a note that names the steps a curve passes over; empty where there are none."""
    steps = sorted({step for run in runs for _, step in unscored(run, task)})
    return f"; not scored: step {', '.join(f'{step:,}' for step in steps)}" if steps else ""


def _score_line(
    i: int, name: str, table: dict[str, Curve], k: int, band: bool, at: Callable[[int], float]
) -> Line:
    points = [points[k] for points in table.values() if k in points]
    line = Line(name, [at(s.step) for s in points], [s.value for s in points], i, marker=True)
    if band and all(s.low is not None and s.high is not None for s in points):
        line.band = ([s.low for s in points], [s.high for s in points])
    return line


def histogram(members: dict[int, tuple[str, list[RunData]]], task: str, t: int | str) -> list[dict[str, Any]]:
    """How probable the right answers are; `members`: colour -> (label, a run, or the seeds of a side, whose
    problems are counted together). Empty where no run has probabilities."""
    held = []
    for i, (name, runs) in members.items():
        logp: list[float] = []
        for run in runs:
            checkpoint = next(reversed(run.rows(task)), "")
            rows = run.samples(checkpoint, task) if checkpoint else []
            logp += [r["logp"] for r in rows if isinstance(r.get("logp"), (int, float))]
        if logp:
            limited = loss_name(runs[0]) == "confidence_limited"
            held.append((name, np.array(logp), runs[0].section("loss").get("n") if limited else None, i))
    if not held:
        return []
    svg = plots.probability_histogram(f"t{t}p", held)
    note = "share of problems, last checkpoint"
    note += "; dotted: 1/N of the loss" if any(n for _, _, n, _ in held) else ""
    return [figure("Probability of the right answer", svg, note)]
