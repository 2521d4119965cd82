"""Runs that differ only in their seed form one side of a comparison: a recipe, trained several times.

What a run starts from, or reads, counts as the same where it is the same side of the page. Runs with one seed
twice are no independent repetitions and stay apart. Left out: the numbers (`differences.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.recipe import flatten
from posttrain.report.measured import described
from posttrain.report.text import label, labels
from posttrain.rundir.reading import RunData

SEEDS = ("train.seed", "seed")
NO_PART = ("name", "output_dir", "evaluate", "checkpoints", *SEEDS)
"""Keys, and sections, in which two seeds of a recipe may differ."""
MOST_KEYS = 3
"""More differing keys than this make no name."""


@dataclass(frozen=True, slots=True)
class Side:
    """A recipe: its runs, one a seed, and what it is called."""

    label: str
    runs: list[RunData]

    @property
    def title(self) -> str:
        return self.label if len(self.runs) == 1 else f"{self.label} ({len(self.runs)} seeds)"


def sides(runs: list[RunData]) -> list[Side]:
    """The sides of `runs`, in the order of their first runs."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(_key(run, runs), []).append(run)
    parted: list[list[RunData]] = []
    for group in groups.values():
        seeds = [seed(run) for run in group]
        parted += [group] if None not in seeds and len(set(seeds)) == len(group) else [[r] for r in group]
    if len(parted) == len(runs):
        return [Side(name, [run]) for name, run in zip(labels(runs), runs, strict=True)]
    parted.sort(key=lambda group: next(i for i, run in enumerate(runs) if run is group[0]))
    return [Side(name, group) for name, group in zip(_names(parted), parted, strict=True)]


def seed(run: RunData) -> int | None:
    """The seed of a run; None where it is unknown."""
    flat = flatten(run.recipe)
    return next((flat[key] for key in SEEDS if isinstance(flat.get(key), int)), None)


def differing(a: RunData, b: RunData) -> list[str]:
    """Keys, besides the seed, in which two runs differ."""
    one, other = _settings(a), _settings(b)
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def _settings(run: RunData) -> dict[str, Any]:
    flat = flatten(run.recipe)
    return {k: v for k, v in flat.items() if k and k.partition(".")[0] not in NO_PART and k not in NO_PART}


def _key(run: RunData, runs: list[RunData], seen: tuple[int, ...] = ()) -> str:
    """Equal for runs of one side; that of a run without a recipe is its own."""
    settings = _settings(run)
    if not settings:
        return f"run {run.path.resolve()}"
    found = {}
    for key, value in settings.items():
        other, rest = _run_in(value, run, runs)
        known = other is not None and id(other) not in (*seen, id(run))
        found[key] = [_key(other, runs, (*seen, id(run))), rest] if known else value
    return json.dumps(found, sort_keys=True, default=str)


def _run_in(value: Any, run: RunData, runs: list[RunData]) -> tuple[RunData | None, str]:
    """The run of the page that a value of a recipe names, and what it says behind the directory."""
    if not isinstance(value, str) or "/" not in value or len(value) > 4096:
        return None, ""
    place, _, choice = value.partition("@")
    path = Path(place).resolve()
    for other in runs:
        if other is not run and (home := other.path.resolve()) in (path, *path.parents):
            return other, f"{path.relative_to(home)}@{choice}"
    return None, ""


def _names(groups: list[list[RunData]]) -> list[str]:
    """The objective; where several share it, with the settings in which they differ, or else the name of the
    first run."""
    base = [label(group[0]) for group in groups]
    found = []
    for name, group in zip(base, groups, strict=True):
        same = [_settings(g[0]) for n, g in zip(base, groups, strict=True) if n == name]
        mine = _settings(group[0])
        keys = [k for k in {**mine, **same[-1]} if len({json.dumps(s.get(k), default=str) for s in same}) > 1]
        short = {k.rpartition(".")[2]: mine.get(k) for k in keys}
        if len(same) > 1 and len(short) == len(keys) <= MOST_KEYS:
            name = f"{name}, {described(short)}" if short else name
        elif len(same) > 1:
            name = group[0].name
        found.append(name)
    return found if len(set(found)) == len(found) else [group[0].name for group in groups]
