"""`posttrain eval`: scores any checkpoint, of a run or from elsewhere, and prints the scores.

Left out: the other checkpoints of the run; `posttrain show` and the scorecard list those.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.base.files import refuse_unwritable
from posttrain.commands.arguments import CHECKPOINT, add_json, add_overrides, console
from posttrain.errors import RequestError
from posttrain.evaluate.settings import measurements, task_hash, template_of
from posttrain.evaluate.tasks.catalogue import changed, named_task, resolved
from posttrain.recipe import load
from posttrain.recipe.schema import Task
from posttrain.report.score_tables import metric_text, shown_metrics
from posttrain.report.scorecard import write_scorecard
from posttrain.report.tables import ABSENT
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.rows import pass_k
from posttrain.rundir.scores import ScoreStore


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help=CHECKPOINT)
    add_overrides(parser, "settings of the task: limit=100 samples=8 ...")
    parser.add_argument(
        "--task", action="append", default=[], help="repeatable (default: the tasks of the run's recipe)"
    )
    parser.add_argument(
        "--out", help="folder for the scores (default: the checkpoint's run, otherwise eval/<name>)"
    )
    parser.add_argument("--template", help="default: the run's, otherwise the tokenizer's")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Scores the checkpoint on the named tasks (default: those of its run's recipe) and prints the scores."""
    path, parent = ckpt.resolve(options.checkpoint)
    run = Path(parent["run"]) if parent else None
    recipe = load(run / "recipe.yaml") if run and (run / "recipe.yaml").is_file() else None
    known = {t.name: t for t in recipe.evaluate.tasks} if recipe else {}
    own = {t.name: t for t in (known.get(name) or named_task(name) for name in options.task or known)}
    tasks = [changed(task, options.overrides) for task in own.values()]
    if not tasks:
        raise RequestError(f"{options.checkpoint} belongs to no run with tasks; name one with --task")
    place = run or Path("eval") / re.sub(r"[^\w.-]+", "-", str(path)).strip("-")
    place = Path(options.out).expanduser() if options.out else place
    refuse_unwritable(place)
    step = ckpt.Checkpoint(Path(path), 0).facts().get("step", 0) if parent else 0
    from posttrain.evaluate.checkpoint import score_checkpoint  # torch: only once nothing is wrong

    usual = template_of(recipe.data) if recipe else "tokenizer"
    style = options.template or usual
    differs = {} if style == usual else {"template": style}
    name = parent["checkpoint"] if parent else Path(path).name
    score_checkpoint(
        Path(path), step, tasks, place, style, name=name, renew=write_scorecard, own=own, differs=differs
    )
    _print(ScoreStore(place), tasks, name, options.json)


def _print(store: ScoreStore, tasks: list[Task], checkpoint: str, as_json: bool) -> None:
    found = [(one, _rows(store, one, checkpoint)) for task in tasks for one in measurements(task)]
    if as_json:
        print(json.dumps([row for _, rows in found for row in rows]))
        return
    out = console()
    for task in map(resolved, tasks):
        mine = [(one.temperature, rows) for one, rows in found if one.name == task.name]
        at = "" if mine[0][0] == 1 else f" at temperature {mine[0][0]:g}"
        out.print(_table(f"{task.name}{at}", checkpoint, mine[0][1]))
        if len(mine) > 1:
            out.print(_by_temperature(mine))
    out.print(Text(f"scores: {store.path}"))


def _by_temperature(found: list[tuple[float, list[dict[str, Any]]]]) -> Table:
    """pass@k, or all metrics of a task without, one temperature a line."""
    values = {
        t: {row["metric"]: row["value"] for row in rows}
        for t, rows in sorted(found, key=lambda item: item[0])
    }
    every = list({m: 0 for row in values.values() for m in row})
    metrics = shown_metrics([m for m in every if pass_k(m) is not None] or every)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("temperature", *metrics):
        table.add_column(head, justify="right")
    for t, row in values.items():
        cells = [metric_text(m, row[m]) if m in row else ABSENT for m in metrics]
        table.add_row(*map(Text, (f"{t:g}", *cells)))
    return table


def _rows(store: ScoreStore, task: Task, checkpoint: str) -> list[dict[str, Any]]:
    """The stored rows of this checkpoint under the settings of `task`, the last of each metric."""
    half = task_hash(task) + "-"
    rows = [r for r in store.rows() if (r["checkpoint"], r["task"]) == (checkpoint, task.name)]
    return list({r["metric"]: r for r in rows if r["settings"].startswith(half)}.values())


def _table(task: str, checkpoint: str, rows: list[dict[str, Any]]) -> Table:
    """One metric a line, which fits into any terminal."""
    problems = rows[0]["n"] if rows else 0
    title = Text(f"{task} of {checkpoint}, {problems:,} problem{'s' * (problems != 1)}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for head, side in (("metric", "left"), ("value", "right"), ("95 % interval", "right")):
        table.add_column(head, justify=side)
    for row in rows:
        low, high = row.get("low"), row.get("high")
        interval = "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"
        table.add_row(*map(Text, (row["metric"], f"{row['value']:.4g}", interval)))
    return table
