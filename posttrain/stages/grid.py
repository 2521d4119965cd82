"""Which runs a sweep has: a recipe or the stages of a pipeline, times the values of keys, times seeds.

A stage runs once for each combination of the keys that concern it or the stages that it starts from or reads,
and each seed; what it names is the run of that stage with the same values and seed. So stages before the
first swept one run once a seed. Left out: the folder of the sweep (`sweep.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import Pipeline, Recipe, TrainRecipe, load, recipe_hash, to_dict
from posttrain.recipe.build import cut, shown
from posttrain.recipe.reading import read
from posttrain.recipe.recipes import PipelineStage
from posttrain.recipe.sweep import MOST, Sweep, SweptKey, check_seeds, normal, override_of, value_at
from posttrain.recipe.sweep_names import Naming
from posttrain.recipe.written import escaped, flatten
from posttrain.stages.pipeline import Reference, references

OF_THE_SWEEP = {
    "name": "its runs are named by their values; name the sweep (--name, or sweep: in its file)",
    "pipeline": "it is run under the name of the sweep (--name, or sweep: in its file)",
    "output_dir": "all its runs lie in one folder; give a single output_dir",
}
"""Keys that no run has of its own -> why."""


class Axis(NamedTuple):
    key: str
    """As it is given, in a pipeline with its stage."""
    stage: str
    inner: str
    """Its path in the recipe."""
    values: list[Any]
    texts: list[str]
    """The values as the command line has them; empty of a file."""

    def written(self, index: int) -> str:
        """A value as a message quotes it; in a file, which may have one value in two spellings, with its
        number."""
        if self.texts:
            return cut(self.texts[index])
        return f"{shown(self.values[index])} (value {index + 1})"


class Variant(NamedTuple):
    """A stage with one choice of the values of its own keys; references to other stages unresolved."""

    recipe: Recipe
    overrides: list[str]
    references: list[Reference]


Cell = tuple[int, ...]
"""For each axis the index of a value."""


class Grid:
    """The stages of the recipe or pipeline, and the values of the keys."""

    def __init__(self, sweep: Sweep, where: str) -> None:
        self.where, self.file = where, Path(sweep.recipe)
        text = read(self.file)[0]
        if "sweep" in text:
            raise RequestError(f"{where}: {self.file} is a sweep itself; sweep a recipe or a pipeline")
        self.pipeline = self._whole(sweep.placed) if "pipeline" in text else None
        alone = [PipelineStage("", self.file.name, sweep.placed)]
        self.stages = self.pipeline.stages if self.pipeline else alone
        self.names = [stage.name for stage in self.stages]
        self.axes = [self._axis(swept, sweep) for swept in sweep.keys]
        self.own = [[a for a, x in enumerate(self.axes) if x.stage == name] for name in self.names]
        keys = tuple(axis.key for axis in self.axes if len(axis.values) > 1)
        self.naming = Naming(keys, sweep.seeds is not None)
        listed = sweep.seeds if isinstance(sweep.seeds, list) else range(sweep.seeds or 1)
        if not keys and len(listed) < 2:
            lists = [axis for axis in self.axes if isinstance(axis.values[0], list)]
            one = f": {shown(lists[0].values[0])} is one value of {lists[0].key}" if lists else ""
            raise RequestError(f"{where}: nothing varies{one}; give a key several values, or several seeds")
        for i in range(len(self.stages)):
            self._refuse_many(math.prod(len(self.axes[a].values) for a in self.own[i]) * len(listed))
        self._variants: dict[tuple[int, Cell], Variant] = {}
        self._values: dict[tuple[int, int], Any] = {}
        self.first = self.variant(0, (0,) * len(self.axes)).recipe

    def _whole(self, overrides: list[str]) -> Recipe | Pipeline:
        try:
            return load(self.file, overrides)
        except RequestError as error:
            raise RequestError(self._placed(str(error), "", "")) from None

    def _axis(self, swept: SweptKey, sweep: Sweep) -> Axis:
        key, values = normal(swept.key), swept.values
        owners = [name for name in self.names if name and key.startswith(f"{name}.")]
        stage = max(owners, key=len, default="")
        inner = key.removeprefix(f"{stage}.") if stage else key
        if why := OF_THE_SWEEP.get(inner):
            raise RequestError(f"{self.where}: {key} cannot be a key of a sweep: {why}")
        if self.pipeline and key in self.names:
            raise RequestError(
                f"{self.where}: {key} is a stage; write keys of its recipe after it, such as {key}.model.init"
            )
        if self.pipeline and not stage:
            near = did_you_mean(key.partition(".")[0], self.names)
            raise RequestError(f"{self.where}: {key} does not begin with a stage of {self.file}{near}")
        sets = {at for value in values for at in flatten(value, inner)} & {"train.seed", "seed"}
        if sets and (sweep.seeds is not None or len(values) > 1):
            at = key.removesuffix(inner) + min(sets)
            raise RequestError(f"{self.where}: {at} is what seeds set; list seeds instead, such as 0,1,2")
        return Axis(key, stage, inner, values, swept.texts)

    def _refuse_many(self, count: int, unit: str = "runs", most: int = MOST) -> None:
        if count > most:
            raise RequestError(
                f"{self.where}: {count:,} {unit} are more than {most:,}, the most of a sweep; leave out "
                "values or seeds"
            )

    def variant(self, i: int, cell: Cell) -> Variant:
        """Stage `i` with its values in `cell`."""
        at = i, tuple(cell[a] for a in self.own[i])
        if at not in self._variants:
            stage, axes = self.stages[i], [self.axes[a] for a in self.own[i]]
            overrides = [getattr(override, "written", override) for override in stage.overrides]
            overrides += [override_of(x.inner, x.values[v]) for x, v in zip(axes, at[1], strict=True)]
            recipe = self._load(stage, overrides)
            # of a recipe alone, no value names another
            found = list(references(recipe, self.names, i, str(self.file))) if self.pipeline else []
            self._variants[at] = Variant(recipe, overrides, found)
        return self._variants[at]

    def _load(self, stage: PipelineStage, overrides: list[str]) -> Recipe:
        file = self.file.parent / stage.recipe
        place = f"stage {stage.name!r}: " if stage.name else ""
        try:
            recipe = load(file, overrides)
        except RequestError as error:
            there = f"{self.file}: {place}" if place else ""
            raise RequestError(self._placed(str(error), place, there)) from None
        if isinstance(recipe, Pipeline):
            raise RequestError(f"{self.file}: {place}{file} is a pipeline itself; list its stages here")
        return recipe

    def _placed(self, error: str, place: str, there: str) -> str:
        """Lines of an error, those about overrides as from where the sweep is asked for."""
        given = "command line: "
        return "\n".join(
            f"{self.where}: {place}{line[len(given) :]}" if line.startswith(given) else there + line
            for line in error.splitlines()
        )

    def _choices(self, i: int) -> Iterator[Cell]:
        """Cells with every choice of the values of stage `i`, and the first values of other stages."""
        ranges = [range(len(x.values) if a in self.own[i] else 1) for a, x in enumerate(self.axes)]
        return itertools.product(*ranges)

    def seeds(self, sweep: Sweep) -> list[int]:
        """The seeds of the sweep; empty where none were asked for and the stages have different ones."""
        if isinstance(sweep.seeds, list):
            return sweep.seeds
        own = {
            (name, _seed(self.variant(i, cell).recipe)): None
            for i, name in enumerate(self.names)
            for cell in self._choices(i)
        }
        start, *others = {seed for _, seed in own}
        if sweep.seeds is None:
            return [] if others else [start]
        if others:
            said = ", ".join(f"{name} {seed}".strip() for name, seed in own)
            raise RequestError(
                f"{self.where}: the runs of {self.file} have different seeds of their own ({said}); list "
                "those of the sweep, such as 0,1,2"
            )
        found = list(range(start, start + sweep.seeds))
        check_seeds(found, self.where)
        return found

    def refuse_same_runs(self) -> None:
        """Raises `RequestError` where two choices of a stage's values give one recipe hash: one run."""
        for i in range(len(self.stages)):
            seen: dict[str, Cell] = {}
            for cell in self._choices(i):
                other = seen.setdefault(recipe_hash(self.variant(i, cell).recipe), cell)
                if other != cell:
                    raise RequestError(f"{self.where}: {self._same(other, cell)}")

    def _same(self, one: Cell, two: Cell) -> str:
        differs = [a for a in range(len(self.axes)) if one[a] != two[a]]
        first, second = (
            ", ".join(f"{self.axes[a].key} = {self.axes[a].written(cell[a])}" for a in differs)
            for cell in (one, two)
        )
        equal = all(self.value(a, one[a]) == self.value(a, two[a]) for a in differs)
        why = "the values are equal" if equal else "nothing that is trained or sampled depends on it"
        return f"{first} and {second} are the same run: {why}; leave one out"

    def values(self, a: int) -> list[Any]:
        return [self.value(a, index) for index in range(len(self.axes[a].values))]

    def value(self, a: int, index: int) -> Any:
        """A value with the type that its key has: 16.0 where 16 was written for a number."""
        if (a, index) not in self._values:
            self._values[a, index] = self._typed(a, index)
        return self._values[a, index]

    def _typed(self, a: int, index: int) -> Any:
        axis = self.axes[a]
        cell = tuple(index if other == a else 0 for other in range(len(self.axes)))
        given = axis.values[index]
        if isinstance(given, str) and "${" in given:  # as written: a resolver may give a secret
            return given
        recipe = self.variant(self.names.index(axis.stage), cell).recipe
        found = value_at(to_dict(recipe), axis.inner)
        return found if type(found) in (bool, int, float, str) else given

    def runs(self, seeds: list[int | None]) -> tuple[list[PipelineStage], list[dict[str, Any]]]:
        """The stages of the pipeline, and the entries of sweep.json."""
        cells = [range(len(axis.values)) for axis in self.axes]
        self._refuse_many(math.prod(map(len, cells)), "combinations of values", 100 * MOST)
        stages: dict[tuple[Any, ...], PipelineStage] = {}
        entries: list[dict[str, Any]] = []
        # The first seed of every cell before the second of any: a sweep that is stopped early, or looked at
        # while it runs, has a whole table of one seed rather than half a table of all.
        for seed, cell in itertools.product(seeds, itertools.product(*cells)):
            here: list[PipelineStage] = []
            for i, concerned in enumerate(self._concerns(cell)):
                at = i, tuple((a, cell[a]) for a in concerned), seed
                if at not in stages:
                    values = {
                        self.axes[a].key: self.value(a, cell[a])
                        for a in concerned
                        if len(self.axes[a].values) > 1
                    }
                    stages[at] = self._run(i, cell, values, seed, here)
                    own = _seed(self.variant(i, cell).recipe) if seed is None else seed
                    entry = {"run": stages[at].name, "stage": self.names[i], "values": values, "seed": own}
                    entries.append(entry)
                here.append(stages[at])
                for other in self.stages[i].after:
                    stages[at].after.append(here[self.names.index(other)].name)
        self._refuse_many(len(stages))
        for stage in stages.values():
            stage.after = list(dict.fromkeys(stage.after))
        return list(stages.values()), entries

    def _concerns(self, cell: Cell) -> list[list[int]]:
        """For each stage the axes that decide what it does: its own, and those of what it names."""
        found: list[list[int]] = []
        for i in range(len(self.stages)):
            named = [self.names.index(r.stage) for r in self.variant(i, cell).references]
            found.append(sorted({*self.own[i], *(a for other in named for a in found[other])}))
        return found

    def _run(
        self, i: int, cell: Cell, values: dict[str, Any], seed: int | None, here: list[PipelineStage]
    ) -> PipelineStage:
        """The run of stage `i`; `here`: the runs of the stages before it in `cell`."""
        variant = self.variant(i, cell)
        overrides = list(variant.overrides)
        for reference in variant.references:
            other = here[self.names.index(reference.stage)].name
            overrides.append(override_of(reference.at, escaped(f"{other}{reference.rest}")))
        if seed is not None:
            key = "train.seed" if isinstance(variant.recipe, TrainRecipe) else "seed"
            overrides.append(override_of(key, seed))
        name = self.naming.name(self.names[i], values, seed or 0)
        return PipelineStage(name, self.stages[i].recipe, overrides)


def _seed(recipe: Recipe) -> int:
    return recipe.train.seed if isinstance(recipe, TrainRecipe) else recipe.seed
