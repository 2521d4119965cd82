"""Run directories of an earlier version: one small run of each stage under `earlier/`, and what makes them.

    python tests/rundir/make_earlier.py CHECKOUT

makes every recipe of `earlier/` with the code of the checkout, and replaces `earlier/runs`. It was last run
with a checkout of commit a54b67b; the versions of the libraries are in each run.json. Files that nothing
reads, or that are made again, are left out, and paths of the machine are taken out of run.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

EARLIER = Path(__file__).with_name("earlier")
STAGES = {
    "sft": "sft",
    "lora": "sft",
    "dpo": "dpo",
    "kto": "dpo",
    "rlvr": "rlvr",
    "pairs": "pairs",
    "pass_rate": "pass_rate",
}
"""Run -> its stage, in the order in which they are made: all others start from `sft`."""
LEFT_OUT = (".*lock", "README.md", "report.html", "scorecard.md", "training_args.bin")
"""Locks, pages that are written again, and a pickle that nothing reads."""
RESUMED_FROM = ("optimizer.pt", "rng_state.pth", "scheduler.pt")
"""Left out of the last checkpoint of a run: a finished run is not resumed."""
STARTED_FROM = ("*.jinja", "generation_config.json", "tokenizer*.json", "trainer_state.json")
"""Left out of the last checkpoint of a run that no other run starts from."""


@pytest.fixture
def earlier(tmp_path, monkeypatch) -> Path:
    """A copy of `earlier/` as the working directory: the recipes contain relative paths."""
    folder = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    monkeypatch.chdir(folder)
    return folder


def make(checkout: Path, folder: Path) -> None:
    """Makes every run in `folder` with the code in `checkout`."""
    for file in (*EARLIER.glob("*.yaml"), *EARLIER.glob("*.jsonl")):
        shutil.copy(file, folder)
    environment = os.environ | {
        "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'kernels'}",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    for name, stage in STAGES.items():
        command = [sys.executable, "-m", f"posttrain.{stage}", f"{name}.yaml"]
        subprocess.run(command, cwd=folder, env=environment, check=True)


def keep(checkout: Path, made: Path, runs: Path) -> None:
    """Copies the runs in `made` to `runs`, without what is left out and without paths of this machine."""
    shutil.rmtree(runs, ignore_errors=True)
    for name in STAGES:
        shutil.copytree(made / name, runs / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        info = json.loads((runs / name / "run.json").read_text())
        info["command"] = info["command"].replace(f"{checkout}/", "")
        info["hardware"]["system"] = "Linux"
        (runs / name / "run.json").write_text(json.dumps(info, indent=2) + "\n")
        last = max((runs / name).glob("checkpoints/*"), default=runs / name)
        left_out = RESUMED_FROM if name in ("sft", "lora") else RESUMED_FROM + STARTED_FROM
        for file in [file for pattern in left_out for file in last.glob(pattern)]:
            file.unlink()
    for file in filter(Path.is_file, runs.rglob("*")):
        text = file.read_bytes()
        assert str(checkout).encode() not in text and str(made).encode() not in text, file


def main() -> None:
    checkout = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        make(checkout, Path(folder))
        keep(checkout, Path(folder) / "runs", EARLIER / "runs")
    print(sum(file.stat().st_size for file in filter(Path.is_file, EARLIER.rglob("*"))), "bytes")


if __name__ == "__main__":
    main()
