"""`posttrain run`: a recipe, a pipeline or a sweep, here or under accelerate; an existing run is resumed.

Left out: other machines; `launch/slurm.sh` starts a recipe on several nodes.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

from posttrain.base.printable import printable
from posttrain.commands.arguments import add_recipe, console
from posttrain.commands.train import run_stage
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import Pipeline, load
from posttrain.recipe.sweep import is_sweep
from posttrain.stages.child import run_launched
from posttrain.stages.parent import child_environment, wait_for_orphans
from posttrain.stages.stage_process import launcher


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--accelerate",
        metavar="CONFIG",
        help="start with `accelerate launch` and this config file (a pipeline: every stage)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the recipe; returns the exit code."""
    if is_sweep(options.recipe):
        from posttrain.commands.sweep import run_file

        return run_file(options.recipe, options.overrides, options.accelerate)
    recipe = load(options.recipe, options.overrides)
    if options.accelerate:
        refuse_config(Path(options.accelerate))
    if isinstance(recipe, Pipeline):
        from posttrain.stages.schedule import run_pipeline  # matplotlib

        page = run_pipeline(options.recipe, options.overrides, console(stderr=True), options.accelerate)
        print_findings(page)
        return 0
    if options.accelerate:
        folder = Path(recipe.output_dir) / recipe.name
        wait_for_orphans(folder)
        work = ["-m", f"posttrain.{recipe.stage}", options.recipe, *options.overrides]
        return run_launched([*launcher(options.accelerate), *work], child_environment(folder))
    return run_stage(options.recipe, options.overrides, recipe.stage)


def refuse_config(config: Path) -> None:
    """Raises `RequestError` for a config that is not there, or that this version of accelerate does not
    read."""
    if not config.is_file():
        near = did_you_mean(config.name, [p.name for p in config.parent.glob("*.yaml")])
        raise RequestError(f"--accelerate {config}: no such file{near}")
    from accelerate.commands.config.config_args import load_config_from_file  # imports torch
    from yaml import YAMLError

    try:
        load_config_from_file(str(config))
    except (ValueError, TypeError, AttributeError, LookupError, OSError, YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise RequestError(
            f"--accelerate {config}: accelerate {version('accelerate')} cannot read it: {reason}"
        ) from error


def print_findings(page: Path) -> None:
    """What a finished pipeline shows, and the place of its report `page`."""
    from posttrain.report.alerts import alerts
    from posttrain.report.findings import findings
    from posttrain.rundir.reading import PipelineData

    runs = PipelineData.load(page.parent).runs
    for sentence in [*alerts(runs), *findings(runs)]:
        print(printable(sentence))
    print(f"report: {page}")
