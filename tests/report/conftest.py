"""The runs of `tests/rundir/written.py`, and a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.rundir.written import pair, pipeline, runs, tables


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
