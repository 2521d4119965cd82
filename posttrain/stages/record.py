"""A run directory while a stage works in it: locked by this process, with the outcome recorded in run.json.

Shared by the stages that train and those that sample. Left out: the directory itself (`rundir/directory.py`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from posttrain.base.files import timestamp
from posttrain.base.process import rank
from posttrain.base.stop import Stopped
from posttrain.errors import WorkError
from posttrain.recipe import Recipe
from posttrain.rundir.directory import RunDir
from posttrain.training.gates import GateFailed

log = logging.getLogger(__name__)


@contextlib.contextmanager
def claimed(run: RunDir, recipe: Recipe) -> Iterator[bool]:
    """Locks `run` for `recipe` on the main process; yields whether it already holds a run of this recipe.

    Where the block fails, run.json records it. A finished run that is refused stays finished; a run that was
    refused before it began leaves nothing behind.

    Raises:
        RequestError: another process writes the directory, or it holds a run of another recipe.
    """
    main = rank() == 0
    try:
        if main:
            run.lock()
        resumed = main and run.check_same(recipe)
        try:
            yield resumed
        except BaseException as error:
            if main and run.info().get("status", "finished") != "finished":
                _record_failure(run, error)
            raise
    finally:
        run.unlock()


def _record_failure(run: RunDir, error: BaseException) -> None:
    stopped = isinstance(error, Stopped | GateFailed | KeyboardInterrupt)
    try:
        run.update(
            status="stopped" if stopped else "failed",
            ended=timestamp(),
            error=str(error) or type(error).__name__,
        )
    except WorkError:  # a full disk: the failure that led here is the one to report
        log.error("run.json could not be written either")
