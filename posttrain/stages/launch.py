"""The command line of a stage: `python -m posttrain.sft RECIPE [key=value ...]`, alone or under a launcher.

Wires training to evaluation (the scorer is handed in here), sets up logging, turns failures into exit codes and
leaves the process group in order.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.base.exit_codes import exit_code_of
from posttrain.base.files import write_text
from posttrain.base.process import log_to_stderr, quiet_libraries, rank, world_size
from posttrain.recipe import TrainRecipe, load_stage
from posttrain.rundir.directory import RunDir

log = logging.getLogger(__name__)


def stage_main(stage: str, train: Callable, argv: list[str]) -> int:
    """Command line of a stage: RECIPE [key=value ...]; returns the exit code."""

    def work() -> None:
        run = train(load_stage(argv[0], argv[1:], stage), scorer_for)
        if rank() == 0:
            describe(run)

    code = _main(stage, work, argv)
    _leave(code)
    return code


def scorer_for(recipe: TrainRecipe, run: RunDir, template: Any) -> Callable[[Path, int], None] | None:
    """The `Scorer` of a run: scores every task of its recipe, then renews the scorecard; None without tasks."""
    from posttrain.evaluate.checkpoint import score_checkpoint
    from posttrain.report.scorecard import write_scorecard

    tasks = recipe.evaluate.tasks
    if not tasks:
        return None

    def score(path: Path, step: int) -> None:
        new = score_checkpoint(
            path, step, tasks, run.path, recipe.data.template, rank=rank(), world_size=world_size()
        )
        if new:
            write_scorecard(run.path)

    return score


def sampling_main(stage: str, run_stage: Callable, argv: list[str]) -> int:
    """As `stage_main`, for a stage that samples: no process group, no checkpoints, no scores."""

    def work() -> None:
        run = run_stage(load_stage(argv[0], argv[1:], stage))
        if rank() == 0:
            from posttrain.report.page import write_report

            log.info("%s is finished; report: %s", run.path, write_report([run.path]))

    return _main(stage, work, argv)


def _main(stage: str, work: Callable[[], None], argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m posttrain.{stage} RECIPE [key=value ...]", file=sys.stderr)
        return 0 if argv else 2
    setup_logging()
    return exit_code_of(work)


def _leave(code: int) -> None:
    """End the process group on purpose: left to the interpreter's exit, its threads may abort the process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    if code == 0:
        dist.barrier()
        dist.destroy_process_group()
        return
    # A rank that failed must not wait for the others, and its exit code must be ours.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe(run: RunDir) -> None:
    """The report and the model card of a finished run."""
    from posttrain.report.card import model_card
    from posttrain.report.page import write_report
    from posttrain.rundir.checkpoints import all_complete
    from posttrain.rundir.reading import RunData

    last = all_complete(run.checkpoints)[-1]
    write_text(run.path / "README.md", model_card(RunData.load(run.path), last.name))
    log.info("%s is finished; report: %s", run.path, write_report([run.path]))


def setup_logging() -> None:
    """Messages of posttrain on stderr, from the main process; those of the libraries only from warnings up."""
    log_to_stderr()
    quiet_libraries()
    if not sys.stderr.isatty():
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
