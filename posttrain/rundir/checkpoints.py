"""Checkpoints on disk: which are complete, which is the last or the best, how one is written and deleted.

Layout: `checkpoints/step-000400/` in flat transformers layout (weights, tokenizer, optimizer, RNG), plus
`checkpoint.json` with the hashes of these files (proof.py) and, last, the marker `COMPLETE`. A checkpoint is
written under `.tmp-step-000400` and then renamed, and renamed before it is deleted, so that a kill at any
moment leaves either a complete checkpoint or none. Left out: what goes into a checkpoint
(`training/saving.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.files import hash_of, read_json, sync, write_json
from posttrain.errors import RequestError, WorkError, did_you_mean
from posttrain.rundir.gates import GATES, gated
from posttrain.rundir.proof import FACTS, MARKER, NAME, SET_ASIDE, Damaged, damage, proved_facts, seal
from posttrain.rundir.scores import scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int

    @property
    def name(self) -> str:
        return self.path.name

    def facts(self) -> dict[str, Any]:
        """The content of `checkpoint.json`."""
        return read_json(self.path / "checkpoint.json")


def name_of(step: int) -> str:
    """`step-000400` of 400."""
    return f"step-{step:06d}"


def is_complete(path: Path) -> bool:
    """Whether the checkpoint in `path` was written to the end."""
    return (path / "COMPLETE").is_file() and (path / "checkpoint.json").is_file()


def all_complete(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints in `folder`, by step; a half-written one is skipped with a warning."""
    found = []
    for checkpoint in _every(folder):
        if is_complete(checkpoint.path):
            found.append(checkpoint)
        else:
            log.warning("%s is half-written (no COMPLETE marker): skipped", checkpoint.path)
    return found


def newest_facts(folder: Path) -> Iterator[dict[str, Any]]:
    """`checkpoint.json` of the complete checkpoints in `folder`, newest first; damaged ones are left out."""
    for checkpoint in reversed(all_complete(folder)):
        with contextlib.suppress(Damaged):
            yield proved_facts(checkpoint.path)


def how_to_resume(folder: Path) -> str:
    """What running the same command does now, to close an error message."""
    last = last_resumable(folder)
    if last is None:
        return "run the same command to start over: there is no checkpoint to resume from"
    return f"run the same command to resume from {last}"


def last_resumable(folder: Path) -> str | None:
    """The name of the newest checkpoint that training can resume from; of its files only the facts are
    read."""
    return next((name_of(facts["step"]) for facts in newest_facts(folder) if facts.get("resumable")), None)


