"""A run killed with -9 at random moments and started again equals the uninterrupted run: same rows, same
weights."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.rundir import checkpoints as ckpt

STEPS = 60  # enough that three kills always find the run unfinished, however fast the machine
SETTINGS = [
    f"train.max_steps={STEPS}",
    "train.optim=adamw_torch",
    "train.learning_rate=1e-3",
    "train.lr_scheduler_type=cosine",
    "train.log_samples=true",
    "train.per_device_train_batch_size=2",
    "checkpoints.save_steps=4",
    "checkpoints.keep_last=2",
    "loss.name=confidence_limited",
    "loss.n=4",
    "model.options={attention_dropout: 0.1}",
    "train.max_grad_norm=1",
]


def start(recipe: Path, name: str, environment: dict, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "posttrain.sft", str(recipe), f"name={name}", *SETTINGS, *more]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=recipe.parent)


def ids_by_step(run: Path) -> dict[int, list]:
    """Row ids of every step; a step done again after a kill must have seen the same rows."""
    seen: dict[int, list] = {}
    for line in (run / "samples.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn by the kill
        assert seen.setdefault(row["step"], row["ids"]) == row["ids"], (
            f"step {row['step']} saw other rows when repeated"
        )
    return seen


def final(run: Path) -> dict:
    return load_file(run / "checkpoints" / ckpt.name_of(STEPS) / "model.safetensors")


@pytest.mark.slow
def test_kill_9_at_random_moments(recipe, environment):
    whole = start(recipe, "whole", environment)
    assert whole.wait(timeout=200) == 0, whole.stderr.read()[-3000:]
    folder = recipe.parent
    dice = random.Random(7)
    kills, begun_at = 0, []
    while True:
        process = start(recipe, "killed", environment)
        goal = dice.randint(5, 9)  # past a checkpoint, however slow the machine
        samples = folder / "killed" / "samples.jsonl"
        before = len(samples.read_text().splitlines()) if samples.exists() else 0
        while process.poll() is None:
            now = len(samples.read_text().splitlines()) if samples.exists() else 0
            if kills < 3 and now - before >= goal:
                time.sleep(dice.random() * 0.15)  # somewhere in a step, a log line or a checkpoint
                process.kill()
                break
            time.sleep(0.01)
        code = process.wait(timeout=200)
        error = process.stderr.read()
        if code == 0:
            break
        assert code == -signal.SIGKILL, error[-3000:]
        kills += 1
        begun_at.append(now)
    assert kills == 3
    assert "resuming from" in error
    assert ids_by_step(folder / "killed") == ids_by_step(folder / "whole")
    a, b = final(folder / "killed"), final(folder / "whole")
    worst = max(float((a[k] - b[k]).abs().max()) for k in b)
    print(f"killed 3 times after {begun_at} steps in all; largest weight difference {worst:.1e}")
    assert worst <= 1e-6
    assert not list((folder / "killed" / "checkpoints").glob(".tmp-*"))


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(recipe, environment):
    process = start(recipe, "asked", environment, "train.max_steps=4000", "checkpoints.save_steps=null")
    samples = recipe.parent / "asked" / "samples.jsonl"
    deadline = time.time() + 120
    while not (samples.exists() and len(samples.read_text().splitlines()) >= 3):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    error = process.stderr.read()
    assert "saving a checkpoint" in error and "run the same command to resume" in error
    assert "Traceback" not in error
    run = recipe.parent / "asked"
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    (checkpoint,) = ckpt.all_complete(run / "checkpoints")
    assert checkpoint.step >= 3
