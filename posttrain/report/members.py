"""Whether the runs of a sweep have the values and seeds that its sweep.json gives them, by their own recipes.

The file may have been edited, or runs may have been moved or renamed since. Left out: what a run of the sweep
is called (`swept.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.recipe import flatten
from posttrain.recipe.sweep import value_at
from posttrain.report.tables import told
from posttrain.rundir.places import is_run
from posttrain.rundir.reading import RunData
from posttrain.rundir.sweeps import FILE, SweepData, SweptRun


def contradicted(data: SweepData, runs: list[RunData]) -> dict[str, str]:
    """Name of each of `runs`, all in the folder of `data`, whose recipe has another value or seed than
    sweep.json -> a sentence.

    A key of another stage is looked up in the recipe of the run of that stage that this one comes from, where
    it is on disk. What was given as an expression (`${...}`) is not compared.
    """
    family = _Family(data, runs)
    names = {run.path.resolve().name for run in runs}
    found = {}
    for entry in data.runs:
        if entry.run in names and (why := next(family.differences(entry), None)):
            found[entry.run] = f"{data.path / FILE}: {why}; it is not shown as a run of the sweep."
    return found


class _Family:
    """The recipes of the runs of a sweep, and which run comes from which."""

    def __init__(self, data: SweepData, runs: list[RunData]) -> None:
        self.data, self.stages = data, {run.run: run.stage for run in data.runs}
        self.recipes = {run.path.resolve().name: run.recipe for run in runs}

    def differences(self, entry: SweptRun) -> Iterator[str]:
        """What `entry` says otherwise than the recipes."""
        for key, asked in entry.values.items():
            owner = max(
                (s for s in self.stages.values() if s and key.startswith(f"{s}.")), key=len, default=""
            )
            inner = key.removeprefix(f"{owner}.") if owner else key
            for name in [entry.run] if owner == entry.stage else self.origins(entry.run):
                recipe = self.recipe(name)
                if recipe and self.stages[name] == owner:
                    has = value_at(recipe, inner)
                    if not _agree(asked, has) and not (owner and _agree(asked, self.reference(has))):
                        yield _sentence(entry.run, name, key, asked, has)
        recipe = self.recipe(entry.run)
        seeds = [value for key in ("train.seed", "seed") if (value := value_at(recipe, key)) is not ...]
        if entry.seed is not None and seeds and seeds[0] != entry.seed:
            yield _sentence(entry.run, entry.run, "seed", entry.seed, seeds[0])

    def recipe(self, name: str) -> dict[str, Any]:
        """That of a run; empty where it is unknown."""
        if name not in self.recipes:
            path = self.data.path / name
            self.recipes[name] = RunData.load(path).recipe if is_run(path) else {}
        return self.recipes[name]

    def origins(self, name: str) -> list[str]:
        """The runs that a run starts from or reads, and theirs."""
        found = {name: None}
        todo = [name]
        while todo:
            named = [self._run_in(value) for value in flatten(self.recipe(todo.pop())).values()]
            new = [run for run in dict.fromkeys(named) if run is not None and run not in found]
            found |= dict.fromkeys(new)
            todo += new
        return [run for run in found if run != name]

    def reference(self, value: Any) -> Any:
        """`sft@last`, as it was asked for, of `runs/ns/sft_seed-0@last`; other values as they are."""
        run = self._run_in(value)
        return value if run is None else self.stages[run] + value.partition(f"/{run}")[2]

    def _run_in(self, value: Any) -> str | None:
        """The run of the sweep that a value of a recipe names."""
        if not isinstance(value, str) or "/" not in value:
            return None
        return next((part for part in value.partition("@")[0].split("/")[1:] if part in self.stages), None)


def _agree(asked: Any, has: Any) -> bool:
    """Whether a value of a resolved recipe, with defaults in its sections, is the one that was asked for."""
    if isinstance(asked, str) and "${" in asked:
        return True
    if isinstance(asked, dict):
        return isinstance(has, dict) and all(_agree(asked[key], has.get(key, ...)) for key in asked)
    if isinstance(asked, list) and isinstance(has, list) and len(asked) == len(has):
        return all(map(_agree, asked, has))
    return asked == has


def _sentence(run: str, owner: str, key: str, asked: Any, has: Any) -> str:
    whose = "its recipe" if owner == run else f"the recipe of {owner}, which it comes from,"
    value = "does not have the key" if has is ... else f"has {told(has)}"
    return f"{run} has {key} = {told(asked)}, but {whose} {value}"
