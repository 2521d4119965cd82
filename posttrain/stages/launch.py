"""The command line of a stage: `python -m posttrain.sft RECIPE [key=value ...]`, alone or under a launcher.

Connects training to evaluation and report (the scorer is passed in here), sets up logging, turns failures
into exit codes and ends the process group in order. Left out: the work itself (`train.py`, `sample.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from posttrain.base.exit_codes import exit_code_of
from posttrain.base.files import write_text
from posttrain.base.process import log_to_stderr, quiet_libraries, rank, world_size
from posttrain.base.stop import StopRequest
from posttrain.evaluate.checkpoint import score_checkpoint
from posttrain.evaluate.settings import template_of
from posttrain.recipe import TrainRecipe, load_stage
from posttrain.report.card import model_card
from posttrain.report.page import write_report
from posttrain.report.scorecard import write_scorecard
from posttrain.rundir.checkpoints import all_complete
from posttrain.rundir.directory import RunDir
from posttrain.rundir.reading import RunData
from posttrain.stages.parent import end_with_parent
from posttrain.training.callbacks import NotScored

log = logging.getLogger(__name__)


def launch_training(stage: str, train: Callable[..., RunDir], argv: list[str] | None) -> int:
    """Runs `train(recipe, scorer_for)` for the command line `argv` (default: the process's); returns the exit
    code."""

    def work(path: str, overrides: list[str]) -> None:
        recipe = load_stage(path, overrides, stage)
        run = RunDir(Path(recipe.output_dir, recipe.name))
        try:
            train(recipe, scorer_for)
        except NotScored:  # it has trained to its end, and the report names what is missing
            if rank() == 0:
                log.info("report: %s", _report(run))
            raise
        if rank() == 0:
            log.info("%s is finished; report: %s", run.path, _report(run))

    code = _launch(stage, work, argv)
    _leave(code)
    return code


def launch_sampling(stage: str, sample: Callable[..., RunDir], argv: list[str] | None) -> int:
    """As `launch_training`, for a stage that samples: no process group, no checkpoints, no scores."""

    def work(path: str, overrides: list[str]) -> None:
        run = sample(load_stage(path, overrides, stage))
        if rank() == 0:
            log.info("%s is finished; report: %s", run.path, write_report([run.path]))

    return _launch(stage, work, argv)


def scorer_for(recipe: TrainRecipe, run: RunDir, template: Any) -> Callable[[Path, int], None] | None:
    """The `Scorer` of a run: scores every task of its recipe and updates the scorecard; None without
    tasks."""
    tasks = recipe.evaluate.tasks
    if not tasks:
        return None

    def score(path: Path, step: int) -> None:
        score_checkpoint(
            path,
            step,
            tasks,
            run.path,
            template_of(recipe.data),
            renew=write_scorecard,
            ranks=(rank(), world_size()),
            keep_going=True,
        )

    return score


def _report(run: RunDir) -> Path:
    """Writes model card and report of a run that has trained to its end; returns the path of the report."""
    last = all_complete(run.checkpoints)[-1]
    write_text(run.path / "README.md", model_card(RunData.load(run.path), last.name))
    return write_report([run.path])


def _launch(stage: str, work: Callable[[str, list[str]], None], argv: list[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m posttrain.{stage} RECIPE [key=value ...]", file=sys.stderr)
        return 0 if argv else 2
    setup_logging()

    def watched() -> None:
        end_with_parent()
        work(argv[0], argv[1:])

    with StopRequest():
        return exit_code_of(watched)


def _leave(code: int) -> None:
    """End the process group on purpose: left to the interpreter's exit, its threads may abort the process."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    if code == 0:
        with contextlib.suppress(RuntimeError):  # a rank that failed after the work, and has said so
            dist.barrier()
        dist.destroy_process_group()
        return
    # A rank that failed must not wait for the others, and its exit code must be ours.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def setup_logging() -> None:
    """Messages of posttrain on stderr, from the main process; those of the libraries only from warnings
    up."""
    log_to_stderr()
    quiet_libraries()
    if not sys.stderr.isatty():
        disable_progress_bar()
