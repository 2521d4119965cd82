"""`posttrain sweep`: a recipe or a pipeline, once for each combination of values of some keys and each seed.

Run the same command again to resume it: finished runs stay as they are, and values that are added make new
runs. Left out: which runs there are (stages/grid.py), and the page about them (`posttrain report`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.text import Text

from posttrain.base.files import counted, plain
from posttrain.base.printable import printable
from posttrain.commands.arguments import add_json, console, positive
from posttrain.commands.plans import count_rows
from posttrain.commands.plans import plan as planned
from posttrain.commands.starting import print_findings, refuse_config
from posttrain.errors import RequestError
from posttrain.recipe import Recipe, TrainRecipe
from posttrain.recipe.sweep import check_sweep, is_sweep, load_sweep, seeds_of_text, sweep_of_words
from posttrain.recipe.sweep_names import spelt
from posttrain.stages.preflight import preflight, sources_of
from posttrain.stages.sweep import SweepPlan, plan_sweep


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe or pipeline YAML; or a sweep YAML")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value,value",
        help="keys and their values: loss.n=1,16,256 ...; of a pipeline sft.loss.n=1,16. Of a sweep YAML: "
        "its own keys, such as parallel=2",
    )
    parser.add_argument("--seeds", metavar="N|LIST", help="3: the recipe's seed and the next two; or 0,5,9")
    parser.add_argument("--parallel", type=positive, metavar="P", help="runs at the same time")
    parser.add_argument("--name", help="the runs lie in <output_dir>/NAME (default: the recipe's and -sweep)")
    parser.add_argument(
        "--accelerate", metavar="CONFIG", help="start each run with `accelerate launch` and this config file"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs, and start and write nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Makes the runs, or lists them; returns the exit code."""
    if options.json and not options.dry_run:
        raise RequestError("--json: only with --dry-run")
    if is_sweep(options.recipe):
        sweep, where = load_sweep(options.recipe, options.overrides), options.recipe
    else:
        sweep, where = sweep_of_words(options.recipe, options.overrides), "command line"
    if options.seeds is not None:
        sweep.seeds = seeds_of_text(options.seeds)
        check_sweep(sweep, "command line")
    if options.name is not None:
        sweep.sweep = options.name
    sweep.parallel = options.parallel or sweep.parallel
    plan = plan_sweep(sweep, where)
    if options.dry_run:
        show_runs(plan, options.json)
        return 0
    return make_runs(plan, options.accelerate)


def run_file(path: str, overrides: list[str], accelerate: str | None) -> int:
    """Makes the runs of a sweep YAML; returns the exit code."""
    return make_runs(plan_sweep(load_sweep(path, overrides), path), accelerate)


def check_file(options: argparse.Namespace) -> None:
    """Lists the runs of a sweep YAML, for `posttrain check`."""
    path = options.recipe
    if options.rows or options.all:
        raise RequestError(f"{path} is a sweep; --rows and --all are for the recipe that it names")
    show_runs(plan_sweep(load_sweep(path, options.overrides), path), options.json, options.ranks)


def make_runs(plan: SweepPlan, accelerate: str | None) -> int:
    """Makes the runs of `plan` that are not finished; returns the exit code."""
    from posttrain.stages.schedule import run_stages  # matplotlib

    if accelerate:
        refuse_config(Path(accelerate))
    plan.check_folder()
    page = run_stages(
        plan.pipeline,
        plan.recipes,
        plan.facts["recipe"],
        console(stderr=True),
        accelerate,
        plan.claim,
        "run",
    )
    print_findings(page)
    return 0


def show_runs(plan: SweepPlan, as_json: bool = False, ranks: int = 1) -> None:
    """Lists the runs of `plan` with their values, seeds and steps, all of them checked as before a start."""
    plan.check_folder()
    steps = _steps(plan, ranks)
    if as_json:
        runs = [entry | {"steps": steps[entry["run"]]} for entry in plan.facts["runs"]]
        print(json.dumps(plain(plan.facts | {"runs": runs})))
        return
    keys, staged = list(plan.facts["keys"]), any(entry["stage"] for entry in plan.facts["runs"])
    lines = [["run", *(["stage"] if staged else []), *keys, "seed", "steps"]]
    for entry in plan.facts["runs"]:
        values = [spelt(entry["values"][key]) if key in entry["values"] else "-" for key in keys]
        count = steps[entry["run"]]
        last = [str(entry["seed"]), "-" if count is None else f"{count:,}"]
        lines.append([entry["run"], *([entry["stage"]] if staged else []), *values, *last])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    out = console()  # lines, not a table that cuts off the names on a narrow terminal
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        out.print(Text(printable("  ".join(cells).rstrip())))
    for key, value in plan.facts["fixed"].items():
        out.print(Text(printable(f"{key} = {spelt(value)} throughout")))
    parallel = plan.pipeline.parallel
    at_once = f", {parallel} at the same time" if parallel > 1 else ""
    out.print(Text(printable(f"{counted(len(plan.recipes), 'run')} in {plan.root}{at_once}")))


def _steps(plan: SweepPlan, ranks: int) -> dict[str, int | None]:
    """Run -> its optimizer steps, at most; None where they are not known. Raises `RequestError` for what a
    run would be refused for."""
    coming = {str(plan.root / name) for name in plan.recipes}
    counts: dict[str, int | None] = {}

    def steps(name: str, recipe: Recipe) -> int | None:
        where = f"{plan.facts['recipe']}: run {name!r}"
        files = preflight(recipe, coming, where)
        if not isinstance(recipe, TrainRecipe):
            return None
        rows = {}
        for _, source in sources_of(recipe):
            at = repr((source, files[source.name]))
            if at not in counts:
                counts[at] = count_rows(source, files[source.name])
            rows[source.name] = counts[at]
        try:
            return planned(recipe, ranks, rows).steps
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None

    return {name: steps(name, recipe) for name, recipe in plan.recipes.items()}
