"""What a kill, a stop or a failed scorer left undone is done by the same command: rotation, scores, log."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest

from posttrain.base.files import append_jsonl, read_jsonl
from posttrain.base.stop import Stopped
from posttrain.errors import WorkError
from posttrain.evaluate import checkpoint as module
from posttrain.evaluate.score import TaskResult
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.recipe import load_stage
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.scores import ScoreStore
from posttrain.sft import SftTrainer, train
from posttrain.stages.launch import scorer_for
from posttrain.stages.stage_process import finished
from posttrain.types import Score

pytestmark = pytest.mark.slow
TASKS = "evaluate.tasks=[{name: arithmetic, options: {digits: 1, train_size: 40, test_size: 41}}]"
SPEED = {"time", "tokens_per_second", "peak_memory_mib"}


def go(recipe: Path, *overrides: str, scored: bool = False) -> Path:
    return train(load_stage(recipe, list(overrides), "sft"), scorer_for if scored else None).path


def kept(run: Path) -> list[int]:
    return [c.step for c in ckpt.all_complete(run / "checkpoints")]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def broken(monkeypatch) -> set[int]:
    """Steps at which scoring fails; it costs nothing at the others."""
    steps: set[int] = set()

    def score(subject, task, share, own):
        if subject.step in steps:
            raise RuntimeError("evaluation broke")
        where = (subject.checkpoint, subject.step, task.name)
        settings = f"{module.task_hash(task)}-x"
        return TaskResult(
            [Score(*where, m, 0.5, 1, None, None, settings, subject.digest) for m in metrics(task)], []
        )

    monkeypatch.setattr(module, "score_task", score)
    return steps


def scored(run: Path) -> list[str]:
    return sorted({row["checkpoint"] for row in ScoreStore(run).rows()})


def test_a_scorer_that_failed_is_tried_again_on_every_checkpoint(recipe, broken, caplog):
    settings = (TASKS, "checkpoints.save_steps=2", "checkpoints.keep_last=null")
    asked = load_stage(recipe, list(settings), "sft")
    broken |= {0, 2, 4, 5}
    with pytest.raises(
        WorkError, match=r"^trained to the end; scoring of step-000005 on arithmetic failed: "
    ):
        go(recipe, *settings, scored=True)
    run = recipe.parent / "case"
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "failed" and "RuntimeError: evaluation broke; 3 more failed" in info["error"]
    assert len(read_jsonl(run / "unscored.jsonl")) == 4 and not finished(asked)

    broken -= {0, 4, 5}
    with caplog.at_level(logging.WARNING):
        go(recipe, *settings, scored=True)
    assert scored(run) == ["step-000000", "step-000004", "step-000005"]
    said = "step-000002 was not scored on arithmetic: RuntimeError: evaluation broke"
    assert f"{said}; run the same command to try again" in caplog.text
    assert said in (run / "scorecard.md").read_text().replace("\\", "")
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert not finished(asked), "a pipeline starts the stage again"

    broken.clear()
    go(recipe, *settings, scored=True)
    assert scored(run) == [f"step-{step:06d}" for step in (0, 2, 4, 5)]
    assert not (run / "unscored.jsonl").exists() and "not scored" not in (run / "scorecard.md").read_text()
    assert finished(asked)


def test_rotation_goes_on_after_a_kill(recipe):
    """Killed after a checkpoint had its name, or while another one was being deleted."""
    settings = ("checkpoints.save_steps=1", "checkpoints.keep_last=2")
    run = go(recipe, *settings)
    assert kept(run) == [4, 5]
    folder = run / "checkpoints"

    def older(step: int) -> None:
        there = shutil.copytree(folder / "step-000004", folder / ckpt.name_of(step))
        facts = json.loads((there / "checkpoint.json").read_text()) | {"step": step}
        (there / "checkpoint.json").write_text(json.dumps(facts))
        (there / "COMPLETE").write_text(ckpt.hash_of(there / "checkpoint.json"))

    older(2), older(3)
    (folder / ".tmp-deleted-step-000001").mkdir()
    go(recipe, *settings)  # fully trained
    assert names(run) == ["step-000004", "step-000005"]
    shutil.rmtree(folder / "step-000005")
    older(2), older(3)
    go(recipe, *settings)
    assert names(run) == ["step-000004", "step-000005"]


def rows(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in SPEED} for row in read_jsonl(run / "metrics.jsonl")]


def test_the_log_reads_as_if_nothing_had_happened(recipe, monkeypatch):
    """Stopped within a window, killed after more lines, ended within a window."""
    settings = (
        "train.logging_steps=3",
        "train.max_steps=7",
        "train.optim=adamw_torch",
        "train.learning_rate=1e-3",
        "checkpoints.save_steps=5",
        "evaluate.heldout={share: 0.25, every_steps: 4}",
        "loss.name=confidence_limited",
        "loss.n=4",
    )
    whole = rows(go(recipe, "name=whole", *settings))
    assert [(row["split"], row["step"]) for row in whole] == [
        ("train", 3),
        ("heldout", 4),
        ("train", 6),
        ("train", 7),
        ("heldout", 7),
    ]
    plain = SftTrainer.write_samples

    def asked(self) -> None:
        plain(self)
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SftTrainer, "write_samples", asked)
        with pytest.raises(Stopped, match="after step 4 of 7"):
            go(recipe, "name=stopped", *settings)
    run = recipe.parent / "stopped"
    assert [row["step"] for row in rows(run)] == [3], "the held-out pass of step 4 was abandoned"
    for split, step in (("train", 6), ("heldout", 6), ("train", 5)):  # of steps that a kill undid
        append_jsonl(run / "metrics.jsonl", {"step": step, "split": split, "loss": 9.0})
    go(recipe, "name=stopped", *settings)
    assert rows(run) == whole


def test_a_held_out_pass_that_was_abandoned_at_the_end_is_made_again(recipe, monkeypatch):
    """The run is fully trained by then; it must not pass for finished without that line."""
    settings = (
        "evaluate.heldout={share: 0.25, every_steps: 3}",
        "train.max_steps=4",
        "train.per_device_train_batch_size=4",
    )
    whole = rows(go(recipe, "name=whole", *settings))
    assert ("heldout", 4) in [(row["split"], row["step"]) for row in whole]
    plain = SftTrainer.heldout_metrics

    def stopped_in_the_pass_of(step: int) -> None:
        def asked(self):
            if self.state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self)

        with monkeypatch.context() as patch:
            patch.setattr(SftTrainer, "heldout_metrics", asked)
            with pytest.raises(Stopped):
                go(recipe, "name=stopped", *settings)
        assert json.loads((run / "run.json").read_text())["status"] == "stopped"

    run = recipe.parent / "stopped"
    for step in (3, 3, 4, 4):
        stopped_in_the_pass_of(step)
        assert kept(run)[-1] == step
    go(recipe, "name=stopped", *settings)
    assert rows(run) == whole
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_a_trained_run_without_its_optimizer_is_finished_without_that_pass(recipe, caplog):
    settings = ("evaluate.heldout={share: 0.25, every_steps: 3}", "train.max_steps=4")
    run = go(recipe, *settings)
    (run / "metrics.jsonl").unlink()
    (run / "checkpoints" / "step-000004" / "optimizer.pt").unlink()
    with caplog.at_level(logging.WARNING):
        go(recipe, *settings)
    assert "the held-out loss of step-000004 is not measured" in caplog.text
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_how_often_is_logged_may_change(recipe):
    """transformers takes it from the checkpoint."""
    settings = ("checkpoints.save_steps=4", "checkpoints.keep_last=null", "train.max_steps=8")
    run = go(recipe, *settings, "train.logging_steps=4")
    shutil.rmtree(run / "checkpoints" / "step-000008")
    go(recipe, *settings, "train.logging_steps=2")
    assert [row["step"] for row in rows(run)] == [4, 6, 8]


def test_a_stage_whose_last_checkpoint_is_gone_is_not_finished(recipe):
    run = go(recipe, "train.max_steps=2", "checkpoints.save_steps=1")
    asked = load_stage(recipe, ["train.max_steps=2", "checkpoints.save_steps=1"], "sft")
    assert finished(asked)
    (run / "checkpoints" / "step-000002" / "COMPLETE").unlink()
    assert not finished(asked)


def test_a_short_run_logs_its_steps_and_a_round_end_once(recipe):
    assert [row["step"] for row in rows(go(recipe, "train.logging_steps=10", "train.max_steps=2"))] == [2]
    even = go(recipe, "name=even", "train.logging_steps=2", "train.max_steps=4")
    assert [row["step"] for row in rows(even)] == [2, 4]
