"""`posttrain sft | dpo | rlvr | pairs | pass-rate`: one stage in this process.

Left out: launchers; `posttrain run --accelerate` and `accelerate launch -m posttrain.<stage>` start several
processes.
"""

from __future__ import annotations

import argparse
import importlib

from posttrain.base.stop import exit_on_interrupt
from posttrain.commands.arguments import add_recipe as arguments
from posttrain.recipe import load_stage

__all__ = ["arguments", "run", "run_stage"]


def run(options: argparse.Namespace) -> int:
    """Runs the stage that the command is named after; returns the exit code."""
    return run_stage(options.recipe, options.overrides, options.command.replace("-", "_"))


def run_stage(recipe: str, overrides: list[str], stage: str) -> int:
    """Runs `recipe` as `stage`; returns the exit code. Raises `RequestError` for another stage's recipe."""
    load_stage(recipe, overrides, stage)  # before the slow imports
    with exit_on_interrupt():
        module = importlib.import_module(f"posttrain.{stage}")
    return module.main([recipe, *overrides])
