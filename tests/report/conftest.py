"""The runs of `tests/rundir/written.py`, and a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from posttrain.report.page import load_runs
from posttrain.rundir.reading import RunData
from tests.report import stages
from tests.rundir.written import lines, pair, pipeline, runs, score, tables, write_pair


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return stages.write_chain(tmp_path_factory.mktemp("runs") / "chain")


@pytest.fixture
def held(chain):
    """The runs of the chain by name."""
    return {run.name: run for run in load_runs([chain])[0]}


@pytest.fixture
def made(tmp_path):
    """made(stage, recipe, rows of metrics, name) -> RunData."""

    def make(stage, recipe=None, rows=(), name="run"):
        stages.papers(tmp_path / name, stage, recipe or {})
        lines(
            tmp_path / name / "metrics.jsonl",
            [{"step": i + 1, "split": "train"} | r for i, r in enumerate(rows)],
        )
        return RunData.load(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def chromium():
    """Runs the browser: chromium(page, *flags) -> CompletedProcess with dumped DOM and log."""
    binary = shutil.which("chromium")
    if binary is None:
        required = "chromium" in os.environ.get("POSTTRAIN_REQUIRE", "").split(",")
        (pytest.fail if required else pytest.skip)("no chromium on this machine")

    def run(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        quiet = "--disable-quic --no-first-run --disable-background-networking"
        command = [binary, "--headless", "--no-sandbox", "--disable-gpu", *quiet.split()]
        command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"]
        command += ["--enable-logging=stderr", *flags, "--dump-dom", page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


def add_controls(path: Path, temperatures=(0.5, 1.5, 2.0, 3.0), task: str = "multiplication") -> Path:
    """Writes scores of every checkpoint of `path` at other temperatures. Sharp answers gain at the largest N
    when hot, and lose where N is 1."""
    rows = [json.loads(line) for line in (path / "scores.jsonl").read_text().splitlines()]
    found = []
    for checkpoint in dict.fromkeys(row["checkpoint"] for row in rows):
        text = (path / "samples" / checkpoint / f"{task}.jsonl").read_text()
        p = np.exp([json.loads(line)["logp"] for line in text.splitlines()])
        for t in temperatures:
            hot = 1 / (1 + np.exp(-(np.log(p / (1 - p)) / t - 0.6 * (t - 1))))
            for k in (2**i for i in range(13)):
                value = float((1 - (1 - hot) ** k).mean())
                row = score(checkpoint, task, f"pass@{k}", value, len(p), 0.02)
                found.append(row | {"settings": f"t{t}", "differs": {"temperature": t}})
    lines(path / "scores.jsonl", rows + found)
    return path


@pytest.fixture(scope="session")
def controlled(tmp_path_factory) -> list[Path]:
    """Cross-entropy and confidence-limited, 60 problems each, at five temperatures."""
    return [add_controls(path) for path in write_pair(tmp_path_factory.mktemp("controlled"), 60)]
