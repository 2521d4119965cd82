"""What a stage prints is the same however it is started: its own lines, none of the libraries'."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

WAYS = {
    "command": ["posttrain", "sft"],
    "module": ["posttrain.sft"],
    "accelerate": [
        "accelerate.commands.accelerate_cli",
        "launch",
        *("--config_file", "launch/ddp.yaml", "--cpu", "--num_processes", "1"),
        *("-m", "posttrain.sft"),
    ],
}
FOREIGN = re.compile(r"accelerator|deepspeed|\[WARNING\]|\[INFO\]|Warning|%\||\r|it/s", re.IGNORECASE)


@pytest.mark.slow
def test_only_our_own_lines(root, recipe, tmp_path):
    """One process each way. DeepSpeed reports a missing GPU on stdout, transformers draws bars on saving."""
    unset = ("DS_ACCELERATOR", "HF_HUB_DISABLE_PROGRESS_BARS", "ACCELERATE_USE_CPU")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}", "CUDA_VISIBLE_DEVICES": ""}
    printed = {}
    for way, words in WAYS.items():
        overrides = [f"name={way}", "train.max_steps=1", f"data.cache_dir={tmp_path / way}-cache"]
        done = subprocess.run(
            [sys.executable, "-m", *words, str(recipe), *overrides],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            cwd=root,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "", way
        assert not FOREIGN.search(done.stderr), (way, done.stderr)
        printed[way] = re.sub(r"[\d.,]+", "#", done.stderr.replace(way, "NAME")).splitlines()
    assert any("NAME is finished" in line for line in printed["command"])
    assert printed["command"] == printed["module"] == printed["accelerate"]
