"""A run directory while a stage works in it: locked by this process, with the outcome recorded in run.json.

Shared by the stages that train and those that sample. Left out: the directory itself (`rundir/directory.py`).
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from posttrain.base.files import number, timestamp
from posttrain.base.process import rank
from posttrain.base.stop import Stopped
from posttrain.errors import WorkError
from posttrain.recipe import Recipe
from posttrain.rundir.directory import RunDir
from posttrain.stages.engine_change import OtherLaunch
from posttrain.training.gates import GateFailed
from posttrain.training.hardware import commit, hardware, versions

log = logging.getLogger(__name__)


@contextlib.contextmanager
def claimed(run: RunDir, recipe: Recipe, refusals: bool) -> Iterator[bool]:
    """Locks `run` for `recipe` on the main process; yields whether it already holds a run of this recipe.

    Where the block fails, run.json records it, if the run has one: a run that was refused before it first
    began leaves nothing behind. `refusals`: also where a later start is refused before it has begun; never
    one under another engine than the run's.

    Raises:
        RequestError: another process writes the directory, or it holds a run of another recipe.
    """
    main, begun = rank() == 0, time.monotonic()
    try:
        if main:
            run.lock()
        resumed = main and run.check_same(recipe)
        try:
            yield resumed
        except BaseException as error:
            info = run.info() if main else {}
            if info and not isinstance(error, OtherLaunch) and (refusals or info.get("status") == "running"):
                record_failure(run, error, time.monotonic() - begun)
            raise
    finally:
        run.unlock()


def launch_facts() -> dict[str, Any]:
    """What run.json says about the start of any stage."""
    return {
        "command": " ".join(sys.argv),
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
    }


def record_failure(run: RunDir, error: BaseException, seconds: float = 0.0) -> None:
    """Writes into run.json how the run ended, and adds `seconds`; main process only."""
    if rank() != 0:
        return
    stopped = isinstance(error, Stopped | GateFailed | KeyboardInterrupt)
    try:
        run.update(
            status="stopped" if stopped else "failed",
            ended=timestamp(),
            seconds=round((number(run.info().get("seconds")) or 0.0) + seconds, 1),
            error=str(error) or type(error).__name__,
        )
    except WorkError:  # a full disk: the failure that led here is the one to report
        log.error("run.json could not be written either")
