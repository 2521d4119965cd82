"""Kinds of tests: which markers a test gets from what it uses, and what a run prints about those left out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import KINDS, ROOT

CONFTEST = """\
import pytest
from tests.conftest import (
    data_dir,
    pytest_collection_modifyitems,
    pytest_deselected,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

def run_ranks(): ...

@pytest.fixture
def launch(): ...

@pytest.fixture
def results():
    return run_ranks()
"""
TESTS = """\
import pytest
from conftest import run_ranks

def test_quick(): ...
def test_by_fixture(launch): ...
def test_by_a_fixture_that_calls_a_helper(results): ...
def test_by_helper(): run_ranks()
def test_data(data_dir): ...
@pytest.mark.slow
def test_written(launch): ...
@pytest.mark.slow
def test_slow(): ...
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_backends(backend): ...
"""


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_says_what_it_leaves_out_and_why(tmp_path, workers):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-c",
                str(ROOT / "pyproject.toml"),
                "--rootdir",
                str(tmp_path),
            ),
            *("-p", "no:cacheprovider", "--import-mode=prepend", "-n", str(workers)),
            *("-m", f"not ({' or '.join(KINDS)})", str(tmp_path)),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    summary = done.stdout[done.stdout.index("7 tests left out") :].splitlines()[1:5]
    counts = {words[1].rstrip(":"): int(words[0]) for words in map(str.split, summary)}
    assert counts == {
        "ranks": 4,
        "data": 1,
        "interpreter": 1,
        "slow": 1,
    }  # several markers count under the first
    assert "starts a second process rank" in done.stdout
