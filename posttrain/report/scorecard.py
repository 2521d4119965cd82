"""`scorecard.md` of a run: one table per task and way of measuring it, checkpoints by step, values with their
intervals.

A file of its own because it is written after every scoring, by callers that need neither the page nor its
pictures.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.base.files import write_text
from posttrain.report.alerts import holes
from posttrain.report.markdown import bullets, safe, scores
from posttrain.report.score_tables import score_tables
from posttrain.rundir.reading import RunData
from posttrain.rundir.scores import ScoreStore


def write_scorecard(run_dir: str | Path) -> Path:
    """Writes `scorecard.md` from `scores.jsonl`; returns its path. Raises WorkError where it cannot be
    written."""
    path = Path(run_dir) / "scorecard.md"
    write_text(path, scorecard_markdown(run_dir))
    return path


def scorecard_markdown(run_dir: str | Path) -> str:
    """The scores as Markdown, with 95 % intervals and the best value of each metric in bold."""
    store = ScoreStore(run_dir)
    if not store.rows() and not store.failures():
        return "# Scores\n\nNothing has been scored yet.\n"
    run = RunData.load(run_dir)
    parts = [f"# Scores of {safe(run.name)}", *([bullets(missing)] if (missing := holes(run)) else [])]
    for task in run.tasks:
        for table in score_tables(run, task):
            heading = f"### {safe(f'{task}, {table.title}')}" if table.title else f"## {safe(task)}"
            parts.append(f"{heading} ({table.problems:,} problem{'s' * (table.problems != 1)})")
            parts.append(scores(table))
    return "\n\n".join(parts) + "\n"
