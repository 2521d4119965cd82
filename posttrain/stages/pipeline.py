"""A pipeline as recipes: every stage placed in the pipeline's folder, and what each one waits for.

Imports no torch: `posttrain check` reads pipelines too. Left out: running them (`schedule.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.errors import RequestError
from posttrain.recipe import Pipeline, Recipe, load
from posttrain.recipe.load import load_stage
from posttrain.stages.preflight import MODELS, sources_of


def load_pipeline(path: str, overrides: list[str]) -> Pipeline:
    """The pipeline in `path`."""
    pipeline = load(path, overrides)
    if not isinstance(pipeline, Pipeline):
        return load_stage(path, overrides, "pipeline")  # raises, saying what it is
    return pipeline


def stage_recipes(pipeline: Pipeline, path: Path) -> dict[str, Recipe]:
    """The recipe of every stage, placed in the pipeline's folder, references to other stages resolved."""
    root = Path(pipeline.output_dir) / pipeline.pipeline
    names = [s.name for s in pipeline.stages]
    recipes: dict[str, Recipe] = {}
    for i, stage in enumerate(pipeline.stages):
        try:
            # as written: the stage resolves it, so that its own recipe has no value of the environment
            overrides = [getattr(override, "written", override) for override in stage.overrides]
            recipe = load(path.parent / stage.recipe, overrides)
        except RequestError as error:
            raise RequestError(f"{path}: stage {stage.name!r}: {error}") from error
        if isinstance(recipe, Pipeline):
            raise RequestError(f"{path}: stage {stage.name!r} is a pipeline itself; list its stages here")
        recipe.name, recipe.output_dir = stage.name, str(root)
        for reference in references(recipe, names, i, str(path)):
            place = f"{root / reference.stage}{reference.rest}"
            setattr(reference.section, reference.key, place)
        recipes[stage.name] = recipe
    return recipes


class Reference(NamedTuple):
    """A value of a recipe that names an earlier stage: `sft@best:gsm8k/pass@1`, `pairs/pairs.jsonl`."""

    at: str
    """Its place in the recipe."""
    section: Any
    key: str
    stage: str
    rest: str
    """What follows the name of the stage: `@best:gsm8k/pass@1`, `/pairs.jsonl`."""


def references(recipe: Recipe, names: list[str], i: int, where: str) -> Iterator[Reference]:
    """What the recipe of the stage `names[i]` names of `names`. Raises `RequestError` for a later stage."""
    for at, holder, key, cut in _places(recipe):
        other, sign, rest = getattr(holder, key).partition(cut)
        if other not in names or (cut == "/" and not rest):
            continue
        if names.index(other) >= i:
            what = "starts from" if key == "init" else "reads"
            raise RequestError(f"{where}: stage {names[i]!r} {what} {other!r}, which is not an earlier stage")
        yield Reference(at, holder, key, other, f"{sign}{rest}")


def _places(recipe: Recipe) -> Iterator[tuple[str, Any, str, str]]:
    """(place, section, key, separator) of every value that may name an earlier stage: models
    `stage@best:...`, files `stage/pairs.jsonl`."""
    for section, key in MODELS:
        holder = getattr(recipe, section, None)
        if getattr(holder, key, None) is not None:
            yield f"{section}.{key}", holder, key, "@"
    for at, source in sources_of(recipe):
        if source.path is not None:
            yield f"{at}.path", source, "path", "/"


def dependencies(pipeline: Pipeline, recipes: dict[str, Recipe]) -> dict[str, set[str]]:
    """Which stages each stage waits for: those it names, and those that its models and files come from."""
    root = Path(pipeline.output_dir) / pipeline.pipeline
    waits = {s.name: set(s.after) for s in pipeline.stages}
    for name, recipe in recipes.items():
        for _, holder, key, cut in _places(recipe):
            value = getattr(holder, key)
            waits[name] |= {
                other
                for other in recipes
                if value.partition("@")[0] == str(root / other)
                or (cut == "/" and value.startswith(f"{root / other}/"))
            }
    return waits
