"""Ctrl-C as a terminal sends it: to every process of the group, once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest


def wait_for(ready, process, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def interrupt(process) -> str:
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in out + err
    return err


@pytest.mark.slow
def test_while_a_stage_trains(spawn, recipe, tmp_path, call):
    run = tmp_path / "case"
    process = spawn("run", recipe, "train.max_steps=100000")
    wait_for(lambda: lines(run / "metrics.jsonl") >= 2, process)
    err = interrupt(process)
    assert "error: stopped after step" in err and "run the same command to resume" in err
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert (checkpoint / "COMPLETE").is_file()
    assert "stopped" in call("show", run).out


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.5])
def test_before_anything_has_begun(spawn, recipe, tmp_path, seconds):
    process = spawn("run", recipe, "train.max_steps=100000")
    time.sleep(seconds)
    interrupt(process)
    assert not (tmp_path / "case").exists()


@pytest.mark.slow
def test_a_pipeline(spawn, recipe, tmp_path, call):
    (tmp_path / "pipe.yaml").write_text(
        "pipeline: both\nparallel: 1\nstages:\n"
        "  - {name: one, recipe: case.yaml, overrides: [train.max_steps=100000]}\n"
        "  - {name: two, recipe: case.yaml, overrides: [model.init=one]}\n"
    )
    root = tmp_path / "runs" / "both"
    process = spawn("run", "pipe.yaml")
    wait_for(lambda: lines(root / "one" / "metrics.jsonl") >= 2, process)
    err = interrupt(process)
    assert "the stages save a checkpoint, then the pipeline stops" in err
    assert "stage one: stopped after step" in err and "stage two: not started" in err
    stages = json.loads((root / "pipeline.json").read_text())["stages"]
    assert [s["status"] for s in stages] == ["stopped", "waiting"]
    assert len(list((root / "one" / "checkpoints").iterdir())) == 1
    answer = call("show", root)
    assert answer.code == 0 and "stopped" in answer.out
    assert call("report", root).code == 0


@pytest.mark.slow
def test_a_pipeline_whose_stages_still_load(spawn, recipe, tmp_path):
    (tmp_path / "pipe.yaml").write_text("pipeline: both\nstages:\n  - {name: one, recipe: case.yaml}\n")
    root = tmp_path / "runs" / "both"
    process = spawn("run", "pipe.yaml")
    wait_for(lambda: (root / "pipeline.json").exists(), process)
    err = interrupt(process)
    assert "stage one: stopped before its first step" in err or "stage one: not started" in err
    assert not (root / "one").exists()
