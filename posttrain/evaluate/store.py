"""Scores of a run directory: append-only `scores.jsonl`, `samples/`, and `scorecard.md` made from them.

A score is written once: the same checkpoint content, task, metric and settings are the same measurement.
Processes may write at the same time. Imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import WorkError
from posttrain.evaluate.markdown import safe, scores
from posttrain.evaluate.rundata import SCORE_FIELDS, RunData
from posttrain.evaluate.settings import task_hash
from posttrain.evaluate.tables import score_table
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.files import append_line, plain, read_jsonl, write_text
from posttrain.recipe.schema import Task
from posttrain.training import checkpoints
from posttrain.types import Score


class ScoreStore:
    """The scores of one run directory, which need not exist yet."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "scores.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """Every row, in the order of writing; a torn last line does not count."""
        return read_jsonl(self.path)

    def append(self, found: list[Score]) -> int:
        """Add the scores that are not there yet, and renew `scorecard.md`; returns how many were added.

        Raises:
            WorkError: a value is not finite, or the disk refuses.
        """
        with self._lock():
            known = {_score(row).key() for row in self.rows()}
            new = {score.key(): score for score in found if score.key() not in known}
            for score in new.values():
                row = plain(score.to_dict())
                if row["value"] is None:
                    raise WorkError(
                        f"{score.task}/{score.metric} of {score.checkpoint} is no number"
                    )
                append_line(self.path, row)
            if new:
                write_text(self.run_dir / "scorecard.md", self.scorecard_markdown())
        return len(new)

    def has(self, where: str, task: str, settings: str) -> bool:
        """Whether checkpoint `where` (its digest, or its name) has scores of `task` under these settings."""
        return any(
            where in (row["digest"], row["checkpoint"])
            and (row["task"], row["settings"]) == (task, settings)
            for row in self.rows()
        )

    def has_task(self, where: str, task: Task) -> bool:
        """Whether every metric of `task`, as it is set up now, is there; tells without loading a model.

        The problems are read again, so that a changed file counts as another task. The chat template is not
        compared: it is part of what the checkpoint saved.
        """
        half = task_hash(task) + "-"
        found = {
            row["metric"]
            for row in self.rows()
            if where in (row["digest"], row["checkpoint"])
            and row["task"] == task.name
            and row["settings"].startswith(half)
        }
        return found >= set(metrics(task))

    def table(self) -> dict[str, dict[str, dict[str, Score]]]:
        """task -> checkpoint (by step) -> metric -> the score written last."""
        found: dict[str, dict[str, dict[str, Score]]] = {}
        for score in sorted(map(_score, self.rows()), key=lambda s: s.step):
            found.setdefault(score.task, {}).setdefault(score.checkpoint, {})[score.metric] = score
        return found

    def best(self, task: str, metric: str, greater: bool = True) -> str | None:
        """Name of the checkpoint with the best score, None before the first one."""
        return checkpoints.best(self.run_dir, task, metric, greater)

    def write_samples(self, checkpoint: str, task: str, rows: list[dict[str, Any]]) -> Path:
        """`samples/<checkpoint>/<task>.jsonl`, replaced as a whole."""
        path = self.run_dir / "samples" / checkpoint / f"{task}.jsonl"
        lines = [json.dumps(plain(row), ensure_ascii=False, allow_nan=False) for row in rows]
        write_text(path, "".join(line + "\n" for line in lines))
        return path

    def scorecard_markdown(self) -> str:
        """A table a task: checkpoints by step, values with their 95 % intervals, the best of a metric in bold."""
        if not self.rows():
            return "# Scores\n\nNothing has been scored yet.\n"
        run = RunData.load(self.run_dir)
        parts = [f"# Scores of {safe(run.name)}"]
        for task in run.tasks:
            problems = score_table(run, task).problems
            parts.append(f"## {safe(task)} ({problems:,} problem{'s' * (problems != 1)})")
            parts.append(scores(run, task))
        return "\n\n".join(parts) + "\n"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time, from reading what is there to the last line."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            with open(self.run_dir / ".scores.lock", "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise WorkError(f"cannot write {self.path}: {error.strerror or error}") from error


def _score(row: dict[str, Any]) -> Score:
    return Score(**{key: value for key, value in row.items() if key in SCORE_FIELDS})
