"""The run directory: where each thing lies, the start rule, and who may write to it.

Start rule: an empty place starts fresh; a place that holds a run resumes if the recipe is the same, otherwise
the request is refused (exit 2) with the keys that differ. A lock held for as long as the process lives keeps
two launches from writing into one run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

import yaml

from posttrain.base.files import read_json, timestamp, write_json, write_text
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import Recipe, diff, recipe_hash, to_dict, to_yaml


class RunDir:
    """Paths of `runs/<name>` and its `run.json`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.run = self.path / "run.json"
        self.mixture = self.path / "mixture.json"
        self.metrics = self.path / "metrics.jsonl"
        self.scores = self.path / "scores.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self._lock: int | None = None

    def info(self) -> dict[str, Any]:
        """What `run.json` says, empty before the first start."""
        info = read_json(self.run) if self.run.exists() else {}
        if not isinstance(info, dict):
            raise WorkError(f"{self.run}: not a mapping")
        return info

    def update(self, **values: Any) -> None:
        """Merge `values` into `run.json`, atomically."""
        write_json(self.run, self.info() | values)

    def lock(self) -> None:
        """Refuse to share the directory with another live process. Released when the process ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            reason = f"{self.path} cannot be made: {error.strerror}; choose another output_dir"
            raise RequestError(reason) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise RequestError(f"{self.path} is being written by another process") from None
        except OSError:  # a file system without locks: go on without one
            os.close(handle)
            return
        self._lock = handle

    def unlock(self) -> None:
        """Give the directory free before the process ends; one that was never begun goes away."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                if [p.name for p in self.path.iterdir()] == [".lock"]:
                    (self.path / ".lock").unlink()
                    self.path.rmdir()
            os.close(self._lock)
            self._lock = None

    def start(self, recipe: Recipe, facts: dict[str, Any]) -> bool:
        """Claim the directory for `recipe`; True where a run is continued. Raises `RequestError`."""
        resumed = self.check_same(recipe)
        if not resumed:
            write_text(self.recipe, to_yaml(recipe))
        elif self.recipe.read_text(encoding="utf-8") != to_yaml(recipe):
            write_text(self.recipe, to_yaml(recipe))  # keys that do not touch what is learned
        keep = {"started": timestamp()} if not resumed else {}
        values = {"name": recipe.name, "stage": recipe.stage, "recipe_hash": recipe_hash(recipe)}
        self.update(**values, **keep, **facts, status="running", error=None)
        return resumed

    def check_same(self, recipe: Recipe) -> bool:
        """Whether a run of this very recipe lies here; another one raises `RequestError`.

        An attempt that failed before its first step has nothing to keep: a corrected recipe takes its place.
        """
        before = self.info().get("recipe_hash")
        if before is None:
            return False
        if before != recipe_hash(recipe):
            kept = [*self.checkpoints.glob("step-*"), *self.path.glob("parts/*")]
            if not self.metrics.exists() and not kept:
                return False
            try:
                old = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError):
                raise RequestError(
                    f"{self.path} holds a run of another recipe, and its recipe.yaml cannot be read; "
                    "choose another name=..., or remove the folder"
                ) from None
            changed = diff(old, to_dict(recipe))
            lines = [f"  {key}: {a!r} -> {b!r}" for key, (a, b) in list(changed.items())[:12]]
            raise RequestError(
                f"{self.path} holds a run of another recipe; choose another name=..., or remove the folder.\n"
                "What differs:\n" + "\n".join(lines)
            )
        return True
