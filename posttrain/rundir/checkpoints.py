"""Checkpoints on disk: which are whole, which is last or best, and how one is written so that a kill at any
moment leaves either a whole checkpoint or none.

Layout: `checkpoints/step-000400/` in flat transformers layout (weights, tokenizer, optimizer, RNG), plus
`checkpoint.json` and, last, the marker `COMPLETE`. Written under `.tmp-step-000400`, then renamed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from posttrain.base.files import read_json, sync, write_json
from posttrain.errors import RequestError, did_you_mean
from posttrain.rundir.gates import GATES, gated
from posttrain.rundir.scores import scores

log = logging.getLogger(__name__)
NAME = re.compile(r"step-(\d{6,})")
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    step: int

    @property
    def name(self) -> str:
        return self.path.name

    def facts(self) -> dict[str, Any]:
        return read_json(self.path / "checkpoint.json")


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def is_complete(path: Path) -> bool:
    """Whether `path` is a checkpoint that was written to the end."""
    return (path / "COMPLETE").is_file() and (path / "checkpoint.json").is_file()


def all_complete(folder: Path) -> list[Checkpoint]:
    """Whole checkpoints in `folder`, by step; a half-written one is skipped with a message."""
    found = []
    for path in sorted(folder.glob("step-*")) if folder.is_dir() else []:
        match = NAME.fullmatch(path.name)
        if match is None:
            continue
        if is_complete(path):
            found.append(Checkpoint(path, int(match[1])))
        else:
            log.warning("%s is half-written (no COMPLETE marker): skipped", path)
    return sorted(found, key=lambda c: c.step)


def last_resumable(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that training can go on from."""
    return next((c for c in reversed(all_complete(folder)) if c.facts().get("resumable")), None)


def digest(path: Path) -> str:
    """Content hash of the weights in `path` (xxh3-128: a name for equal bytes, not a seal)."""
    total = xxhash.xxh3_128()
    files = sorted({f for pattern in WEIGHTS for f in path.glob(pattern)})
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16] if files else ""


@contextlib.contextmanager
def clean_on_error(path: Path, owner: bool) -> Iterator[None]:
    """Removes the half-written folder `path` where the block fails (disk full, Ctrl-C)."""
    try:
        yield
    except BaseException:
        if owner:
            shutil.rmtree(path, ignore_errors=True)
        raise


def finish(tmp: Path, final: Path, facts: dict[str, Any]) -> None:
    """Seal `tmp` and rename it to `final`: everything is on disk before the name exists."""
    write_json(tmp / "checkpoint.json", facts)
    (tmp / "COMPLETE").touch()
    for file in [*tmp.rglob("*"), tmp]:
        sync(file)
    if final.exists():  # a half-written one from an older kill: COMPLETE ones are never rewritten
        shutil.rmtree(final)
    os.replace(tmp, final)
    sync(final.parent)


def rotate(folder: Path, keep_last: int | None, keep: set[str]) -> list[str]:
    """Delete all but the `keep_last` newest checkpoints and those named in `keep`; names of the deleted."""
    if keep_last is None:
        return []
    gone = [c for c in all_complete(folder)[:-keep_last] if c.name not in keep]
    for checkpoint in gone:
        # Unseal first: a kill in the middle must not leave a folder that looks whole.
        (checkpoint.path / "COMPLETE").unlink()
        shutil.rmtree(checkpoint.path)
    return [c.name for c in gone]


def remove_leftovers(folder: Path) -> None:
    """Delete temporary and half-written checkpoints of a killed run."""
    for path in [*folder.glob(".tmp-*"), *folder.glob("step-*")]:
        if path.name.startswith(".tmp-") or not is_complete(path):
            log.warning("removing half-written %s", path)
            shutil.rmtree(path, ignore_errors=True)


def best(
    run: Path, task: str, metric: str, greater_is_better: bool = True, among: set[str] | None = None
) -> str | None:
    """Name of the checkpoint of `run` with the best score, None before the first score.

    Only scores measured alike are compared: of several settings (a later `posttrain eval` with limit=5), the
    one that covers most checkpoints. `among`: names that count; None for all, the deleted ones too. A checkpoint
    that failed a gate never counts.
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
    """Where a `model.init` points: (place to load, parent facts for the lineage or None).

    `runs/<name>` is its last whole checkpoint, `runs/<name>@best:<task>/<metric>` the best scored one;
    anything else is a path or hub id, returned as it is. Raises `RequestError`.
    """
    place, _, choice = reference.partition("@")
    path = Path(place).expanduser()
    if (path / "COMPLETE").is_file() or NAME.fullmatch(path.name) and path.is_dir():
        if not is_complete(path):
            raise RequestError(f"{path} is a half-written checkpoint (no COMPLETE marker)")
        return str(path), {"run": str(path.parent.parent), "checkpoint": path.name}
    if not (path / "checkpoints").is_dir() and not (path / "run.json").is_file():
        local = place.startswith(("./", "../", "/", "~", "runs/"))
        if choice or (local and not path.exists()):
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise RequestError(f"{reference}: no such run or path{did_you_mean(path.name, near)}")
        return str(path) if path.exists() else reference, None
    whole = {c.name: c for c in all_complete(path / "checkpoints")}
    if not whole:
        raise RequestError(f"{path} has no whole checkpoint yet")
    if not choice:
        name = next(reversed(whole))
    elif choice in whole:
        name = choice
    elif choice.startswith("best:") and "/" in choice:
        task, _, metric = choice.removeprefix("best:").partition("/")
        name = best(path, task, metric) or ""
        if name not in whole:
            reason = f"{name} was rotated away" if name else f"{path} has no score {task}/{metric}"
            if not name and scores(path, task, metric):
                reason = f"every checkpoint with a score {task}/{metric} failed a gate ({path / GATES})"
            raise RequestError(f"{reference}: {reason}")
    else:
        raise RequestError(f"{reference}: after @ write best:<task>/<metric> or one of {', '.join(whole)}")
    return str(whole[name].path), {"run": str(path), "checkpoint": name}
