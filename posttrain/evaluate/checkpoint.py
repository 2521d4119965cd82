"""Scores one checkpoint on a list of tasks: loads it from disk, shares the problems over the ranks, stores rows.

The checkpoint is loaded by itself (no reference to a live model), which works under any engine and proves that
what was saved can be used. Ranks meet through files with a deadline, not through collectives: a slow evaluation
must not trip a collective's timeout. Already stored scores are not computed again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import WorkError
from posttrain.files import write_text
from posttrain.recipe import Recipe
from posttrain.recipe.schema import Task
from posttrain.training import checkpoints as ckpt
from posttrain.training.rundir import RunDir

log = logging.getLogger(__name__)
DEADLINE_S = 4 * 3600.0


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
    digest = ckpt.digest(path)
    missing = [t for t in tasks if not store.has_task(digest or name, t)]
    if not missing:
        return []
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        tokenizer = load_tokenizer(str(path))
        model = load_scored(path, device)
        rendered = load_template(template, tokenizer)
        new = []
        for task in missing:
            meeting = out / f".score-{name}-{task.name}"
            result = score_task(
                model, tokenizer, task, checkpoint=name, step=step, digest=digest, template=rendered,
                rank=rank, world_size=world_size, gather=gather_by_files(meeting, rank, world_size), progress=progress,
            )  # fmt: skip
            if rank == 0:
                store.write_samples(name, task.name, result.samples)
                store.append(result.scores)
                new += result.scores
            if world_size > 1:
                _leave(meeting, rank, world_size)
    return new


def gather_by_files(
    folder: Path, rank: int, world_size: int
) -> Callable[[list[Any]], list[list[Any]]]:
    """`gather(part) -> parts of all ranks in rank order`, through JSON files in a shared folder."""

    def gather(part: list[Any]) -> list[list[Any]]:
        if world_size == 1:
            return [part]
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{rank}.json", json.dumps(part))
        return [
            json.loads(_wait(folder / f"{r}.json").read_text(encoding="utf-8"))
            for r in range(world_size)
        ]

    return gather


def _leave(folder: Path, rank: int, world_size: int) -> None:
    """All ranks go on together; rank 0 clears the meeting place after everybody has read it."""
    (folder / f"{rank}.done").touch()
    if rank == 0:
        for other in range(world_size):
            _wait(folder / f"{other}.done")
        (folder.parent / f"{folder.name}.over").touch()
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _wait(folder.parent / f"{folder.name}.over")


def _wait(path: Path) -> Path:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise WorkError(
                f"waited {DEADLINE_S / 3600:g} h for {path}: did a rank die while scoring?"
            )
        time.sleep(0.02)
    return path
