"""A signal to two ranks, or to one of them, while they train or score: all are gone within seconds with a
checkpoint that is not scored, and the resumed run ends as an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from posttrain.base.stop import StopRequest
from posttrain.recipe.schema import Evaluate
from posttrain.rundir import checkpoints
from posttrain.rundir.checkpoints import Checkpoint, all_complete
from posttrain.rundir.directory import RunDir
from posttrain.training.callbacks import ScoreCallback
from posttrain.training.saving import CheckpointWriter
from tests.launch.conftest import wait_until
from tests.stages.test_signals import scores as scores_of
from tests.tiny import RECIPE, on_cpu
from tests.training.preferences import far, weights

BOUND_S = 12.0
"""Seconds from the signal to the end of the launcher; scoring would take 50 and more."""
SETTINGS = (
    "train.max_steps=4",
    "train.per_device_train_batch_size=2",
    "train.dataloader_num_workers=1",
    "checkpoints.save_steps=4",
    "checkpoints.keep_last=null",
    "evaluate.at_start=false",
    "evaluate.tasks=[{{name: math, path: {rows}, options: {{prompt: prompt}}, "
    "limit: 16, max_new_tokens: 24, batch_size: 1}}]",
)


@dataclass
class Launch:
    """The command under accelerate, two ranks."""

    folder: Path
    root: Path
    environment: dict[str, str]
    recipe: Path
    rows: Path

    def start(self, config: str, name: str, *module: str) -> subprocess.Popen:
        launcher = ("-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2")
        engine = on_cpu(self.root / "launch" / config, self.folder)
        settings = [s.format(rows=self.rows) for s in SETTINGS]
        return subprocess.Popen(
            [sys.executable, *launcher, "--config_file", engine, "--main_process_port", "0"]
            + ["-m", *module, str(self.recipe), f"name={name}", *settings],
            env=self.environment,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finished(self, config: str, name: str) -> Path:
        process = self.start(config, name, "posttrain.sft")
        said = process.communicate(timeout=200)[0]
        assert process.returncode == 0, said[-4000:]
        return self.folder / name


@pytest.fixture
def launched(tmp_path, root, tiny, rows_file, environment) -> Launch:
    recipe = tmp_path / "case.yaml"
    recipe.write_text(RECIPE.format(out=tmp_path, model=tiny, rows=rows_file))
    return Launch(tmp_path, root, environment, recipe, rows_file)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, tuple]:
    """Of each config the weights and the scores of a run that had no signal."""
    return {}


def trains(run: Path) -> bool:
    return (run / "metrics.jsonl").exists()


def scores(run: Path) -> bool:
    return bool(all_complete(run / "checkpoints"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "to", "number", "while_it"),
    [
        # a launcher passes it on to the whole process group, the workers that load rows included
        ("cpu2.yaml", "launcher", signal.SIGTERM, trains),
        ("cpu2.yaml", "0", signal.SIGUSR1, scores),
        pytest.param("zero2.yaml", "1", signal.SIGUSR1, trains, marks=pytest.mark.exhaustive),
    ],
    ids=["launcher-trains", "rank0-scores", "zero2-rank1-trains"],
)
def test_ranks_leave_within_seconds(
    launched, undisturbed, config, to, number, while_it: Callable[[Path], bool]
):
    run = launched.folder / "case"
    process = launched.start(config, "case", "tests.stages.slow_scores", str(launched.folder))
    try:
        wait_until(lambda: while_it(run), 100, lambda: "the run has not begun")
        time.sleep(1 if while_it is scores else 0)
        begun = time.monotonic()
        os.kill(process.pid if to == "launcher" else int((launched.folder / to).read_text()), number)
        said = process.communicate(timeout=100)[0]
        seconds = time.monotonic() - begun
    finally:
        process.kill()
    assert process.returncode == 1 and seconds < BOUND_S, f"{seconds} s\n{said[-4000:]}"
    last = all_complete(run / "checkpoints")[-1]
    assert last.step == 4 if while_it is scores else 0 < last.step < 4
    sentence = f"stopped after step {last.step} of 4; run the same command to resume from {last.name}"
    assert said.count(f"error: {sentence}") == 2, said[-4000:]
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert not (run / "scores.jsonl").exists() and not (run / "unscored.jsonl").exists()
    if config not in undisturbed:
        whole = launched.finished(config, "whole")
        undisturbed[config] = weights(whole, 4), scores_of(whole)
    expected_weights, expected = undisturbed[config]
    launched.finished(config, "case")
    assert far(weights(run, 4), expected_weights) == 0
    found = scores_of(run)
    assert expected and {key: found[key] for key in expected} == expected
    assert {step for step, *_ in found} == {last.step, 4}, "what was left out is scored, too"


def test_a_checkpoint_is_not_scored_where_another_rank_was_asked_to_stop(tmp_path):
    """This rank has had no signal."""
    trainer = SimpleNamespace(on_any_rank=lambda flag: True, stop=StopRequest())
    scored = []
    callback = ScoreCallback(trainer, Evaluate(), None, lambda *asked: scored.append(asked))
    callback._score(tmp_path, 1)
    assert callback.abandoned and not scored


def test_one_rank_decides_which_checkpoints_lack_a_score(tmp_path):
    """This one, of a file system that shows it no checkpoint yet, takes part in what the other begins."""
    decided = [Checkpoint(tmp_path / "checkpoints" / "step-000002", 2)]
    trainer = SimpleNamespace(
        run=RunDir(tmp_path),
        state=SimpleNamespace(global_step=2, max_steps=4),
        stop=StopRequest(),
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
        is_world_process_zero=lambda: False,
        on_any_rank=lambda flag: False,
        gather=lambda value: [decided, value],
    )
    scored = []
    callback = ScoreCallback(trainer, Evaluate(), None, lambda *asked: scored.append(asked))
    callback.catch_up()
    assert scored == [(decided[0].path, 2)]


def test_one_rank_decides_whether_a_checkpoint_is_there(tmp_path, monkeypatch):
    written = []
    trainer = SimpleNamespace(
        run=RunDir(tmp_path),
        state=SimpleNamespace(global_step=2),
        untimed=contextlib.nullcontext,
        _write_whole=lambda *asked: written.append(asked),
    )
    for others, expected in ((True, 0), (False, 1)):
        trainer.gather = lambda mine, others=others: [others, mine]
        monkeypatch.setattr(checkpoints, "is_complete", lambda path, others=others: not others)
        CheckpointWriter._save_checkpoint(trainer, None)
        assert len(written) == expected
