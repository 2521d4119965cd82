"""Scores one checkpoint on a list of tasks: loads it from disk, shares the problems over the ranks, stores rows.

The checkpoint is loaded by itself (no reference to a live model), which works under any engine and proves that
what was saved can be used. Already stored scores are not computed again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.evaluate.meeting import Meeting
from posttrain.recipe import Recipe
from posttrain.recipe.schema import Task
from posttrain.training import checkpoints as ckpt
from posttrain.training.rundir import RunDir

log = logging.getLogger(__name__)


def scorer_for(recipe: Recipe, run: RunDir, template: Any) -> Callable[[Path, int], None] | None:
    """The `Scorer` of a run: every task of its recipe, on every rank's share of the problems."""
    tasks = recipe.evaluate.tasks
    if not tasks:
        return None
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def score(path: Path, step: int) -> None:
        score_checkpoint(
            path, step, tasks, run.path, recipe.data.template, rank=rank, world_size=world
        )

    return score


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
    from posttrain.evaluate.run import score_task
    from posttrain.evaluate.store import ScoreStore
    from posttrain.model import load_scored

    store = ScoreStore(out)
    name = name or path.name
    digest = _digest(path)
    missing = [t for t in tasks if not store.has_task(digest or name, t)]
    if not missing:
        return []
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
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
                    model, tokenizer, task, checkpoint=name, step=step, digest=digest, template=rendered,
                    rank=rank, world_size=world_size, gather=meeting.gather(task.name), progress=progress,
                )  # fmt: skip
                if rank == 0:
                    store.write_samples(name, task.name, result.samples)
                    store.append(result.scores)
                    new += result.scores
            meeting.leave()
        except BaseException:
            meeting.fail()
            raise
    return new


def _digest(path: Path) -> str:
    """Hash of the weights: as the checkpoint says, else computed."""
    if ckpt.is_complete(path):
        return ckpt.Checkpoint(path, 0).facts().get("digest") or ckpt.digest(path)
    return ckpt.digest(path)
