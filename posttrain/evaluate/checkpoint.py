"""Scores one checkpoint on a list of tasks: loads it from disk, shares the problems over the ranks, stores
rows.

The checkpoint is loaded by itself, without a reference to a live model. This works under any engine and
proves that what was saved can be used. Scores that are already stored are not computed again. Left out: the
scorecard, which the caller writes. Imports torch: callers that must start quickly import this module late.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from posttrain.base.files import write_text
from posttrain.base.process import local_rank
from posttrain.base.stop import Stopped, check_stop
from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import WorkError
from posttrain.evaluate.score import Share, Subject, score_task
from posttrain.evaluate.settings import task_hash
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.models.load import load_scored
from posttrain.recipe.schema import Task
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapters import tokenizer_place
from posttrain.rundir.proof import digest
from posttrain.rundir.scores import ScoreStore
from posttrain.types import Score

DEADLINE_S = 4 * 3600.0
"""Seconds to wait for the slowest rank."""


def score_checkpoint(
    path: Path,
    step: int,
    tasks: list[Task],
    out: Path,
    template: str = "tokenizer",
    *,
    name: str | None = None,
    renew: Callable[[Path], object] | None = None,
    ranks: tuple[int, int] = (0, 1),
) -> list[Score]:
    """Scores the model in `path` on `tasks`, appends to `out`/scores.jsonl and writes `out`/samples.

    `name` is what the rows call the checkpoint (default: the folder's name), `template` the chat template of
    the recipe. `renew(out)` is called after each task whose scores were added: the scorecard. `ranks`
    is (rank, world size); every rank calls this, and `out` is a folder that all of them see.

    Returns:
        The new scores on rank 0; an empty list elsewhere, and where everything was stored already.

    Raises:
        RequestError: a task does not fit the model.
        WorkError: the model cannot be scored, another rank failed, or the disk is full.
        Stopped: a rank was asked to stop; tasks that are complete have their scores.
    """
    name = name or path.name
    digest = _digest(path)
    store = ScoreStore(out)
    stored = store.rows()
    missing = [task for task in tasks if not has_task(stored, digest or name, task)]
    if not missing:
        return []
    device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    new: list[Score] = []
    exchange = RankExchange(out / f".score-{name}", *ranks)
    with torch.random.fork_rng(devices=[device] if device != "cpu" else []):
        try:
            check_stop()
            tokenizer = load_tokenizer(tokenizer_place(path))
            model = load_scored(path, device)
            subject = Subject(model, tokenizer, load_template(template, tokenizer), name, step, digest)
            for task in missing:
                result = score_task(subject, task, Share(*ranks, exchange.gather(task.name)))
                if exchange.rank == 0:
                    store.write_samples(name, task.name, result.samples)
                    store.append(result.scores, renew)
                    new += result.scores
            exchange.leave()
        except BaseException as error:
            exchange.fail(stopped=isinstance(error, Stopped))
            raise
    return new


def has_task(rows: list[dict[str, Any]], where: str, task: Task) -> bool:
    """Whether `rows` of scores.jsonl contain every metric of `task`, under its present settings, for a
    checkpoint.

    `where` is the checkpoint's digest or its name. The problems are read again, so that a changed file counts
    as another task. The chat template is not compared: it is part of what the checkpoint saved. No model is
    loaded.
    """
    half = task_hash(task) + "-"
    found = {
        row["metric"]
        for row in rows
        if where in (row.get("digest"), row["checkpoint"])
        and row["task"] == task.name
        and row.get("settings", "").startswith(half)
    }
    return found >= set(metrics(task))


def _digest(path: Path) -> str:
    """Hash of the weights: as checkpoint.json has it, else computed."""
    if ckpt.is_complete(path):
        return ckpt.Checkpoint(path, 0).facts().get("digest") or digest(path)
    return digest(path)


class RankExchange:
    """The ranks of one launch exchange rows through files in the shared folder `place`, with a deadline.

    Files and not collectives: a slow evaluation must not trip the timeout of a collective, and a rank that
    fails must not leave the others waiting. One exchange serves one checkpoint; the run removes the folder.
    """

    def __init__(self, place: Path, rank: int, world_size: int) -> None:
        self.place, self.rank, self.world_size = place, rank, world_size
        if world_size > 1:
            place.mkdir(parents=True, exist_ok=True)

    def gather(self, what: str) -> Callable[[list[Any]], list[list[Any]]]:
        """A function from this rank's part of `what` to the parts of all ranks, in rank order."""

        def gather(part: list[Any]) -> list[list[Any]]:
            if self.world_size == 1:
                return [part]
            write_text(self._file(what, self.rank), json.dumps(part))
            return [json.loads(text) for text in self._wait_for(what)]

        return gather

    def leave(self) -> None:
        """Waits until every rank is done, including the writing of rank 0."""
        if self.world_size > 1:
            write_text(self._file("done", self.rank), "null")
            self._wait_for("done")

    def fail(self, stopped: bool = False) -> None:
        """Tells the other ranks that this one failed, or was asked to stop."""
        if self.world_size > 1:
            (self.place / ("stopped" if stopped else "failed")).touch()

    def _file(self, what: str, rank: int) -> Path:
        return self.place / f"{what}-{rank}.json"

    def _wait_for(self, what: str) -> list[str]:
        deadline = time.monotonic() + DEADLINE_S
        files = [self._file(what, rank) for rank in range(self.world_size)]
        while not all(file.exists() for file in files):
            check_stop()
            if (self.place / "stopped").exists():
                raise Stopped("another rank was asked to stop")
            if (self.place / "failed").exists():
                raise WorkError("another rank failed while scoring")
            if time.monotonic() > deadline:
                late = [rank for rank, file in enumerate(files) if not file.exists()]
                raise WorkError(f"waited {DEADLINE_S / 3600:g} h for rank(s) {late} to score")
            time.sleep(0.02)
        return [file.read_text(encoding="utf-8") for file in files]
