"""`posttrain prepare`: all rows of a recipe or pipeline, read and tokenised into the cache before the queue.

It does what the first rank of a run does before the model is loaded, with the same refusals, and shows what
the run would train on; the run then finds every table in the cache. Of rows that are refused it names all,
where the run stops at the first. Only the tokenizer is loaded. Left out: what depends on the launch (engine,
GPUs, number of ranks).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from posttrain.base.printable import printable
from posttrain.base.process import log_to_stderr
from posttrain.base.stop import exit_on_interrupt
from posttrain.commands.arguments import add_json, add_recipe, console
from posttrain.errors import RequestError
from posttrain.recipe import Pipeline, Recipe, load
from posttrain.recipe.plan import reference_of
from posttrain.stages.preflight import is_coming, preflight, sources_of

Outcome = tuple[dict[str, Any], RequestError | None]
"""What `--json` prints, and why a run would refuse."""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Prepares the rows of the recipe, or of every stage of the pipeline whose sources are there, and prints
    what they are.

    Raises:
        RequestError: a run of it would refuse; of a pipeline, what all stages refuse.
        WorkError: the disk refuses, or data.prepare_timeout has run out.
    """
    recipe = load(options.recipe, options.overrides)
    log_to_stderr()
    out = console(quiet=options.json)
    if isinstance(recipe, Pipeline):
        facts, refused = _prepare_pipeline(recipe, Path(options.recipe), out)
    else:
        preflight(recipe)
        facts, refused = _prepare_stage(recipe, (), out)
    if options.json:
        print(json.dumps(facts))
    if refused is not None:
        raise RequestError(str(refused) if out.quiet else _brief(refused))


def _brief(refused: RequestError) -> str:
    """The sentence without what the tables that are printed show."""
    return getattr(refused, "brief", str(refused))


def _prepare_stage(recipe: Recipe, coming: Collection[str], out: Console) -> Outcome:
    """`coming`: places of runs of a pipeline that are not finished. Raises RequestError where nothing can be
    shown."""
    if awaited := _waits_for(recipe, coming):
        out.print(Text(printable(f"rows: known once {awaited}")))
        return {"stage": recipe.stage, "name": recipe.name, "waits_for": awaited}, None
    _refuse_other_reference(recipe, coming)
    with exit_on_interrupt():
        from posttrain.commands.prepared_text import show
        from posttrain.stages.account import account  # transformers

    facts, refused = account(recipe)
    show(facts, out, refused is not None)
    return facts | {"refused": None if refused is None else str(refused)}, refused


def _prepare_pipeline(pipeline: Pipeline, path: Path, out: Console) -> Outcome:
    from posttrain.stages.pipeline import stage_recipes
    from posttrain.stages.stage_process import finished

    recipes = stage_recipes(pipeline, path)
    places = {name: str(Path(recipe.output_dir) / recipe.name) for name, recipe in recipes.items()}
    coming = {places[name] for name, recipe in recipes.items() if not finished(recipe)}
    for name, recipe in recipes.items():
        preflight(recipe, coming, f"{path}: stage {name!r}")
    stages: dict[str, Any] = {}
    problems = []
    for name, recipe in recipes.items():
        out.rule(Text(f"stage {name}"))
        try:
            stages[name], refused = _prepare_stage(recipe, coming, out)
        except RequestError as error:
            refused = RequestError(str(error))  # whole: nothing of it is shown
            stages[name] = {"stage": recipe.stage, "name": name, "refused": str(error)}
        if refused is not None:
            said = refused if out.quiet else _brief(refused)
            problems += [f"{path}: stage {name!r}: {line}" for line in str(said).splitlines()]
    facts = {"pipeline": pipeline.pipeline, "stages": stages}
    return facts, RequestError("\n".join(problems)) if problems else None


def _waits_for(recipe: Recipe, coming: Collection[str]) -> str | None:
    """What an earlier stage has to do before there are rows to prepare; None where nothing is missing."""
    for _, source in sources_of(recipe):
        if is_coming(source, coming):
            return f"{source.path} is written"
    start = str(recipe.model.init).partition("@")[0]
    if recipe.model.tokenizer is None and start in coming:
        return f"{start} has written its tokenizer"
    return None


def _refuse_other_reference(recipe: Recipe, coming: Collection[str]) -> None:
    """As the stages dpo and rlvr begin; torch is imported only where a reference is named."""
    named = reference_of(recipe)
    if named is None or named.place.partition("@")[0] in coming:
        return
    with exit_on_interrupt():
        from posttrain.training.reference import refuse_other_reference

    refuse_other_reference(recipe.model, recipe.data.template, named)
