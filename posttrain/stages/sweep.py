"""A sweep as a pipeline that is made, not written: its stages are the runs, so that order, resuming, stopping
and the report are a pipeline's.

Imports no torch: `posttrain check` lists the runs. Left out: which runs there are (`grid.py`), running them
(`schedule.py`).
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.base.files import write_json
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import Pipeline, Recipe, recipe_hash
from posttrain.recipe.bounds import folder_name
from posttrain.recipe.build import Problems
from posttrain.recipe.recipes import PipelineStage
from posttrain.recipe.sweep import Sweep
from posttrain.recipe.sweep_names import Naming
from posttrain.rundir.directory import RunDir
from posttrain.rundir.places import is_pipeline, is_run
from posttrain.rundir.sweeps import FILE, SweepData, is_sweep, sealed
from posttrain.stages.grid import Grid
from posttrain.stages.pipeline import stage_recipes

log = logging.getLogger(__name__)


@dataclass
class SweepPlan:
    """The runs of a sweep."""

    where: str
    pipeline: Pipeline
    recipes: dict[str, Recipe]
    """Run -> its recipe, placed in the folder of the sweep."""
    facts: dict[str, Any]
    """The content of sweep.json, but for its digest."""
    naming: Naming

    @property
    def root(self) -> Path:
        return Path(self.pipeline.output_dir) / self.pipeline.pipeline

    def check_folder(self) -> None:
        """Compares the folder with the sweep.

        Raises:
            RequestError: the folder has another sweep, a pipeline or a run, a run of another recipe, or runs
                that this sweep leaves out: they would be gone from its page.
        """
        before = self._before()
        self._refuse_left_out(
            [run.run for run in before.runs if run.run not in self.recipes] if before else []
        )
        for name, recipe in self.recipes.items():
            try:
                with contextlib.suppress(WorkError, OSError):  # damaged: the run itself will say so
                    remedy = "choose another --name, or remove the folder"
                    RunDir(self.root / name).check_same(recipe, remedy)
            except RequestError as error:
                raise RequestError(f"{self.where}: run {name!r}: {error}") from None

    def _refuse_left_out(self, left: list[str]) -> None:
        if left:
            names = ", ".join(left[:8]) + (" ..." if len(left) > 8 else "")
            count = "a run" if len(left) == 1 else f"{len(left)} runs"
            raise RequestError(
                f"{self.root} has {count} that this sweep leaves out: {names}; give their values and seeds"
                " too, or choose another --name"
            )

    def claim(self) -> None:
        """Writes sweep.json, the folder being locked. Raises `RequestError` as `check_folder`."""
        self.check_folder()
        write_json(self.root / FILE, sealed(self.facts))

    def _before(self) -> SweepData | None:
        """The sweep that the folder has; None where it is new."""
        other = "choose another --name"
        if not is_sweep(self.root):
            found = "a pipeline" if is_pipeline(self.root) else "a run" if is_run(self.root) else None
            if found:
                raise RequestError(f"{self.root} contains {found}; {other}")
            return None
        before = SweepData.load(self.root)
        if not before.intact:
            raise RequestError(
                f"{self.root / FILE} was changed since it was written (its digest is not that of its "
                f"content); restore it, or {other}"
            )
        name, known = Path(self.facts["recipe"]).name, Path(before.recipe).name
        if known != name:
            raise RequestError(f"{self.root} contains a sweep of {known}, not of {name}; {other}")
        self._refuse_other_keys(before, other)
        return before

    def _refuse_other_keys(self, before: SweepData, other: str) -> None:
        """Raises `RequestError` where runs would be called otherwise than those of `before`."""

        def fits(naming: Naming) -> bool:
            return all(naming.name(r.stage, r.values, r.seed or 0) == r.run for r in before.runs)

        keys = ", ".join(before.keys) or "no key"
        fixed = {key: self.facts["fixed"][key] for key in before.keys if key in self.facts["fixed"]}
        if fixed and before.keys.keys() == {*self.naming.keys, *fixed}:  # the same with fewer values
            changed = [r.run for r in before.runs if any(r.values.get(k, v) != v for k, v in fixed.items())]
            self._refuse_left_out(changed)
        if before.keys.keys() != {*self.naming.keys}:
            raise RequestError(f"{self.root} contains a sweep of other keys ({keys}); {other}")
        if fits(self.naming):
            return
        if not fits(replace(self.naming, seeded=not self.naming.seeded)):
            raise RequestError(f"{self.root} contains a sweep of its keys in another order ({keys}); {other}")
        if self.naming.seeded:
            raise RequestError(f"{self.root} contains a sweep without seeds; leave out --seeds, or {other}")
        seeds = ",".join(str(seed) for seed in before.seeds)
        raise RequestError(
            f"{self.root} contains a sweep of the seeds {seeds}; give --seeds {seeds}, or {other}"
        )


def plan_sweep(sweep: Sweep, where: str) -> SweepPlan:
    """The runs of `sweep`, which `where` (a file, or the command line) asks for.

    Raises:
        RequestError: a key, value, seed or recipe is wrong, two runs are the same, or there are too many.
    """
    grid = Grid(sweep, where)
    seeds = grid.seeds(sweep)
    grid.refuse_same_runs()
    stages, runs = grid.runs(seeds if sweep.seeds is not None else [None])
    name = sweep.sweep or f"{grid.pipeline.pipeline if grid.pipeline else grid.first.name}-sweep"
    _check_names(name, stages, where)
    output_dir = (grid.pipeline or grid.first).output_dir
    parallel = sweep.parallel or (grid.pipeline.parallel if grid.pipeline else 1)
    pipeline = Pipeline(name, stages, parallel, output_dir)
    recipes = stage_recipes(pipeline, grid.file)
    facts = {
        "sweep": name,
        "recipe": sweep.recipe,
        "keys": {axis.key: grid.values(a) for a, axis in enumerate(grid.axes) if len(axis.values) > 1},
        "fixed": {axis.key: grid.value(a, 0) for a, axis in enumerate(grid.axes) if len(axis.values) == 1},
        "seeds": seeds,
        "runs": [run | {"recipe_hash": recipe_hash(recipes[run["run"]])} for run in runs],
    }
    return SweepPlan(where, pipeline, recipes, facts, grid.naming)


def _check_names(name: str, stages: list[PipelineStage], where: str) -> None:
    problems = Problems()
    folder_name("the name of the sweep", name, problems)
    names = [stage.name for stage in stages]
    for run in names:
        folder_name("the name of a run", run, problems)
    if problems:
        raise RequestError(f"{where}: {problems.found[0]}")
    for run in names:
        if names.count(run) > 1 or f"{run}.log" in names:
            raise RequestError(
                f"{where}: two runs, or a run and a log, would be called {run!r}; rename the stage, or write "
                "the values otherwise"
            )
