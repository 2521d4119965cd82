"""Scores one checkpoint on a list of tasks: loads it from disk, shares the problems over the ranks, stores rows.

The checkpoint is loaded by itself (no reference to a live model), which works under any engine and proves that
what was saved can be used. Already stored scores are not computed again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.base.files import write_text
from posttrain.base.process import local_rank
from posttrain.errors import WorkError
from posttrain.evaluate.settings import task_hash
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.recipe.schema import Task
from posttrain.rundir import checkpoints as ckpt

log = logging.getLogger(__name__)


def score_checkpoint(
    path: Path,
    step: int,
    tasks: list[Task],
    out: Path,
    template: str = "tokenizer",
    *,
    name: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: Any = None,
    device: str | None = None,
) -> list[Any]:
    """Scores of the model in `path`, appended to `out`/scores.jsonl; returns the new rows (on rank 0)."""
    import torch

    from posttrain.data.template import load_template
    from posttrain.data.tokenizers import load_tokenizer
    from posttrain.evaluate.score import score_task
    from posttrain.models.load import load_scored
    from posttrain.rundir.scores import ScoreStore

    store = ScoreStore(out)
    rows = store.rows()
    name = name or path.name
    digest = _digest(path)
    missing = [t for t in tasks if not has_task(rows, digest or name, t)]
    if not missing:
        return []
    if device is None:
        device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        new = []
        meeting = Meeting(out / f".score-{name}", rank, world_size)
        try:
            tokenizer = load_tokenizer(str(path))
            model = load_scored(path, device)
            rendered = load_template(template, tokenizer)
            for task in missing:
                result = score_task(
                    model,
                    tokenizer,
                    task,
                    checkpoint=name,
                    step=step,
                    digest=digest,
                    template=rendered,
                    rank=rank,
                    world_size=world_size,
                    gather=meeting.gather(task.name),
                    progress=progress,
                )
                if rank == 0:
                    store.write_samples(name, task.name, result.samples)
                    store.append(result.scores)
                    new += result.scores
            meeting.leave()
        except BaseException:
            meeting.fail()
            raise
    return new


def has_task(rows: list[dict[str, Any]], where: str, task: Task) -> bool:
    """Whether `rows` of scores.jsonl hold every metric of `task`, as it is set up now, for the checkpoint `where` (its
    digest, or its name); tells without loading a model.

    The problems are read again, so that a changed file counts as another task. The chat template is not compared: it is
    part of what the checkpoint saved.
    """
    half = task_hash(task) + "-"
    found = {
        row["metric"]
        for row in rows
        if where in (row["digest"], row["checkpoint"])
        and row["task"] == task.name
        and row["settings"].startswith(half)
    }
    return found >= set(metrics(task))


def _digest(path: Path) -> str:
    """Hash of the weights: as the checkpoint says, else computed."""
    if ckpt.is_complete(path):
        return ckpt.Checkpoint(path, 0).facts().get("digest") or ckpt.digest(path)
    return ckpt.digest(path)


DEADLINE_S = 4 * 3600.0
"""Seconds to wait for the slowest rank."""


class Meeting:
    """The ranks of one launch in the shared folder `place`."""

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
        """Wait until every rank is done, the writing of rank 0 included."""
        if self.world_size > 1:
            write_text(self._file("done", self.rank), "null")
            self._wait_for("done")

    def fail(self) -> None:
        """Tell the others that this rank will not come."""
        if self.world_size > 1:
            (self.place / "failed").touch()

    def _file(self, what: str, rank: int) -> Path:
        return self.place / f"{what}-{rank}.json"

    def _wait_for(self, what: str) -> list[str]:
        deadline = time.monotonic() + DEADLINE_S
        files = [self._file(what, rank) for rank in range(self.world_size)]
        while not all(file.exists() for file in files):
            if (self.place / "failed").exists():
                raise WorkError("another rank failed while scoring")
            if time.monotonic() > deadline:
                late = [rank for rank, file in enumerate(files) if not file.exists()]
                raise WorkError(f"waited {DEADLINE_S / 3600:g} h for rank(s) {late} to score")
            time.sleep(0.02)
        return [file.read_text(encoding="utf-8") for file in files]
