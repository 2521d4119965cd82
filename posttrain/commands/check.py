"""`posttrain check`: what a recipe resolves to, before any GPU time is spent, in under a second and without
torch.

It reports unknown keys, impossible combinations, missing files and broken first rows; then it prints the
resolved recipe (without keys that have their default, but for `--all`), the batch arithmetic for R ranks and
the sources with their sizes. `--rows N` also tokenises the first rows of each source and shows which tokens
are trained (this imports transformers). Left out: downloads; hub ids are listed, not resolved.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.base.files import counted, plain
from posttrain.base.printable import printable
from posttrain.commands.arguments import add_json, add_recipe, console, positive
from posttrain.commands.plans import Plan, count_rows, examples_of, plan
from posttrain.errors import RequestError
from posttrain.recipe import (
    Pipeline,
    Recipe,
    RlvrRecipe,
    SampleRecipe,
    TrainRecipe,
    as_written,
    load,
    to_yaml,
)
from posttrain.recipe.optimizers import LIMIT, LIMITED
from posttrain.recipe.plan import aligned, rhythm
from posttrain.recipe.sweep import is_sweep
from posttrain.rundir.checkpoints import resolve
from posttrain.stages.preflight import is_coming, preflight, sources_of


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "recipe, pipeline or sweep")
    parser.add_argument(
        "--ranks", type=positive, default=1, metavar="R", help="number of processes to plan the batch for"
    )
    parser.add_argument(
        "--rows",
        type=positive,
        default=0,
        metavar="N",
        help="show how the first N rows of each source are trained",
    )
    parser.add_argument("--all", action="store_true", help="print the keys that have their default, too")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Checks the recipe or pipeline and prints what it resolves to.

    Raises:
        RequestError: what is wrong with it, all at once; or with `--rows` a row that is shown.
    """
    if is_sweep(options.recipe):
        from posttrain.commands.sweep import check_file

        return check_file(options)
    recipe = load(options.recipe, options.overrides)
    asked = _Asked(options.ranks, options.rows, options.all)
    out = console(quiet=options.json)
    if isinstance(recipe, Pipeline):
        facts = _check_pipeline(recipe, Path(options.recipe), asked, out)
    else:
        facts = _check_stage(recipe, (), options.recipe, asked, out)
    if options.json:
        print(json.dumps(facts))
    stages = facts["stages"].values() if isinstance(recipe, Pipeline) else [facts]
    if shown := [row for stage in stages for row in stage.get("rows", ())]:
        from posttrain.commands.preview import refuse_shown

        refuse_shown(shown)


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for."""

    ranks: int
    rows: int
    defaults: bool


def _check_stage(
    recipe: Recipe, coming: Collection[str], where: str, asked: _Asked, console: Console
) -> dict[str, Any]:
    files = preflight(recipe, coming, where)
    counted = {s.name: count_rows(s, files[s.name]) for _, s in sources_of(recipe)}
    console.print(Text(printable(to_yaml(recipe, asked.defaults))))
    console.print(_source_table(recipe, coming, files, counted))
    if isinstance(recipe, TrainRecipe):
        try:
            arithmetic = asdict(planned := plan(recipe, asked.ranks, counted))
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None
        console.print(_plan_text(planned, recipe))
    else:
        arithmetic = _sampling(recipe, counted)
        console.print(Text(_sampling_text(**arithmetic)))
    facts = {
        "recipe": as_written(recipe),
        "plan": arithmetic,
        "sources": {n: {"files": f, "rows": counted[n]} for n, f in files.items()},
    }
    if asked.rows:
        facts["rows"] = _rows(recipe, coming, asked.rows, console)
    return facts


def _sampling(recipe: SampleRecipe, counted: dict[str, int | None]) -> dict[str, Any]:
    counts = examples_of(recipe, counted)
    prompts = recipe.max_prompts if None in counts else sum(counts)
    if recipe.max_prompts is not None and prompts is not None:
        prompts = min(prompts, recipe.max_prompts)
    return {"prompts": "all" if prompts is None else prompts, "samples": recipe.rollout.num_generations}


def _sampling_text(prompts: int | str, samples: int) -> str:
    asked = f"{prompts} prompts" if isinstance(prompts, str) else counted(prompts, "prompt")
    return f"sampling: {asked} x {counted(samples, 'completion')}"


def _rows(recipe: Recipe, coming: Collection[str], n: int, console: Console) -> list[dict[str, Any]]:
    from posttrain.commands.preview import preview

    init = str(recipe.model.init)
    if recipe.model.tokenizer is None and init.partition("@")[0] in coming:
        console.print(Text(f"rows: shown once {init} has written its tokenizer"))
        return []
    later = [s.path for s in recipe.data.sources if is_coming(s, coming)]
    if later:
        console.print(Text(f"rows: shown once {later[0]} is written"))
        return []
    shown = preview(recipe, resolve(init)[0], n, console)
    rows = "the first row" if n == 1 else f"the first {n:,} rows"
    console.print(Text(f"read {rows} of each source; `posttrain prepare` reads all"))
    return shown


def _check_pipeline(pipeline: Pipeline, path: Path, asked: _Asked, console: Console) -> dict[str, Any]:
    from posttrain.stages.pipeline import stage_recipes

    stages: dict[str, Any] = {}
    recipes = stage_recipes(pipeline, path)
    coming = {str(Path(r.output_dir) / r.name) for r in recipes.values()}
    console.print(Text(printable(to_yaml(pipeline, asked.defaults))))
    for name, recipe in recipes.items():
        console.rule(Text(f"stage {name}"))
        where = f"{path}: stage {name!r}"
        stages[name] = _check_stage(recipe, coming, where, asked, console)
    return {"pipeline": as_written(pipeline), "stages": stages}


def _source_table(
    recipe: Recipe, coming: Collection[str], files: dict[str, list], counted: dict[str, int | None]
) -> Table:
    table = Table("source", "from", "files", "bytes", "rows", "weight", title="sources", title_justify="left")
    for at, source in sources_of(recipe):
        found = files[source.name]
        origin = plain(source.path) or f"generator {source.generator}"
        hub = source.path is not None and not found
        size = f"{sum(f['bytes'] for f in found):,}" if found else "hub" if hub else "-"
        size = "made by a stage" if is_coming(source, coming) else size
        rows = counted[source.name]
        weight = (
            "held out"
            if at.startswith("evaluate")
            else "by size"
            if source.weight is None
            else f"{source.weight:g}"
        )
        counts = "not counted" if rows is None else f"{rows:,}"
        cells = (source.name, origin, str(len(found) or "-"), size, counts, weight)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _rollout_lines(recipe: RlvrRecipe) -> list[str]:
    n, every = recipe.rollout.num_generations, rhythm(recipe)
    batch = recipe.train.global_batch_size * recipe.rollout.steps_per_generation
    asked = f"{counted(batch // n, 'prompt')} x {counted(n, 'completion')}"
    found = [f"rollouts: {asked} every {'step' if every == 1 else f'{every} steps'}"]
    save = recipe.checkpoints.save_steps
    if save is not None and save % every:
        found.append(
            f"checkpoints: every {aligned(save, every)} steps, not {save}: at the end of a batch of rollouts"
        )
    return found


def _plan_text(p: Plan, recipe: TrainRecipe) -> Text:
    prompts = isinstance(recipe, RlvrRecipe)
    what = "completion" if prompts else "example"
    lines = [
        f"batch: {counted(p.global_batch_size, what)} a step = {p.micro_batch} (micro) x {p.ranks} (ranks) "
        f"x {p.accumulation} (accumulation)",
        f"at most {p.tokens_per_step_at_most:,} tokens a step",
    ]
    if p.steps is None:
        lines.append("steps: known once the run has counted the rows")
    else:
        bound = "" if recipe.train.max_steps else ", at most: rows may still be dropped"
        examples = (
            f" ({counted(p.examples_per_epoch, 'prompt' if prompts else 'example')} an epoch{bound})"
            if p.examples_per_epoch is not None
            else ""
        )
        lines.append(f"steps: {p.steps:,}{examples}")
    if recipe.train.optim in LIMITED:
        lines.append(f"train.optim = {recipe.train.optim}: {LIMIT}")
    if prompts:
        lines += _rollout_lines(recipe)
    return Text("\n".join(lines))
