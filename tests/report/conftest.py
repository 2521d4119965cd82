"""The runs of `tests/rundir/written.py`, and a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from posttrain.report.page import load_runs
from posttrain.rundir.reading import RunData
from tests.report import stages
from tests.rundir.written import lines, pair, pipeline, runs, tables


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
