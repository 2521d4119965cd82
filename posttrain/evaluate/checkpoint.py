"""Scores one checkpoint on a list of tasks: loads it from disk, shares the problems over the ranks, stores
rows.

The checkpoint is loaded by itself, without a reference to a live model. This works under any engine and
proves that what was saved can be used. Scores that are already stored are not computed again. Left out: the
scorecard, which the caller writes. Imports torch: callers that must start quickly import this module late.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from posttrain.base.disk import why_unwritten
from posttrain.base.files import write_text
from posttrain.base.process import local_rank
from posttrain.base.stop import Stopped, check_stop, left_at_once
from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import PosttrainError, WorkError
from posttrain.evaluate.score import Share, Subject, score_task
from posttrain.evaluate.settings import differences, measurements, problems_of, task_hash
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.models.load import load_scored
from posttrain.recipe.schema import Task
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapters import tokenizer_place
from posttrain.rundir.proof import digest
from posttrain.rundir.scores import CannotTell, ScoreStore, first_line, halves
from posttrain.types import Score

log = logging.getLogger(__name__)
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
    keep_going: bool = False,
    own: dict[str, Task] | None = None,
    differs: dict[str, Any] | None = None,
) -> list[Score]:
    """Scores the model in `path` on `tasks`, appends to `out`/scores.jsonl and writes `out`/samples.

    `name` is what the rows call the checkpoint (default: the folder's name), `template` the chat template of
    the recipe. `renew(out)` is called after each task whose scores were added: the scorecard. `ranks`
    is (rank, world size); every rank calls this, and `out` is a folder that all of them see. `own` (name ->
    task, default: `tasks`) is what the recipe of the run asks for: other scores note what differs. `differs`:
    what else is not as the run has it.

    `keep_going`: a task that fails, on every rank alike, is recorded in `out`/unscored.jsonl, and the others
    are scored all the same. Otherwise the first failure is raised.

    Returns:
        The new scores on rank 0; an empty list elsewhere, and where everything was stored already.

    Raises:
        RequestError: a task does not fit the model.
        WorkError: the model cannot be scored, another rank failed, or the disk is full.
        Stopped: a rank was asked to stop; tasks that are complete have their scores.
    """
    name, store = name or path.name, ScoreStore(out)
    exchange = RankExchange(out / f".score-{name}", *ranks, keep_going=keep_going)
    new = _score(path, step, name, tasks, store, template, exchange, renew, own or {}, differs or {})
    if keep_going and exchange.rank == 0 and store.record_failures(name, exchange.failures) and renew:
        renew(out)
    return new


def _score(
    path: Path,
    step: int,
    name: str,
    tasks: list[Task],
    store: ScoreStore,
    template: str,
    exchange: RankExchange,
    renew: Callable[[Path], object] | None,
    own: dict[str, Task],
    differs: dict[str, Any],
) -> list[Score]:
    new: list[Score] = []
    missing: list[Task] = []
    subject = None
    with exchange.attempt(tasks):
        with left_at_once():
            digest, stored = _digest(path), store.rows()
        for task in tasks:
            with exchange.attempt([task]), left_at_once():
                if not has_task(stored, digest or name, task):
                    missing.append(task)
    if not missing:
        return new
    device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[device] if device != "cpu" else []):
        with exchange.attempt(missing), left_at_once():
            tokenizer = load_tokenizer(tokenizer_place(path))
            model = load_scored(path, device)
            shown = load_template(template, tokenizer)
            subject = Subject(model, tokenizer, shown, name, step, digest, differs)
        for task in missing if subject is not None else ():
            with exchange.attempt([task]):
                exchange.raise_if_failed(task.name)
                asked = own.get(task.name, task)
                result = score_task(subject, task, exchange.share(task.name), asked)
                if exchange.rank == 0:
                    settings, beside = result.scores[0].settings, differences(task, asked) or differs
                    store.write_samples(name, task.name, result.samples, settings, own=not beside)
                    store.append(result.scores, renew)
                    new += result.scores
                exchange.leave(task.name)
    return new


def has_task(rows: list[dict[str, Any]], where: str, task: Task) -> bool:
    """Whether `rows` of scores.jsonl contain every metric of `task`, under its present settings, for a
    checkpoint.

    `where` is the checkpoint's digest or its name. The problems are read again, so that a changed file counts
    as another task. The chat template is not compared: it is part of what the checkpoint saved. No model is
    loaded.
    """
    here = [r for r in rows if where in (r.get("digest"), r["checkpoint"]) and r["task"] == task.name]
    found = {(halves(row.get("settings", ""))[0], row["metric"]) for row in here}
    problems = problems_of(task)
    asked = [task_hash(one, problems) for one in measurements(task)]
    return found >= {(half, metric) for half in asked for metric in metrics(task)}


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

    def __init__(self, place: Path, rank: int, world_size: int, keep_going: bool = False) -> None:
        self.place, self.rank, self.world_size = place, rank, world_size
        self.keep_going = keep_going
        self.failures: dict[str, str] = {}
        """Task -> why it was not scored, the same on every rank."""

    def share(self, task: str) -> Share:
        return Share(self.rank, self.world_size, self.gather(task))

    def gather(self, task: str) -> Callable[[list[Any]], list[list[Any]]]:
        """A function from this rank's part of `task` to the parts of all ranks, in rank order."""

        def gather(part: list[Any]) -> list[list[Any]]:
            if self.world_size == 1:
                return [part]
            write_text(self._file(task, "rows"), json.dumps(part))
            return [json.loads(text) for text in self._wait_for(task, "rows")]

        return gather

    def leave(self, task: str) -> None:
        """Waits until every rank is done with `task`, including the writing of rank 0."""
        if self.world_size > 1:
            write_text(self._file(task, "done"), "null")
            self._wait_for(task, "done")

    @contextlib.contextmanager
    def attempt(self, tasks: list[Task]) -> Iterator[None]:
        """Where the block fails, `tasks` have failed on every rank; where it is stopped, all ranks stop. With
        `keep_going` an error ends here, unless the process is to end."""
        try:
            yield
        except Stopped:
            if self.world_size > 1:
                self._touch("stopped")
            raise
        except BaseException as error:
            reason = first_line(error)
            for task in tasks:
                self._fail(task.name, reason)
            if not self.keep_going or not isinstance(error, Exception):
                raise
            names = ", ".join(task.name for task in tasks)
            unknown = not isinstance(error, PosttrainError)  # a bug: its traceback is needed
            where = self.place.name.removeprefix(".score-")
            log.error("scoring %s on %s failed: %s", where, names, reason, exc_info=unknown)
            self.failures |= {task.name: reason for task in tasks}

    def raise_if_failed(self, task: str) -> None:
        """Raises `WorkError` with the reason of another rank that failed on `task`."""
        failed = self.place / f"{task}-failed"
        if self.world_size > 1 and failed.exists():
            raise WorkError(failed.read_text(encoding="utf-8") or "another rank failed")

    def _fail(self, task: str, reason: str) -> None:
        if self.world_size > 1 and not (self.place / f"{task}-failed").exists():
            place = self.place / f"{task}-failed"
            try:
                write_text(place, f"rank {self.rank} failed: {reason}")
            except WorkError:  # a full disk, on which an empty file may fit
                self._touch(place.name)

    def _touch(self, name: str) -> None:
        """Tells the other ranks by an empty file. Raises `CannotTell`."""
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            (self.place / name).touch()
        except OSError as error:
            raise CannotTell(f"other ranks cannot be told of it: {why_unwritten(error)}") from error

    def _file(self, task: str, what: str, rank: int | None = None) -> Path:
        return self.place / f"{task}-{what}-{self.rank if rank is None else rank}.json"

    def _wait_for(self, task: str, what: str) -> list[str]:
        deadline = time.monotonic() + DEADLINE_S
        files = [self._file(task, what, rank) for rank in range(self.world_size)]
        while not all(file.exists() for file in files):
            check_stop()
            if (self.place / "stopped").exists():
                raise Stopped("another rank was asked to stop")
            self.raise_if_failed(task)
            if time.monotonic() > deadline:
                late = [rank for rank, file in enumerate(files) if not file.exists()]
                raise WorkError(f"waited {DEADLINE_S / 3600:g} h for rank(s) {late} to score")
            time.sleep(0.02)
        return [file.read_text(encoding="utf-8") for file in files]
