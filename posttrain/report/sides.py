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
from posttrain.report.swept import Cell, cells
from posttrain.report.tables import described, recipe_difference
from posttrain.report.text import label, labels
from posttrain.rundir.places import is_run
from posttrain.rundir.reading import RunData

SEEDS = ("train.seed", "seed")
NO_PART = ("name", "output_dir", "evaluate", "checkpoints", *SEEDS)
"""Keys, and sections, in which two seeds of a recipe may differ."""
ENDED = ("finished", "unknown")
"""Status of a run whose numbers are its last; unknown is that of a run without run.json."""
MANY = 4
"""Sides, and runs, from more than which on a page shows them together and single ones on request."""
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

    @property
    def settled(self) -> Side:
        """The side without the runs that have not ended, where others have: their last common checkpoint
        would be an early one of all."""
        ended = [run for run in self.runs if run.status in ENDED]
        return Side(self.label, ended) if ended else self


def sides(runs: list[RunData]) -> list[Side]:
    """The sides of `runs`, in the order of their first runs."""
    swept = cells(runs)
    groups: dict[tuple[str, str], list[RunData]] = {}
    for run in runs:
        name = swept[id(run)].name if id(run) in swept else ""
        groups.setdefault((_key(run, runs), name), []).append(run)
    parted: list[list[RunData]] = []
    for group in groups.values():
        seeds = [seed(run) for run in group]
        parted += [group] if None not in seeds and len(set(seeds)) == len(group) else [[r] for r in group]
    named = any(cell.name for cell in swept.values())
    if len(parted) == len(runs) and not named:
        return [Side(name, [run]) for name, run in zip(labels(runs), runs, strict=True)]
    parted.sort(key=lambda group: next(i for i, run in enumerate(runs) if run is group[0]))
    return [Side(name, group) for name, group in zip(_names(parted, swept), parted, strict=True)]


@dataclass(frozen=True, slots=True)
class Group:
    """Sides that may be compared: of one stage, started alike. `stage` is empty where it goes without saying;
    `cells` has those of the first runs in a sweep."""

    stage: str
    sides: list[Side]
    cells: dict[int, Cell]

    def cell(self, side: Side) -> Cell | None:
        return self.cells.get(id(side.runs[0]))

    @property
    def runs(self) -> list[RunData]:
        return [run for side in self.sides for run in side.runs]

    @property
    def many(self) -> bool:
        """Whether its sides are to be shown together."""
        seeds = max(len(side.runs) for side in self.sides)
        return len(self.sides) > MANY or (len(self.sides) > 1 and seeds > 1)


def side_groups(runs: list[RunData]) -> list[Group]:
    """The sides of `runs` by stage; those of a sweep in the order of its values."""
    swept = cells(runs)
    found: dict[tuple[str, bool], list[Side]] = {}
    every = sides(runs)
    if all(id(side.runs[0]) in swept for side in every):
        every.sort(key=lambda side: swept[id(side.runs[0])].order)
    for side in every:
        first, cell = side.runs[0], swept.get(id(side.runs[0]))
        stage = (cell.stage or first.stage, False) if cell else (first.stage, bool(first.run.get("parent")))
        found.setdefault(stage, []).append(side)
    return [Group(stage if len(found) > 1 else "", group, swept) for (stage, _), group in found.items()]


def side_difference(every: list[Side]) -> list[tuple[str, list[str]]]:
    """Recipe keys in which sides differ: (key, a value for each); what differs between the seeds of one side
    is left out."""
    within = set(SEEDS)
    for side in every:
        flat = [flatten(run.recipe) for run in side.runs]
        within |= {key for each in flat for key in each if any(f.get(key) != each[key] for f in flat)}
    rows = recipe_difference([side.runs[0] for side in every])
    return [(key, values) for key, values in rows if key not in within]


def seed(run: RunData) -> int | None:
    """The seed of a run; None where it is unknown."""
    flat = flatten(run.recipe)
    return next((flat[key] for key in SEEDS if isinstance(flat.get(key), int)), None)


def differing(a: RunData, b: RunData) -> list[str]:
    """Keys, besides the seed, in which two runs differ; runs that they start from, or read, differ where
    these do."""
    one, other = _settings(a), _settings(b)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return [key for key in keys if not _same_origin(one.get(key), other.get(key))]


def _same_origin(a: Any, b: Any) -> bool:
    """Whether two values name the same place in two runs that are seeds of one recipe."""
    found = [_on_disk(value) for value in (a, b)]
    if None in found:
        return False
    (one, rest), (other, there) = found
    return rest == there and not differing(one, other)


def _on_disk(value: Any) -> tuple[RunData, str] | None:
    """The run that a value of a recipe names, and what it says behind the directory."""
    if not isinstance(value, str) or "/" not in value or len(value) > 4096:
        return None
    place, _, choice = value.partition("@")
    path = Path(place).resolve()
    for home in (path, *path.parents):
        if (home / "run.json").is_file() and is_run(home):
            return RunData.load(home), f"{path.relative_to(home)}@{choice}"
    return None


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
        if other is run:
            continue
        home = other.path.resolve()
        beside = home.parent == run.path.resolve().parent  # found by name, too: the folder may have moved
        for part in (path, *path.parents):
            if part == home or (beside and (part.parent.name, part.name) == (home.parent.name, home.name)):
                return other, f"{path.relative_to(part)}@{choice}"
    return None, ""


def _names(groups: list[list[RunData]], swept: dict[int, Cell]) -> list[str]:
    """The values of a sweep; else the objective, where several share it with the settings in which they
    differ, or else the name of the first run."""
    cells_of = [swept.get(id(group[0])) for group in groups]
    base = [label(group[0]) for group in groups]
    found = []
    for name, group, cell in zip(base, groups, cells_of, strict=True):
        if cell is not None and cell.name:
            found.append(cell.name)
            continue
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
