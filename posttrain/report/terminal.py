"""`posttrain show`: one run, pipeline or sweep on the terminal, from its files alone.

Left out: pictures and samples, which are in the report, whose path is printed; and rollouts
(`commands/rollouts.py`).
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.base.printable import printable
from posttrain.report import tables
from posttrain.report.alerts import alerts
from posttrain.report.facts import component_table, facts
from posttrain.report.findings import caveats, each, findings, headlines
from posttrain.report.score_tables import score_tables
from posttrain.report.side_tables import group_tables
from posttrain.report.sides import MANY, side_groups
from posttrain.report.swept import load_sweep
from posttrain.report.swept import progress as sweep_progress
from posttrain.rundir.places import is_pipeline
from posttrain.rundir.reading import PipelineData, RunData
from posttrain.rundir.sweeps import SweepData


def show(path: Path, console: Console, json: bool = False) -> None:
    """Prints lineage, status, progress, mixture, dropped rows, scores, checkpoints and the path of the
    report.

    `json`: prints one JSON object instead. Raises `RequestError` where `path` is neither a run nor a
    pipeline.
    """
    path = Path(path)
    pipeline = PipelineData.load(path) if is_pipeline(path) else None
    runs = pipeline.runs if pipeline else [RunData.load(path)]
    if json:
        summaries = [summary(run) for run in runs]
        value: Any = summaries[0]
        if pipeline:
            value = {"pipeline": pipeline.name, "stages": pipeline.stages, "runs": summaries}
        text = jsonlib.dumps(value, indent=2)  # ASCII: no encoding of a terminal lacks it
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    sweep, unread = load_sweep(pipeline)
    if pipeline and sweep:
        _show_sweep(pipeline, sweep, unread, console)
        return
    if pipeline:
        keys = ("name", "run", "status", "seconds", "error")
        rows = [[tables.plain(s[k]) if s.get(k) is not None else "" for k in keys] for s in pipeline.stages]
        _table(console, [f"pipeline {pipeline.name}", *keys[1:]], rows)
    for run in runs:
        _show_run(run, console)
    for line in alerts(runs):
        console.print(Text(printable(line), style="red"))
    for line in [*findings(runs), *unread, *caveats(runs), *(pipeline.failures if pipeline else [])]:
        console.print(Text(printable(line)))
    if pipeline:
        _report_line(path, console)


def _show_sweep(pipeline: PipelineData, sweep: SweepData, unread: list[str], console: Console) -> None:
    """How far it is, a table of the sides for each task, and what compares them; no run by itself."""
    runs, groups = pipeline.runs, side_groups(pipeline.runs)
    console.print(Text(printable(f"sweep {sweep.name} of {sweep.recipe}"), style="bold"), soft_wrap=True)
    told, failures = sweep_progress(pipeline, sweep)
    console.print(Text("\n".join(told) if told or failures else f"{len(sweep.runs)} runs, all finished."))
    for line in [*failures, *alerts(runs)]:
        console.print(Text(printable(line), style="red"))
    for title, table in group_tables(groups):
        console.print(Text(printable(title), style="bold"))
        rows = [
            [*row.names, Text(row.seeds, style="" if row.whole else "red"), f"{row.step:,}"]
            + [Text(f"{c.text} {c.spread}".strip(), style="bold" if c.best else "") for c in row.cells]
            for row in table.rows
        ]
        head = [*table.heads, "seeds", "step", *table.columns]
        kept = _fitting(head, rows, len(table.columns), console.width)
        _table(console, [head[i] for i in kept], [[row[i] for i in kept] for row in rows])
        console.print(Text(f"{table.note.partition('; small type')[0]}.", style="dim"))
    found = headlines(runs) if any(len(group.sides) > MANY for group in groups) else findings(runs)
    for line in [*(found or each(runs)), *unread, *caveats(runs)]:
        console.print(Text(printable(line)))
    if runs:
        console.print(Text(f"one run: posttrain show {runs[0].path}", style="dim"), soft_wrap=True)
    _report_line(pipeline.path, console)


def _fitting(head: list[str], rows: list[list[Any]], scores: int, width: int) -> list[int]:
    """The columns that have room on a line: of the last `scores` at least the first and the last, others
    spread between them."""
    widths = [2 + max(len(str(cell)) for cell in column) for column in zip(head, *rows, strict=True)]
    first = len(head) - scores
    for count in range(scores, 2, -1):
        kept = [*range(first), *(first + round(i * (scores - 1) / (count - 1)) for i in range(count))]
        if sum(widths[i] for i in kept) <= width + 2:
            return kept
    return [*range(first), *dict.fromkeys([first, len(head) - 1])]


def progress(run: RunData) -> tuple[int | None, int | None]:
    """(last logged step, number of steps); None where unknown."""
    rows = run.metrics.get("train", [])
    total = run.run.get("steps")
    return (rows[-1]["step"] if rows else None), total if isinstance(total, int) else None


def summary(run: RunData) -> dict[str, Any]:
    """What `--json` prints about a run."""
    step, total = progress(run)
    report = run.path / "report.html"
    return {
        "name": run.name,
        "path": str(run.path),
        "stage": run.stage or None,
        "status": run.status,
        "parent": run.run.get("parent"),
        "step": step,
        "steps": total,
        "facts": facts(run),
        "alerts": alerts([run]),
        "findings": findings([run]),
        "caveats": caveats([run]),
        "mixture": run.mixture.get("sources", []),
        "scores": [score.to_dict() for score in run.scores],
        "rollouts": list(run.rollouts.files),
        "checkpoints": [{"name": c.name, "step": c.step, "complete": c.complete} for c in run.checkpoints],
        "report": str(report) if report.exists() else None,
    }


def _progress(run: RunData) -> str | None:
    """`step 40 of 120`; `chunk 3 of 12` of a stage that samples."""
    (step, total), chunks = progress(run), run.run.get("chunks")
    if step is not None:
        return f"step {step:,}" + (f" of {total:,}" if total else "")
    if isinstance(chunks, int) and run.rollouts.kind == "chunk":
        return f"chunk {len(run.rollouts.files):,} of {chunks:,}"
    return None


def _show_run(run: RunData, console: Console) -> None:
    console.print(Text(printable(run.name), style="bold"))
    _show_facts(run, console)
    head, rewards = component_table(run)
    if rewards:
        _table(console, head, rewards)
    _show_mixture(run, console)
    for task in run.tasks:
        _show_scores(run, task, console)
    _report_line(run.path, console)


def _show_scores(run: RunData, task: str, console: Console) -> None:
    """The run's own table, the controls of its last and its best checkpoint, a few other tables; more are
    counted."""
    found = score_tables(run, task)
    for table in (t for t in found if not t.folded):
        cells = [
            [f"{at:,}", *(Text(c.text, style="bold" if c.best else "") for c in found)]
            for _, at, found in table.rows
        ]
        _table(console, [f"{task}, {table.title}" if table.title else task, *table.columns], cells)
    if more := sum(t.folded for t in found):
        text = f"{more:,} more table{'s' * (more != 1)} of {printable(task)}: {run.path / 'scorecard.md'}"
        console.print(Text(text, style="dim"), soft_wrap=True)


def _show_facts(run: RunData, console: Console) -> None:
    model = run.recipe.get("model")
    count = len(run.rollouts.files)
    files = f"{count:,} file{'s' * (count != 1)} (posttrain show {run.path} --rollouts)"
    known = {
        "stage": run.stage or None,
        "status": run.status,
        "error": run.run.get("error"),
        "parent": run.run.get("parent") or (model.get("init") if isinstance(model, dict) else None),
        "progress": _progress(run),
        "checkpoints": tables.checkpoint_line(run) if run.checkpoints or not run.outcome else None,
        "rollouts": files if count else None,
    } | facts(run)
    width = max(12, *(len(key) + 1 for key in known))
    for key, value in known.items():
        if value is not None:
            text = printable(tables.plain(value))
            console.print(Text.assemble((f"  {key:<{width}}", "dim"), text))
    if run.stage in ("dpo", "rlvr") and facts(run):
        console.print(Text("  a → b: means of the first and last tenth of the log", style="dim"))


def _show_mixture(run: RunData, console: Console) -> None:
    """The sources and, of each reason, a few dropped rows."""
    keys = ("name", "read", "kept", "dropped", "trained", "asked", "realised", "repeats")
    rows = [
        [
            f"{r[k]:.1%}" if isinstance(r[k], float) else str(r[k] if r[k] is not None else tables.ABSENT)
            for k in keys
        ]
        for r in tables.mixture_rows(run)
    ]
    if rows:
        _table(console, ["source", *keys[1:]], rows)
    if dropped := tables.dropped_rows(run):
        _table(console, ["dropped from", "reason", "where", "detail"], dropped, numbers=False)


def _report_line(path: Path, console: Console) -> None:
    report = path / "report.html"
    where = str(report) if report.exists() else f"none yet (posttrain report {path})"
    console.print(Text.assemble(("report ", "dim"), printable(where)), soft_wrap=True)


def _table(console: Console, head: list[str], rows: Sequence[Sequence[Any]], numbers: bool = True) -> None:
    """Columns after the first are aligned to the right if `numbers`. Every cell is text, not markup."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for i, title in enumerate(head):
        table.add_column(
            Text(printable(title)), justify="right" if numbers and i else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    console.print(table)
