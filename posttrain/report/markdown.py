"""The report as Markdown: the sentences and tables of the page, without pictures."""

from __future__ import annotations

from collections.abc import Iterable

from posttrain.base.printable import printable
from posttrain.report import tables
from posttrain.report.alerts import alerts
from posttrain.report.facts import component_table, facts
from posttrain.report.findings import caveats, each, findings, headlines
from posttrain.report.measured import measured
from posttrain.report.score_tables import Table, score_tables
from posttrain.report.side_tables import SideTable, group_tables
from posttrain.report.sides import MANY, side_difference, side_groups
from posttrain.report.story import page_title
from posttrain.report.swept import load_sweep, progress, run_names
from posttrain.rundir.reading import PipelineData, RunData


def markdown_report(runs: list[RunData], pipeline: PipelineData | None = None) -> str:
    """Findings, stages, scores, training by stage, data, recipe differences and provenance of `runs`."""
    called, groups = run_names(runs), side_groups(runs)
    sweep, unread = load_sweep(pipeline)
    by_side = sweep is not None or any(group.many for group in groups)
    told, failures = progress(pipeline, sweep) if sweep else ([], pipeline.failures if pipeline else [])
    many = any(len(group.sides) > MANY for group in groups)
    found = (headlines(runs) + each(runs) if many else findings(runs)) if runs else []
    heading = pipeline.name if pipeline else page_title(runs)
    notes = [*unread, *caveats(runs), *failures]
    parts = [f"# {safe(heading)}", bullets(told), bullets(found)]
    parts += ["\n".join(f"- **{safe(text)}**" for text in alerts(runs)), bullets(notes)]
    if pipeline and not sweep:
        head = ("stage", "run", "status", "seconds", "error")
        rows = [
            [tables.plain(s[k]) if s.get(k) is not None else tables.ABSENT for k in ("name", *head[1:])]
            for s in pipeline.stages
        ]
        parts += ["## Stages", grid(head, rows)]
    known = dict(zip(map(id, runs), called, strict=True))
    shown = [] if by_side and len(runs) > MANY else runs
    for title, table in group_tables(groups) if by_side else []:
        parts += [f"## {safe(title)}", side_grid(table), f"{safe(table.note)}."]
    for m in measured(shown):
        parts.append(f"## {safe(m.title)}")
        for run in m.runs:
            parts.append(f"### {safe(known[id(run)])}")
            for table in score_tables(run, m.task):
                parts += [f"#### {safe(f'{m.task}, {table.title}')}"] if table.title else []
                parts.append(scores(table))
    parts += [] if shown or not runs else ["Each run by itself: `posttrain report` of its directory."]
    for run in shown:
        parts += [f"## Stage of {safe(known[id(run)])}", stage(run)] if facts(run) else []
    for run in shown:
        if tables.mixture_rows(run):
            parts += [f"## Data of {safe(known[id(run)])}", mixture(run)]
            dropped = tables.dropped_rows(run)
            parts += [grid(["dropped from", "reason", "where", "detail"], dropped)] if dropped else []
    every = [side for group in groups for side in group.sides]
    columns = [side.title for side in every] if by_side else called
    difference = side_difference(every) if by_side else tables.recipe_difference(runs)
    if difference:
        parts += ["## Recipe differences", grid(["key", *columns], [[k, *v] for k, v in difference])]
    origin = [[what, *values] for what, values in tables.provenance(runs)]
    parts += ["## Where this comes from", grid(["", *called], origin)]
    return printable("\n\n".join(part for part in parts if part) + "\n")


def scores(table: Table) -> str:
    """Table of scores by checkpoint: the best values in bold, intervals in brackets."""
    rows = []
    for _, step, cells in table.rows:
        texts = [f"**{c.text}**" if c.best else c.text for c in cells]
        rows.append(
            [f"{step:,}"]
            + [t + (f" [{c.interval}]" if c.interval else "") for t, c in zip(texts, cells, strict=True)]
        )
    return grid(["step", *table.columns], rows, escape=False)


def side_grid(table: SideTable) -> str:
    """Table of sides: mean, standard deviation over the seeds, and the interval in brackets."""
    rows = []
    for row in table.rows:
        cells = [
            " ".join(
                filter(
                    None, [f"**{c.text}**" if c.best else c.text, c.spread, c.interval and f"[{c.interval}]"]
                )
            )
            for c in row.cells
        ]
        seeds = row.seeds if row.whole else f"**{row.seeds}**"
        rows.append([*map(safe, row.names), seeds, f"{row.step:,}", *cells])
    return grid([*table.heads, "seeds", "step", *table.columns], rows, escape=False)


def stage(run: RunData) -> str:
    """What the stage did, first to last tenth of its log, and a table of the components of its reward."""
    parts = [grid(["what", "first → last tenth of the log" if run.metrics else ""], facts(run).items())]
    head, rows = component_table(run)
    parts += [grid(head, rows)] if rows else []
    return "\n\n".join(parts)


def mixture(run: RunData) -> str:
    """Table of the sources of a run."""
    keys = ("name", "path", "read", "kept", "dropped", "tokens", "trained", "asked", "realised", "repeats")
    rows = []
    for row in tables.mixture_rows(run):
        shares = {k: f"{row[k]:.1%}" if row[k] is not None else tables.ABSENT for k in ("asked", "realised")}
        rows.append([str((row | shares)[key]) for key in keys])
    return grid(["source", *keys[1:]], rows)


def bullets(lines: list[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {safe(line)}" for line in lines)


def grid(head: Iterable[str], rows: Iterable[Iterable[str]], escape: bool = True) -> str:
    """A Markdown table. `escape=False` for cells that contain markup of ours."""
    top = [safe(cell) for cell in head]
    body = [[safe(c) if escape else c for c in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [top, ["---"] * len(top), *body])


def safe(text: str) -> str:
    """`text` on one line, with markup and the bars of tables escaped."""
    text = " ".join(str(text).split())
    for mark in "\\`*|":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("](", "]\\(").replace("<", "&lt;").replace(">", "&gt;")
