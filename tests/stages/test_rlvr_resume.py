"""An RLVR run that is killed or asked to stop anywhere and started again equals the uninterrupted one,
rollout for rollout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.rundir.checkpoints import all_complete
from tests.training.preferences import far, rows, weights
from tests.training.rollouts import positions, rollouts, train, write_recipe

STEPS = 6
SETTINGS = [
    f"train.max_steps={STEPS}",
    "train.logging_steps=3",
    "train.optim=adamw_torch",
    "train.learning_rate=1e-3",
    "train.lr_scheduler_type=cosine",
    "train.max_grad_norm=1",
    "train.per_device_train_batch_size=4",
    "model.options={attention_dropout: 0.1}",
    "checkpoints.save_steps=4",
    "checkpoints.keep_last=null",
    "rollout={num_generations: 4, max_new_tokens: 12, batch_size: 8, steps_per_generation: 2, refill: 1}",
]
# Three batches of rollouts, two steps each, of four prompts in two calls of the generator and refills; a
# checkpoint after the second batch and the third.
SPEED = ("time", "tokens_per_second", "peak_memory_mib")
KILLS = {
    "generate": ("generate", 2, 2, 4),
    "score": ("score", 2, 7, 4),
    "step": ("step", 2, 2, 0),
    "save": ("save", 3, 1, 4),  # the last checkpoint is written, but has no name yet
}
"""Where, with how many batches done, in which call; the checkpoint that is gone on from."""
STOPS = {"first": ("generate", 0, 1, 0), "sampling": ("generate", 1, 2, 2), "scoring": ("score", 2, 7, 4)}
"""The same; a checkpoint is written then, whether one is due or not."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory, tiny, root):
    """`{name: exit code and stderr}` of every run, and the folder of the runs; all in one process, which
    forks."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = write_recipe(folder, tiny)
    argv = lambda name: [str(recipe), f"name={name}", *SETTINGS]  # noqa: E731
    jobs = [{"name": "whole", "argv": argv("whole")}]
    for number, cases in ((signal.SIGKILL, KILLS), (signal.SIGTERM, STOPS)):
        for name, (at, after, call, _) in cases.items():
            where = {"run": f"{folder}/{name}", "at": at, "after": after, "call": call}
            jobs.append({"name": name, "argv": argv(name), "signal": number} | where)
            jobs.append({"name": f"{name} again", "argv": argv(name)})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.stages.killed", folder / "jobs.json", folder / "out.json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env=_environment(root), cwd=root
    )
    assert (folder / "out.json").exists(), done.stderr[-4000:]
    return json.loads((folder / "out.json").read_text()), folder


def _environment(root: Path) -> dict[str, str]:
    paths = f"{root}{os.pathsep}{root / 'kernels'}"
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CI": "1"}


def equals_the_whole(folder: Path, name: str) -> None:
    whole, run = folder / "whole", folder / name
    assert rollouts(run) == rollouts(whole)
    assert far(weights(run, STEPS), weights(whole, STEPS)) == 0
    assert not list((run / "checkpoints").glob(".tmp-*"))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert [_measured(row) for row in rows(run)] == [_measured(row) for row in rows(folder / "whole")]


def _measured(row: dict) -> dict:
    """A line of the log without times; of a window that may have begun before a kill."""
    timed = [k for k in row if k in SPEED or k.startswith("seconds/") or k.endswith("/ms")]
    return {k: v for k, v in row.items() if k not in timed}


def goes_on(ended, name: str, step: int) -> None:
    """The same command went on from `step`, and ended as if nothing had happened."""
    found, folder = ended
    again = found[f"{name} again"]
    assert again["code"] == 0, again["stderr"][-3000:]
    if step:
        place = folder / name / "checkpoints" / f"step-{step:06d}"
        assert f"resuming from {place}\n" in again["stderr"]
    else:
        assert "resuming" not in again["stderr"]
    equals_the_whole(folder, name)


@pytest.mark.slow
def test_the_uninterrupted_run(ended):
    """Prompts 0 .. N - 1 once each, refills among them; a checkpoint says where to go on."""
    found, folder = ended
    assert found["whole"]["code"] == 0
    every = rollouts(folder / "whole")
    assert list(every) == [f"step-{s:06d}.jsonl" for s in (1, 3, 5)]
    asked = positions(folder / "whole")
    assert sorted(asked) == list(range(len(asked))) and len(asked) > 12
    assert {row["round"] for kept in every.values() for row in kept} == {0, 1}
    last = all_complete(folder / "whole" / "checkpoints")[-1].facts()
    assert (last["prompts"], last["step"]) == (len(asked), STEPS)
    assert far(weights(folder / "whole", 6), weights(folder / "whole", 4)) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("place", KILLS)
def test_killed_with_9_and_started_again(ended, place):
    found, folder = ended
    assert found[place]["code"] == -signal.SIGKILL, found[place]["stderr"][-3000:]
    goes_on(ended, place, KILLS[place][-1])
    steps = [c.step for c in all_complete(folder / place / "checkpoints")]
    assert steps == [4, 6]


@pytest.mark.slow
@pytest.mark.parametrize("place", STOPS)
def test_asked_to_stop_while_rollouts_are_made(ended, place):
    """A checkpoint after the last step, whether one was due or not; before the first step there is nothing to
    keep."""
    found, folder = ended
    first, step = found[place], STOPS[place][-1]
    assert first["code"] == 1, first["stderr"][-3000:]
    goal = f"resume from step-{step:06d}" if step else "start over: there is no checkpoint to resume from"
    said = f"error: stopped after step {step}; run the same command to {goal}"
    assert said in first["stderr"] and "Traceback" not in first["stderr"]
    goes_on(ended, place, step)
    steps = {c.step for c in all_complete(folder / place / "checkpoints")}
    assert steps == {step, 4, 6} - {0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [[], ["model.lora={r: 4, target_modules: [q_proj, lm_head]}"]], ids=["full", "lora"]
)
def test_the_reference_of_a_resumed_run_is_still_the_start_model(tmp_path, tiny, extra):
    path = write_recipe(tmp_path, tiny)
    settings = [
        "checkpoints.save_steps=2",
        "checkpoints.keep_last=null",
        "policy.beta=0.5",
        "train.optim=adamw_torch",
        "train.learning_rate=1e-2",
        *extra,
    ]
    run = train(path, *settings)
    whole, kept, kl = weights(run, 3), rollouts(run), rows(run)[-1]["kl"]
    shutil.rmtree(run.checkpoints / "step-000003")
    (run.path / "rollouts" / "step-000003.jsonl").write_text("left over")
    assert far(weights(train(path, *settings), 3), whole) == 0
    assert rollouts(run) == kept and rows(run)[-1]["kl"] == kl > 1e-4
    assert [r["step"] for r in rows(run)] == [1, 2, 3]
