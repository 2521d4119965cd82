"""The tables of scores of a report as plain values: the run's own, by temperature, and of other settings.

Each way of measuring a task has a table of its own, and a best value is the best of one table. Left out: the
other tables (`tables.py`), pictures, and any markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from posttrain.recipe.sections import LOWER_IS_BETTER
from posttrain.report.measured import controls, others, own_settings
from posttrain.report.numbers import curves, headline_k, unscored
from posttrain.report.tables import ABSENT
from posttrain.report.text import share
from posttrain.rundir.reading import RunData
from posttrain.rundir.rows import pass_k
from posttrain.types import Score

SHOWN_K = (1, 16, 256, 4096)
NO_BEST = ("tokens_mean", "tokens_median")
"""Metrics without a best value."""
UNIT = ("pass@", "maj@", "truncated", "parsed", "acc", "prompt_", "inst_", "f1", "score", "valid_mass")
"""Metrics in [0, 1], printed like .165."""
MOST_TABLES, MOST_ROWS = 4, 24
"""Other ways of measuring a task, and rows by temperature, that are not folded."""


@dataclass(slots=True)
class Cell:
    """A value of a table as text, its interval, and whether it is the best of its column, as are all that
    print the same."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(slots=True)
class Table:
    """Scores of one run on one task; a row is (checkpoint, step, one cell per column)."""

    columns: list[str]
    rows: list[tuple[str, int, list[Cell]]]
    problems: int
    title: str = ""
    """How the task was measured; empty: as the recipe of the run has it."""
    best_of: str = "each column"
    """Among which values the best is marked."""
    folded: bool = False
    """Whether it is for whoever looks for it: closed on the page, left out on the terminal."""


def metric_text(metric: str, value: float) -> str:
    """`.165` of a metric in [0, 1], four significant digits of any other."""
    return share(value) if metric.startswith(UNIT) else f"{value:.4g}".replace("-", "−")


def shown_metrics(metrics: list[str]) -> list[str]:
    """At most four pass@k (1, 16, 256, 4096 where measured, else spread evenly), then all other metrics."""
    ks = sorted(k for m in metrics if (k := pass_k(m)) is not None)
    shown = ks if len(ks) <= 4 else [k for k in SHOWN_K if k in ks]
    if len(ks) > 4 and len(shown) < 3:
        shown = [ks[round(i * (len(ks) - 1) / 3)] for i in range(4)]
    return [f"pass@{k}" for k in shown] + sorted(m for m in metrics if pass_k(m) is None)


def score_table(run: RunData, task: str, settings: str | None = None, title: str = "") -> Table:
    """The scores of one task under one settings hash (default: the run's own) by checkpoint, the metrics of
    `shown_metrics` as columns; a checkpoint that could not be scored has a row, too."""
    rows = run.rows(task, settings)
    columns = shown_metrics(list({m for metrics in rows.values() for m in metrics}))
    best = _best(rows.values(), columns)
    table = []
    for checkpoint, metrics in rows.items():
        cells = [_cell(metrics.get(m), best.get(m)) for m in columns]
        table.append((checkpoint, next(iter(metrics.values())).step, cells))
    lost = unscored(run, task) if settings in (None, own_settings(run, task)) else []
    table += [(name, step, [Cell(ABSENT)] * len(columns)) for name, step in lost]
    table.sort(key=lambda row: row[1])
    return Table(columns, table, _problems(rows.values()), title)


def score_tables(run: RunData, task: str) -> list[Table]:
    """Every table of one task: the run's own; its last and best checkpoint by temperature; one for each other
    way in which it was measured; the other checkpoints by temperature."""
    found = [score_table(run, task)]
    chosen = [] if len(controls(run, task)) < 2 else last_and_best(run, task)
    by = temperature_table(run, task, chosen)
    found += [by] if by else []
    for i, (settings, how) in enumerate(others(run, task).items()):
        found.append(score_table(run, task, settings, how))
        found[-1].folded = i >= MOST_TABLES
    rest = temperature_table(run, task, [name for name in run.rows(task) if name not in chosen])
    if rest and by:
        rest.title, rest.folded = "other checkpoints by temperature", True
    return found + ([rest] if rest else [])


def last_and_best(run: RunData, task: str) -> list[str]:
    """The checkpoints that are compared by temperature: the last, and the best of pass@k at the run's own
    temperature, with the k of the headlines."""
    table = curves(run, task)
    if not table:
        return [*run.rows(task)][-1:]
    *_, last = table
    large = headline_k(table[last])
    best = max((c for c in table if large in table[c]), key=lambda c: table[c][large].value)
    return list(dict.fromkeys([best, last]))


def temperature_table(run: RunData, task: str, checkpoints: list[str]) -> Table | None:
    """`checkpoints` at each temperature, the first column; None where a task was measured at one only. The
    columns are pass@k, or all metrics of a task without."""
    at = {t: run.rows(task, settings) for t, settings in controls(run, task).items()}
    held = [{t: rows[name] for t, rows in at.items() if name in rows} for name in checkpoints]
    held = [by for by in held if len(by) > 1]
    if not held:
        return None
    metrics = shown_metrics(list({m for by in held for found in by.values() for m in found}))
    metrics = [m for m in metrics if pass_k(m) is not None] or metrics
    own, table = own_settings(run, task), []
    for by in held:
        best = _best(by.values(), metrics)
        for t, found in by.items():
            first = next(iter(found.values()))
            name = Cell(f"{t:g}" + (" (own)" if first.settings == own else ""))
            cells = [_cell(found.get(m), best.get(m)) for m in metrics]
            table.append((first.checkpoint, first.step, [name, *cells]))
    table.sort(key=lambda row: row[1])  # stable: temperatures stay in order
    problems = _problems(found for by in held for found in by.values())
    of = "each column at a checkpoint" if len(held) > 1 else "each column"
    columns = ["temperature", *metrics]
    return Table(columns, table, problems, "by temperature", of, folded=len(table) > MOST_ROWS)


def _best(rows: Iterable[dict[str, Score]], metrics: list[str]) -> dict[str, str]:
    """The best value, as text, of each metric that has one, and several texts."""
    rows, found = list(rows), {}
    for metric in metrics:
        values = [scores[metric].value for scores in rows if metric in scores]
        if len({metric_text(metric, v) for v in values}) > 1 and metric not in NO_BEST:
            found[metric] = metric_text(metric, min(values) if metric in LOWER_IS_BETTER else max(values))
    return found


def _problems(rows: Iterable[dict[str, Score]]) -> int:
    return max((s.n for metrics in rows for s in metrics.values()), default=0)


def _cell(score: Score | None, best: str | None) -> Cell:
    if score is None:
        return Cell(ABSENT)
    interval = ""
    if score.low is not None and score.high is not None:
        interval = "–".join(metric_text(score.metric, v) for v in (score.low, score.high))
    text = metric_text(score.metric, score.value)
    return Cell(text, interval, text == best)