def _every(folder: Path) -> list[Checkpoint]:
    """Complete or not, by step."""
    named = [(NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted((Checkpoint(p, int(match[1])) for match, p in named if match), key=lambda c: c.step)


def newest_sound(folder: Path, steps: int) -> tuple[Checkpoint | None, dict[str, str]]:
    """The newest checkpoint that training can resume from, and what is wrong with those after it, by name.

    Every file is read: see `posttrain/rundir/proof.py`; of one at the last of `steps`, from which nothing is
    left to train, those of the model. One that lost its marker is damaged: none is written without.
    """
    damaged: dict[str, str] = {}
    for checkpoint in reversed(_every(folder)):
        if problem := damage(checkpoint.path, "model" if checkpoint.step >= steps else "all"):
            damaged[checkpoint.name] = problem
        elif checkpoint.facts().get("resumable"):
            return checkpoint, damaged
    return None, damaged


def set_aside(folder: Path, name: str) -> Path:
    """Renames the damaged checkpoint `name` so that nothing takes it for one; returns where it is now.

    Raises:
        WorkError: the file system refuses.
    """
    there = folder / f"{SET_ASIDE}{name}"
    try:
        if there.exists():
            shutil.rmtree(there)
        os.replace(folder / name, there)
    except OSError as error:
        raise WorkError(f"{folder / name} is damaged and cannot be renamed: {error.strerror}") from error
    return there


@contextlib.contextmanager
def clean_on_error(path: Path, owner: bool) -> Iterator[None]:
    """Removes the half-written folder `path` if the block fails (disk full, Ctrl-C); only where `owner` is
    true."""
    try:
        yield
    except BaseException:
        if owner:
            shutil.rmtree(path, ignore_errors=True)
        raise


def finish(tmp: Path, final: Path, facts: dict[str, Any]) -> None:
    """Adds checkpoint.json (`facts`, digest and list of files) and COMPLETE to `tmp` and renames it to
    `final`, after everything has reached the disk."""
    write_json(tmp / FACTS, facts | seal(tmp))
    (tmp / MARKER).write_text(hash_of(tmp / FACTS), encoding="ascii")
    for file in [*tmp.rglob("*"), tmp]:
        sync(file)
    if final.exists():  # left half-written by an earlier kill: complete ones are never rewritten
        shutil.rmtree(final)
    os.replace(tmp, final)
    sync(final.parent)


def rotate(folder: Path, keep_last: int | None, keep: set[str]) -> list[str]:
    """Deletes all but the `keep_last` newest checkpoints and those named in `keep`; returns the deleted
    names.

    `keep_last` None keeps all. One that the file system does not give away stays, with a warning.
    """
    if keep_last is None:
        return []
    gone = []
    for checkpoint in all_complete(folder)[:-keep_last]:
        if checkpoint.name in keep:
            continue
        # first out of every reader's sight: a kill halfway leaves no part of a checkpoint under its name
        away = folder / f".tmp-deleted-{checkpoint.name}"
        shutil.rmtree(away, ignore_errors=True)
        try:
            os.replace(checkpoint.path, away)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", checkpoint.path, error.strerror or error)
            continue
        gone.append(checkpoint.name)
        shutil.rmtree(away, ignore_errors=True)  # what is left of it, the next start removes
    return gone


def remove_leftovers(folder: Path) -> None:
    """Deletes what a kill has left of checkpoints: half-written and half-deleted ones.

    An earlier version took the marker first of one that it deleted. One without a marker that is newer than
    every complete one is none of these: see `newest_sound`.
    """
    every = _every(folder)
    last = max((c.step for c in every if is_complete(c.path)), default=-1)
    rotated = [c.path for c in every if c.step < last and not is_complete(c.path)]
    for path in [*folder.glob(".tmp-*"), *rotated]:
        log.warning("removing half-written %s", path)
        shutil.rmtree(path, ignore_errors=True)


def best(
    run: Path, task: str, metric: str, greater_is_better: bool = True, among: set[str] | None = None
) -> str | None:
    """Name of the checkpoint of `run` with the best score; None before the first score.

    Only scores under equal settings are compared: where there are several settings (a later `posttrain eval`
    with limit=5), those that cover most checkpoints. `among` restricts the choice to these names; None admits
    every checkpoint that was scored, deleted ones included. A checkpoint that failed a gate is never chosen.
    Of equal scores the latest step wins.
    """
    failed = gated(run)
    groups = []
    for found in scores(run, task, metric).values():
        rows = [r for r in found if r["checkpoint"] not in failed]
        groups.append([r for r in rows if among is None or r["checkpoint"] in among])
    if not any(groups):
        return None
    rows = max(groups, key=lambda g: len({r["checkpoint"] for r in g}))
    sign = 1 if greater_is_better else -1
    return max(rows, key=lambda r: (sign * r["value"], r["step"]))["checkpoint"]


def resolve(reference: str) -> tuple[str, dict[str, str] | None]:
    """What a `model.init` refers to: the path or hub id to load, and the run and checkpoint it belongs to (or
    None).

    `runs/<name>` is the last complete checkpoint of the run, `runs/<name>@step-000400` that checkpoint,
    `runs/<name>@best:<task>/<metric>` the one with the best score. Anything else is a path or hub id,
    returned as it is.

    Raises:
        RequestError: no such path or run, no complete checkpoint, no score, or a choice after @ that is not
            understood.
    """
    place, _, choice = reference.partition("@")
    path = Path(place).expanduser()
    if (path / "COMPLETE").is_file() or (NAME.fullmatch(path.name) and path.is_dir()):
        if not is_complete(path):
            raise RequestError(f"{path} is a half-written checkpoint (no COMPLETE marker)")
        return str(path), {"run": str(path.parent.parent), "checkpoint": path.name}
    if not (path / "checkpoints").is_dir() and not (path / "run.json").is_file():
        local = place.startswith(("./", "../", "/", "~", "runs/"))
        if choice or (local and not path.exists()):
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise RequestError(f"{reference}: no such run or path{did_you_mean(path.name, near)}")
        return str(path) if path.exists() else reference, None
    complete = {c.name: c for c in all_complete(path / "checkpoints")}
    if not complete:
        raise RequestError(f"{path} has no complete checkpoint yet")
    if not choice:
        name = next(reversed(complete))
    elif choice in complete:
        name = choice
    elif choice.startswith("best:") and "/" in choice:
        task, _, metric = choice.removeprefix("best:").partition("/")
        name = best(path, task, metric) or ""
        if name not in complete:
            raise RequestError(f"{reference}: {_why_not_best(path, task, metric, name)}")
    else:
        raise RequestError(f"{reference}: after @ write best:<task>/<metric> or one of {', '.join(complete)}")
    return str(complete[name].path), {"run": str(path), "checkpoint": name}


def _why_not_best(run: Path, task: str, metric: str, name: str) -> str:
    """Why the best checkpoint `name` (empty where there is none) cannot be loaded."""
    if name:
        return f"{name} has the best {task}/{metric} but was deleted by rotation"
    if scores(run, task, metric):
        return f"every checkpoint with a score {task}/{metric} failed a gate ({run / GATES})"
    return f"{run} has no score {task}/{metric}"
