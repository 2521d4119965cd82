"""A signal to a run that is being resumed, before its first step: it leaves as it was, and trains none."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from posttrain import sft
from posttrain.base.files import hash_of, read_json
from posttrain.base.stop import Stopped
from posttrain.recipe import load_stage
from posttrain.training.callbacks import ScoreCallback
from posttrain.training.saving import CheckpointWriter
from posttrain.training.trainer import RunTrainer

PLACES = {
    "taking up the optimizer": (CheckpointWriter, "_load_optimizer_and_scheduler"),
    "the trainer's setup": (RunTrainer, "create_optimizer"),
    "catching up": (ScoreCallback, "_begin"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_signal_before_the_first_step(recipe, monkeypatch, place, steps):
    overrides = ["train.optim=adamw_torch", "checkpoints.save_steps=3", "checkpoints.keep_last=null"]
    asked = load_stage(recipe, overrides, "sft")
    run = recipe.parent / "case"
    if steps:
        sft.train(asked)
        shutil.rmtree(run / "checkpoints" / "step-000005")
    elif "optimizer" in place:
        pytest.skip("nothing is taken up")
    kept = {file: hash_of(file) for file in run.glob("checkpoints/**/*") if file.is_file()}
    owner, name = PLACES[place]
    plain = getattr(owner, name)

    def signalled(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args, **options)

    def step(*_, **__):
        pytest.fail("a step was trained")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        patch.setattr(RunTrainer, "training_step", step)
        words = "resume from step-000003" if steps else "start over"
        with pytest.raises(Stopped, match=f"; run the same command to {words}"):
            sft.train(asked)
    assert {file: hash_of(file) for file in run.glob("checkpoints/**/*") if file.is_file()} == kept
    assert read_json(run / "run.json")["status"] == "stopped"
    sft.train(asked)
    assert (run / "checkpoints" / "step-000005" / "COMPLETE").exists()
