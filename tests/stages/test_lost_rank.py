"""One rank of two is killed or fails: the other ends within seconds, with one sentence that names it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import RECIPE, accelerate, on_cpu

BOUND_S = 10.0
"""Seconds from the end of the rank to that of the other: half a second to see it, three in which the main
thread may end by itself."""
NOISE = ("Traceback", "gloo", "c10d", "torch.distributed", "saving a checkpoint")
CASES = {
    # name: how rank 1 ends, in which call, what rank 0 says of it, its own sentence
    "killed": ("kill", "step", "was killed or crashed", None),
    "failed": ("request", "step", "failed: only here", "error: only here"),
    "memory": ("memory", "load", "failed: out of memory", "error: out of memory"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, tiny, rows_file, root):
    folder = tmp_path_factory.mktemp("lost")
    recipe = folder / "case.yaml"
    recipe.write_text(RECIPE.format(out=folder, model=tiny, rows=rows_file))
    extra = ["train.per_device_train_batch_size=2", "checkpoints.save_steps=1"]
    cases = [
        {"name": name, "argv": [str(recipe), f"name={name}", *extra], "lose": how, "at": at}
        | {"launcher": name == "killed"}
        for name, (how, at, *_) in CASES.items()
    ]
    cases.append({"name": "full", "argv": [str(recipe), "name=full", *extra], "lose": "disk", "at": "save"})
    (folder / "cases.json").write_text(json.dumps(cases))
    subprocess.run(
        [sys.executable, "-m", "tests.stages.lost", folder / "cases.json", folder / "out.json"],
        cwd=root,
        env=environment_of(root),
        timeout=400,
        check=True,
    )
    return json.loads((folder / "out.json").read_text()), folder


def environment_of(root: Path) -> dict[str, str]:
    paths = f"{root}{os.pathsep}{root / 'kernels'}"
    cpu = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return os.environ | cpu | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CI": "1"}


def lines_of(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_other_rank_names_it(ended, name):
    found, folder = ended
    case, (_, at, what, own) = found[name], CASES[name]
    assert case["codes"]["0"] == 1 and case["seconds"] < BOUND_S, case
    last = "resume from step-000001" if at == "step" else "start over: there is no checkpoint to resume from"
    host = socket.gethostname()
    sentence = f"rank 1 (process {case['pids']['1']} on host {host}) {what}; run the same command to {last}"
    assert sorted(lines_of(case["said"])) == sorted(filter(None, [own, f"error: {sentence}"]))
    assert not [word for word in NOISE if word in case["said"]], case["said"]
    info = folder / name / "run.json"
    if info.exists():
        assert json.loads(info.read_text())["error"] == sentence


@pytest.mark.slow
def test_a_full_disk_of_one_rank_is_said_by_both(ended):
    found, folder = ended
    case, place = found["full"], folder / "full" / "checkpoints"
    assert case["codes"] == {"0": 1, "1": 1}
    said = (
        f"{place}/step-000001 could not be written: rank 1: the disk is full; run the same command to start"
    )
    assert len(lines_of(case["said"])) == 2
    assert all(said in line for line in lines_of(case["said"]))
    assert not list(place.iterdir())


@pytest.mark.slow
def test_under_the_launcher(recipe, root, tmp_path, launch):
    """ZeRO-3, whose collectives run inside forward; the launcher, too, prints the sentence."""
    environment = environment_of(root) | {"LOSE": "kill:step", "DS_SKIP_CUDA_CHECK": "1"}
    del environment["ACCELERATE_USE_CPU"]  # of a launch without a config; with DeepSpeed's it gives DDP
    command = (str(root / "tests/stages/lost.py"), str(recipe), "train.per_device_train_batch_size=2")
    config = on_cpu(root / "launch" / "zero3.yaml", tmp_path)
    done = accelerate(config, *command, environment=environment, cwd=tmp_path, timeout=900)
    assert done.returncode == 1
    (line,) = lines_of(done.stderr)
    assert "error: rank 1 (process " in line and "was killed or crashed" in line
    before, _, after = re.sub(r".*FutureWarning.*\n.*\n", "", done.stderr).partition(line)
    assert not [word for word in NOISE if word in before], before
    assert line.removeprefix("error: ") in after, "as the cause of the launcher's own error"
