"""Log-probabilities of the reference model, computed once before the first step and kept.

They are kept by content: a file a source and reference model in the cache of tables, where another run finds them, and
a copy in the run directory, without which a resumed run could not know them. They are complete or an error. Left out:
which model is the reference and who asks it (preference.py), a reference that moves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import WorkError

Key = tuple[int, int]
"""(source, row of the source)."""


class ReferenceRows:
    """Rows with `reference` where `known` has it: nats, summed over tokens, [2] of a pair (chosen, rejected), else [1]."""

    def __init__(self, rows: Any, known: dict[Key, np.ndarray]) -> None:
        self.rows, self.known = rows, known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        found = self.known.get((row["source"], row["row"]))
        return row if found is None else row | {"reference": found}

    def places(self) -> dict[Key, Callable[[], dict[str, Any]]]:
        """What the reference is asked: a call that reads it, for every row once."""
        found: dict[Key, Callable[[], dict[str, Any]]] = {}
        for i in range(len(self)):
            key = self.rows.key(i)
            if key not in found:
                found[key] = partial(self.rows.__getitem__, i)
        return found


class ReferenceStore:
    """The cache files of a run's sources. `names` are content hashes of (reference, prepared table)."""

    def __init__(self, folder: Path, run_copy: Path, names: Sequence[str]) -> None:
        self.folder, self.run_copy, self.names = folder, run_copy, list(names)

    def load(self) -> dict[Key, np.ndarray]:
        """What is known of this run's pairs: its own copy first, then the cache."""
        found: dict[Key, np.ndarray] = {}
        for source, name in enumerate(self.names):
            for path in (self.folder / f"{name}.npz", self._own(name)):
                if path.is_file():
                    found |= {(source, int(r)): v for r, v in zip(*_read(path), strict=True)}
        return found

    def save(self, known: dict[Key, np.ndarray], wanted: set[Key]) -> None:
        """Main process: the run's pairs beside the run, everything known in the cache."""
        for source, name in enumerate(self.names):
            rows = sorted(r for s, r in known if s == source)
            _write(self.folder / f"{name}.npz", rows, [known[source, r] for r in rows])
            own = [r for r in rows if (source, r) in wanted]
            _write(self._own(name), own, [known[source, r] for r in own])

    def _own(self, name: str) -> Path:
        return self.run_copy / f"{name}.npz"


def store_name(model: str, table: str) -> str:
    """Name of the file for reference `model` (a content hash) and prepared table `table` (its fingerprint)."""
    return hashlib.sha256(f"reference 1 {model} {table}".encode()).hexdigest()[:32]


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as file:
            return file["rows"], file["log_probs"]
    except (OSError, ValueError, KeyError) as error:
        raise WorkError(f"{path} is damaged ({error}); delete it") from error


def _write(path: Path, rows: list[int], values: list[np.ndarray]) -> None:
    """Whole or not there."""
    if not rows:
        return
    log_probs = np.stack(values).astype(np.float32)
    if not np.isfinite(log_probs).all():
        raise WorkError("the reference model gives NaN or infinite log-probabilities")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}.npz")
    try:
        np.savez(temporary, rows=np.array(rows, dtype=np.int64), log_probs=log_probs)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WorkError(f"{path}: cannot be written: {error.strerror or error}") from error
