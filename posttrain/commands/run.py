"""`posttrain run`: a recipe, a pipeline or a sweep, here or under accelerate; an existing run is resumed.

Left out: other machines; `launch/slurm.sh` starts a recipe on several nodes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.commands.arguments import add_recipe, console
from posttrain.commands.starting import print_findings, refuse_config
from posttrain.commands.train import run_stage
from posttrain.recipe import Pipeline, load
from posttrain.recipe.sweep import is_sweep
from posttrain.stages.child import run_launched
from posttrain.stages.parent import child_environment, wait_for_orphans
from posttrain.stages.stage_process import launcher


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "recipe, pipeline or sweep")
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
