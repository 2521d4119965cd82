"""One self-contained HTML page for one run, several runs, or a pipeline. No network, no script.

It starts with the headline sentences; then come the pictures behind them, tables, results of sampling stages,
training by stage, data, samples, recipe and provenance. The template escapes everything that a run wrote, and
the page's own content policy forbids scripts. Left out: numbers (`numbers.py`), sentences (`findings.py`),
tables (`tables.py`), pictures (`plots.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from posttrain.base.files import write_text
from posttrain.base.printable import printable
from posttrain.errors import RequestError
from posttrain.report import axes, openings, plots, tables, training_figures
from posttrain.report.alerts import alerts
from posttrain.report.findings import caveats, each, findings, headlines
from posttrain.report.markdown import markdown_report
from posttrain.report.measured import measured
from posttrain.report.story import page_title
from posttrain.report.svg import RUN_COLOURS
from posttrain.report.sweep_page import sides_view
from posttrain.report.swept import load_sweep, progress, run_names
from posttrain.report.task_parts import task_parts
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
    called = run_names(runs)
    axis, starts = axes.axis(runs, x), openings.starts(runs, called)
    found = measured(runs)
    samples = _samples(runs)  # first, because what cannot be read becomes a caveat
    sweep, unread = load_sweep(pipeline)
    view = sides_view(runs, called, axis, starts, sweep is not None)
    told, failures = progress(pipeline, sweep) if sweep else ([], pipeline.failures if pipeline else [])
    colours = view.colours if view else [i % len(RUN_COLOURS) for i in range(len(runs))]
    heads = view.names if view else [*zip(called, colours, strict=True)]
    first, more = (headlines(runs), each(runs)) if view and view.many else (findings(runs), [])
    if not first:
        first, more = more, []
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        title=pipeline.name if pipeline else page_title(runs),
        meta=_meta(runs, list(dict.fromkeys(m.task for m in found)), pipeline),
        names=called,
        colours=colours,
        view=view,
        folded=view is not None and view.folded,
        progress=told,
        findings=[_attributed(text, heads) for text in first],
        each=[_attributed(text, heads) for text in more],
        failures=failures if sweep else [],
        alerts=alerts(runs),
        caveats=[*unread, *caveats(runs), *([] if sweep else failures)],
        stages=pipeline.stages if pipeline else [],
        tasks=[] if view else [task_parts(runs, called, m, i, axis, starts) for i, m in enumerate(found)],
        sampling=training_figures.sampling(runs),
        training=view.training if view else training_figures.sections(runs, called),
        mixtures=_mixtures(runs),
        samples=samples,
        difference=[] if view else tables.recipe_difference(runs),
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


def _attributed(text: str, heads: list[tuple[str, int | None]]) -> tuple[Markup, str, int | None]:
    """A finding that starts with one of `heads`, (what a run or side is called, its colour) -> (the rest with
    intervals in small type, that head, the colour); an empty head where it starts otherwise."""
    head, colour = next(((name, c) for name, c in heads if text.startswith(f"{name}: ")), ("", None))
    small = re.sub(r"\[[−.\de]+, [−.\de]+\]", r"<small>\g<0></small>", str(escape(text[len(head) :])))
    return Markup(small), head, colour


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
