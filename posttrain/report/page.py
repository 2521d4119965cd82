"""One self-contained HTML page for one run, several runs, or a pipeline. No network, no script.

It starts with the headline sentences; then come the pictures behind them, tables, results of sampling stages,
training by stage, data, samples, recipe and provenance. The template escapes everything that a run wrote, and
the page's own content policy forbids scripts. Left out: numbers (`numbers.py`), sentences (`findings.py`),
tables (`tables.py`), pictures (`plots.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from posttrain.base.files import write_text
from posttrain.base.printable import printable
from posttrain.errors import RequestError
from posttrain.report import axes, openings, plots, tables, training_figures
from posttrain.report.alerts import alerts
from posttrain.report.control_plots import control_parts
from posttrain.report.differences import Place
from posttrain.report.findings import caveats, findings
from posttrain.report.markdown import markdown_report
from posttrain.report.measured import Measured, measured
from posttrain.report.numbers import Curve, unscored
from posttrain.report.score_tables import score_tables
from posttrain.report.step_plots import Line, over_steps
from posttrain.report.story import page_title
from posttrain.report.text import labels, loss_name
from posttrain.report.unions import of_last, pooled
from posttrain.rundir.places import is_pipeline
from posttrain.rundir.reading import PipelineData, RunData

__all__ = ["load_runs", "markdown_report", "render", "write_report"]


def load_runs(paths: list[Path]) -> tuple[list[RunData], PipelineData | None]:
    """The runs at `paths`, pipelines replaced by the runs of their stages; and the pipeline if it is the only
    path."""
    if not paths:
        raise RequestError("a report needs at least one run directory")
    runs: list[RunData] = []
    pipeline = None
    for path in map(Path, paths):
        if is_pipeline(path):
            pipeline = PipelineData.load(path)
            runs += pipeline.runs
        else:
            runs.append(RunData.load(path))
    return runs, pipeline if len(paths) == 1 else None


def write_report(paths: list[Path], out: Path | None = None, x: str = "step") -> Path:
    """Writes the page to `out` (default `<first path>/report.html`); returns its path. `x`: see `axes.py`.

    Raises:
        RequestError: a path is neither a run nor a pipeline, or a run cannot be drawn over `x`.
        WorkError: the page cannot be written.
    """
    axes.check(x)
    runs, pipeline = load_runs(paths)
    out = Path(out) if out is not None else Path(paths[0]) / "report.html"
    write_text(out, render(runs, pipeline, x))
    return out


def render(runs: list[RunData], pipeline: PipelineData | None = None, x: str = "step") -> str:
    """The page as a string."""
    names = labels(runs)
    axis, starts = axes.axis(runs, x), openings.starts(runs, names)
    found = measured(runs)
    samples = _samples(runs)  # first, because what cannot be read becomes a caveat
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        title=pipeline.name if pipeline else page_title(runs),
        meta=_meta(runs, list(dict.fromkeys(m.task for m in found)), pipeline),
        names=names,
        findings=[_attributed(text, names) for text in (findings(runs) if runs else [])],
        alerts=alerts(runs),
        caveats=[*caveats(runs), *(pipeline.failures if pipeline else [])],
        stages=pipeline.stages if pipeline else [],
        tasks=[_task(runs, names, m, i, axis, starts) for i, m in enumerate(found)],
        sampling=training_figures.sampling(runs),
        training=training_figures.sections(runs, names),
        mixtures=_mixtures(runs),
        samples=samples,
        difference=tables.recipe_difference(runs),
        recipes=[(i, highlight(r.recipe_text)) for i, r in enumerate(runs) if r.recipe_text],
        provenance=tables.provenance(runs),
    )
    return printable(page)


def _meta(runs: list[RunData], tasks: list[str], pipeline: PipelineData | None) -> str:
    seconds = pipeline.info.get("seconds") if pipeline else runs[0].run.get("seconds")
    if not pipeline and len(runs) > 1:
        seconds = None
    parts = [f"{len(runs)} runs" if len(runs) != 1 else "1 run", *tasks]
    parts += [str(run.run["started"])[:10] for run in runs[:1] if run.run.get("started")]
    parts += [f"{seconds:,.0f} s"] if isinstance(seconds, (int, float)) else []
    return " · ".join(parts)


def _attributed(text: str, names: list[str]) -> tuple[Markup, int | None]:
    """A finding that starts with a run's label -> (the rest with intervals in small type, the index of the
    run)."""
    run = next((i for i, name in enumerate(names) if text.startswith(f"{name}: ")), None)
    rest = text if run is None else text[len(names[run]) :]
    small = re.sub(r"\[[−.\d]+, [−.\d]+\]", r"<small>\g<0></small>", str(escape(rest)))
    return Markup(small), run


def _figure(title: str, svg: str, note: str = "", run: int | None = None) -> dict[str, Any]:
    return {"title": title, "svg": Markup(svg), "note": note, "run": run}


def _task(
    runs: list[RunData],
    names: list[str],
    m: Measured,
    t: int,
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
            main.append(_figure("", plots.pass_curves(f"t{t}c{i}", steps, i, pool, ks), note, run=i))
    if len(held) > 1:
        last = [(names[i], list(table.values())[-1], i) for i, _, table in held]
        note = "95 % intervals" if len(held) <= 3 else ""
        note += "; ring: the curves cross" if len(held) == 2 else ""
        places = [Place(run, [*table][-1]) for _, run, table in held]
        together, told = of_last(places, task, ks, [*last[0][1].values()][0].n)
        note += f"; {told}" if told else ""
        svg = plots.comparison(f"t{t}x", last, together)
        main.append(_figure("Last checkpoints compared", svg, note.removeprefix("; ")))
    few = len(held) <= 3
    for k in dict.fromkeys([ks[0], max([k for k in ks if k <= 256], default=ks[0])] if ks else []):
        lines = [
            _score_line(i, names[i] if len(held) > 1 else "", table, k, few, axis.at[i])
            for i, _, table in held
        ]
        scale = "share" if k > 16 else "zero"
        svg = over_steps(f"t{t}k{k}", f"pass@{k}", lines, scale, x=axis.label, ticks=axis.ticks)
        title = f"pass@{k} {'through the stages' if axis.chained else 'over training'}"
        note = ("95 % intervals" if few else "") + _left_out([run for _, run, _ in held], task)
        note += openings.note([(names[i], opened_by[i]) for i, _, _ in held])
        more.append(_figure(title, svg, note.removeprefix("; ")))
    more += _histogram(members, names, task, t)
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


def _histogram(members: dict[int, RunData], names: list[str], task: str, t: int) -> list[dict[str, Any]]:
    held = []
    for i, run in members.items():
        checkpoint = next(reversed(run.rows(task)), "")
        rows = run.samples(checkpoint, task) if checkpoint else []
        logp = [r["logp"] for r in rows if isinstance(r.get("logp"), (int, float))]
        if logp:
            n = run.recipe["loss"].get("n") if loss_name(run) == "confidence_limited" else None
            held.append((names[i], np.array(logp), n, i))
    if not held:
        return []
    svg = plots.probability_histogram(f"t{t}p", held)
    note = "share of problems, last checkpoint"
    note += "; dotted: 1/N of the loss" if any(n for _, _, n, _ in held) else ""
    return [_figure("Probability of the right answer", svg, note)]


def _mixtures(runs: list[RunData]) -> list[dict[str, Any]]:
    """One entry per distinct mixture, which runs on the same rows share."""
    found: dict[str, dict[str, Any]] = {}
    for i, run in enumerate(runs):
        rows = tables.mixture_rows(run)
        if not rows:
            continue
        key = str(run.mixture.get("fingerprint") or f"run {i}")
        if key in found:
            found[key]["runs"].append(i)
            continue
        bars = [(r["name"], r["asked"], r["realised"]) for r in rows]
        m = run.mixture
        counted = {"examples in total": "examples_total", "per epoch": "examples_per_epoch"}
        notes = [f"{tables.count(m[key])} {what}" for what, key in counted.items() if key in m]
        notes += [f"weights count {m['weighting']}"] if "weighting" in m else []
        notes += [f"overlap with the tasks: {tables.plain(m.get('overlap', 'not measured'))}"]
        svg = Markup(plots.mixture_bars(f"d{i}", bars)) if len(bars) > 1 else ""
        found[key] = {"runs": [i], "rows": rows, "svg": svg, "note": "; ".join(notes)}
        found[key] |= {"dropped": tables.dropped_rows(run), "dropped_shown": tables.DROPS_SHOWN}
    return list(found.values())


def _samples(runs: list[RunData]) -> list[dict[str, Any]]:
    found = []
    for i, run in enumerate(runs):
        for task in run.tasks:
            checkpoint, groups = tables.sample_groups(run, task)
            if groups:
                found.append({"run": i, "title": f"{task} · {checkpoint}", "groups": groups})
        groups = tables.rollout_groups(run)
        if groups:
            title = f"rollouts, up to {run.rollouts.kind} {next(reversed(run.rollouts.files)):,}"
            found.append({"run": i, "title": title, "groups": groups})
    return found


def highlight(text: str) -> Markup:
    """YAML with keys and comments marked up; everything is escaped."""
    lines = []
    for line in text.splitlines():
        match = re.match(r"(\s*(?:- )*)([\w.@/-]+)(:)(?=\s|$)(.*)", line)
        if line.lstrip().startswith("#"):
            lines.append(Markup("<em>{}</em>").format(line))
        elif match:
            lines.append(Markup("{}<i>{}</i>{}{}").format(*match.groups()))
        else:
            lines.append(escape(line))
    return Markup("\n").join(lines)
