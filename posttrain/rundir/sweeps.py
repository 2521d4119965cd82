"""`sweep.json` as a value: which run of a sweep has which values and seed.

It lies beside the pipeline.json of `runs/<sweep>/`, and is written before the first run starts, with a digest
that tells whether it was changed since. Left out: the runs themselves, which may not have started
(`reading.py`), and protection against who writes another digest too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from posttrain.base.files import plain
from posttrain.errors import RequestError
from posttrain.rundir.places import is_inside

FILE = "sweep.json"


@dataclass(slots=True)
class SweptRun:
    """One run. `values` has the keys that concern it: in a pipeline, those of its stage and of the stages
    that it comes from."""

    run: str
    """Its directory in that of the sweep."""
    stage: str
    """The stage of the pipeline; empty where a recipe is swept."""
    values: dict[str, Any]
    seed: int | None
    recipe_hash: str = ""
    """That of its recipe, which the run.json of the run has too."""


@dataclass(slots=True)
class SweepData:
    """`runs/<sweep>/sweep.json`."""

    path: Path
    name: str
    recipe: str
    """Path of the recipe or pipeline, as it was given."""
    keys: dict[str, list[Any]] = field(default_factory=dict)
    """The keys with several values -> their values, in the order given."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """The keys that every run has with one value."""
    seeds: list[int] = field(default_factory=list)
    """Of one seed that was not asked for, the recipe's own; empty where stages have different ones."""
    runs: list[SweptRun] = field(default_factory=list)
    """In the order in which they start."""
    intact: bool = True
    """Whether the file is as it was written. Of one that is not, nothing is read."""
    unread: list[str] = field(default_factory=list)
    """What could not be read, a sentence each."""

    @classmethod
    def load(cls, path: str | Path) -> SweepData:
        """The sweep at the directory `path`. Raises `RequestError` where sweep.json is missing or cannot be
        read; entries of it that are damaged are left out."""
        file = Path(path) / FILE
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
            digest = _digest(info)
        except FileNotFoundError:
            raise RequestError(f"{path}: not a sweep (it has no {FILE})") from None
        except (ValueError, OSError, RecursionError) as error:
            raise RequestError(f"{file}: cannot be read: {error}") from None
        if not isinstance(info, dict):
            raise RequestError(f"{file}: must contain a mapping")
        if info.get("digest") != digest:
            why = f"{FILE}: was changed since it was written (its digest is not that of its content)"
            return cls(Path(path), Path(path).resolve().name, "", intact=False, unread=[why])
        self = cls(
            Path(path), str(info.get("sweep") or Path(path).resolve().name), str(info.get("recipe", ""))
        )
        self.keys = {k: v for k, v in self._part(info, "keys", dict).items() if isinstance(v, list)}
        self.fixed = self._part(info, "fixed", dict)
        self.seeds = [seed for seed in self._part(info, "seeds", list) if isinstance(seed, int)]
        for i, entry in enumerate(self._part(info, "runs", list)):
            if (run := _run(entry)) is not None:
                self.runs.append(run)
            else:
                self.unread.append(f"{FILE}: runs[{i}] is not a run with values and a recipe_hash")
        return self

    def _part(self, info: dict[str, Any], key: str, kind: type) -> Any:
        value = info.get(key, kind())
        if isinstance(value, kind):
            return value
        self.unread.append(f"{FILE}: {key} must be a {'mapping' if kind is dict else 'list'}")
        return kind()


def _run(entry: Any) -> SweptRun | None:
    if not isinstance(entry, dict):
        return None
    name, values, seed = entry.get("run"), entry.get("values"), entry.get("seed")
    recipe_hash = entry.get("recipe_hash")
    if not is_inside(name) or not isinstance(values, dict) or not isinstance(recipe_hash, str):
        return None
    seed = seed if isinstance(seed, int) else None
    return SweptRun(str(name), str(entry.get("stage") or ""), values, seed, recipe_hash)


def sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """`facts`, the content of a sweep.json, with their digest."""
    return facts | {"digest": _digest(facts)}


def _digest(facts: Any) -> str:
    """xxh3-128 of the values of a sweep.json but the digest, however they are laid out."""
    rest = {key: value for key, value in facts.items() if key != "digest"} if isinstance(facts, dict) else {}
    return xxhash.xxh3_128(json.dumps(plain(rest), sort_keys=True).encode()).hexdigest()


def is_sweep(path: Path) -> bool:
    """Whether the directory `path` contains a sweep.json."""
    return (path / FILE).exists()
