"""What run.json says of a start that failed, and that a failed task does not keep the scorecard from the
others."""

from __future__ import annotations

import os

import pytest

from posttrain.base.stop import Stopped
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate import checkpoint as module
from posttrain.evaluate.score import TaskResult
from posttrain.recipe import load
from posttrain.recipe.schema import Task
from posttrain.report.scorecard import write_scorecard
from posttrain.rundir.directory import RunDir
from posttrain.stages.record import claimed
from tests.rundir.written import stored


def ended(run: RunDir, recipe, error: BaseException, refusals: bool, start: bool) -> dict:
    """run.json after a start that ended by `error`, before or after it had begun."""
    with pytest.raises(type(error)), claimed(run, recipe, refusals):
        if start:
            run.start(recipe, {})
        raise error
    return {key: run.info().get(key) for key in ("status", "error")}


def test_the_outcome_of_a_start(recipe):
    """Refused before it ever began: nothing is left. Later, a refusal is recorded by stages that train, and
    leaves the record of stages that sample as it was."""
    made = load(recipe)
    for refusals, kept in (
        (True, {"status": "failed", "error": "refused"}),
        (False, {"status": "stopped", "error": "s"}),
    ):
        run = RunDir(recipe.parent / f"run-{refusals}")
        assert ended(run, made, RequestError("refused"), refusals, start=False) == {
            "status": None,
            "error": None,
        }
        assert not run.path.exists()
        assert ended(run, made, Stopped("s"), refusals, start=True) == {"status": "stopped", "error": "s"}
        assert ended(run, made, RequestError("refused"), refusals, start=False) == kept
        assert ended(run, made, ValueError("v"), refusals, start=True) == {"status": "failed", "error": "v"}
        assert ended(run, made, KeyboardInterrupt(), refusals, start=True)["status"] == "stopped"


def test_a_run_is_free_again_after_a_failure(recipe):
    run, made = RunDir(recipe.parent / "run"), load(recipe)
    ended(run, made, WorkError("w"), True, start=True)
    with claimed(RunDir(run.path), made, True) as resumed:
        assert resumed
        with (
            pytest.raises(RequestError, match=rf"is being written by process {os.getpid()} of "),
            claimed(RunDir(run.path), made, True),
        ):
            pass


def test_the_scorecard_has_the_tasks_before_the_one_that_failed(tiny, tmp_path, monkeypatch):
    def score(subject, task, share, own):
        if task.name == "second":
            raise WorkError("the second task fails")
        return TaskResult([stored(0, "pass@1", 0.5)], [])

    monkeypatch.setattr(module, "score_task", score)
    monkeypatch.setattr(module, "has_task", lambda *_: False)
    with pytest.raises(WorkError, match="second"):
        module.score_checkpoint(
            tiny, 0, [Task("arithmetic"), Task("second")], tmp_path, "chatml", renew=write_scorecard
        )
    assert "arithmetic" in (tmp_path / "scorecard.md").read_text()
