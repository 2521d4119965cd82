"""The run directory: its paths, `run.json`, and the start rule.

Start rule: an empty directory starts a new run; a directory that contains a run resumes it if the recipe is
the same, otherwise the request is refused (exit code 2) with the keys that differ. Left out: the lock
(`lock.py`), the content of the files (the modules beside this one).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from posttrain.base.files import (
    number,
    read_json,
    read_jsonl,
    timestamp,
    write_json,
    write_jsonl,
    write_text,
)
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import Recipe, changes, recipe_hash, to_yaml
from posttrain.recipe.load import REREAD
from posttrain.rundir.checkpoints import newest_facts
from posttrain.rundir.lock import DirectoryLock

log = logging.getLogger(__name__)
REMEDY = "choose another name=..., or remove the folder"
RESTORE = "restore it, or delete it to resume by what the checkpoints say"


class RunDir:
    """The paths of `runs/<name>`, and reading and writing its `run.json`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.run = self.path / "run.json"
        self.mixture = self.path / "mixture.json"
        self.metrics = self.path / "metrics.jsonl"
        self.scores = self.path / "scores.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self._lock = DirectoryLock(self.path)

    def info(self) -> dict[str, Any]:
        """The content of `run.json`; empty before the first start. Raises `WorkError` where it is damaged."""
        try:
            info = read_json(self.run) if self.run.exists() else {}
        except WorkError as error:
            raise WorkError(f"{error}; {RESTORE}") from error
        if not isinstance(info, dict):
            raise WorkError(f"{self.run}: must contain a mapping; {RESTORE}")
        return info

    def update(self, **values: Any) -> None:
        """Merge `values` into `run.json`, atomically."""
        write_json(self.run, self.info() | values)

    def rewind_metrics(self, step: int | None) -> None:
        """Removes the lines of metrics.jsonl after `step` (None: all), which a resumed run measures again."""
        last = -1 if step is None else step
        try:
            rows = read_jsonl(self.metrics)
            at = [row.get("step") if isinstance(row, dict) else None for row in rows]
            kept = [row for row, n in zip(rows, at, strict=True) if number(n) is None or n <= last]
            if not kept:
                self.metrics.unlink(missing_ok=True)
            elif len(kept) < len(rows):
                write_jsonl(self.metrics, kept)
        except (WorkError, OSError) as error:
            log.warning("lines of steps that are done again stay in %s: %s", self.metrics, error)

    def lock(self) -> None:
        """Takes the lock of the directory, which is released when the process ends.

        Raises:
            RequestError: another live process has it, or the directory cannot be made.
        """
        self._lock.take()

    def unlock(self) -> None:
        """Releases the lock before the process ends; removes the directory if nothing was written into it."""
        self._lock.release()

    def start(self, recipe: Recipe, facts: dict[str, Any]) -> bool:
        """Claims the directory for `recipe` and writes recipe.yaml and run.json; returns whether a run is
        resumed.

        Raises:
            RequestError: the directory contains a run of another recipe.
        """
        resumed = self.check_same(recipe)
        # resumed: keys that do not change what is learned may differ
        if not resumed or self._saved_recipe() != to_yaml(recipe):
            write_text(self.recipe, to_yaml(recipe))
        keep = {"seconds": self._seconds_so_far()} if resumed else {"started": timestamp(), "seconds": 0.0}
        values = {"name": recipe.name, "stage": recipe.stage, "recipe_hash": recipe_hash(recipe)}
        self.update(**values, **keep, **facts, status="running", error=None)
        return resumed

    def _seconds_so_far(self) -> float:
        """`seconds` of the starts before this one. One that was killed counts from its run.json to the last
        line it wrote."""
        info = self.info()
        before = number(info.get("seconds")) or 0.0
        if info.get("status") != "running":
            return before
        lines = (self.metrics, self.scores, self.path / "chunks.hashes")
        last = max((file.stat().st_mtime for file in lines if file.exists()), default=0.0)
        return round(before + max(0.0, last - self.run.stat().st_mtime), 1)

    def _saved_recipe(self) -> str:
        """The content of recipe.yaml; empty where it cannot be read."""
        try:
            return self.recipe.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def _hash_in_checkpoints(self) -> str | None:
        """The recipe of the newest checkpoint, where run.json is gone; None where nothing is to resume."""
        for facts in newest_facts(self.checkpoints):
            return facts.get("recipe_hash")
        if any(self.path.glob("parts/*")):
            raise RequestError(
                f"{self.path} contains samples but no run.json; restore it, or remove the folder"
            )
        return None

    def check_same(self, recipe: Recipe, remedy: str = REMEDY) -> bool:
        """Whether the directory contains a run of this recipe; a run of another recipe raises `RequestError`,
        which ends with `remedy`.

        An attempt that failed before its first step left nothing to keep: a corrected recipe replaces it.
        """
        before = self.info().get("recipe_hash") or self._hash_in_checkpoints()
        if before is None:
            return False
        if before != recipe_hash(recipe):
            kept = [*self.checkpoints.glob("step-*"), *self.path.glob("parts/*")]
            if not self.metrics.exists() and not kept:
                return False
            try:
                old = yaml.safe_load(self._saved_recipe())
            except yaml.YAMLError:
                old = None
            if not isinstance(old, dict):
                raise RequestError(
                    f"{self.path} contains a run of another recipe, and its recipe.yaml cannot be read;"
                    f" {remedy}"
                ) from None
            lines = _differences(old, recipe)
            if not lines:
                raise RequestError(
                    f"{self.run} has another recipe_hash than that of the recipe.yaml beside it; {RESTORE}"
                )
            message = f"{self.path} contains a run of another recipe; {remedy}.\nKeys that differ:\n"
            raise RequestError(message + "\n".join(lines))
        return True


def _differences(old: Any, recipe: Recipe) -> list[str]:
    """A line for each key in which `recipe` differs from the values in a run's recipe.yaml. What resolvers
    give is not shown."""
    changed = list(changes(old, recipe).items())[:12]
    if changed:
        return [f"  {key}: {'another value' if a is ... else repr(a)} -> {b!r}" for key, (a, b) in changed]
    written = list(recipe.written.items())[:12]
    given = [f"  {key}: {text!r} may give another value now" for key, (_, text) in written]
    reread = REREAD.get(recipe.stage, {})
    return given + [f"  {key}: an earlier version read this key differently" for key in reread]
