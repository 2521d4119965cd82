"""`posttrain prepare` that is stopped or killed in the middle of a table."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from posttrain.data.table import damaged_file
from posttrain.data.table_writer import PARTIAL
from tests.commands.prepared import write

ROW = {"prompt": "ab", "completion": "cde " * 8}


@pytest.fixture
def many(tmp_path):
    """Rows that take half a minute."""
    return write(tmp_path / "many.jsonl", [ROW] * 40_000)


def unfinished(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "tables").glob(f"{PARTIAL}*"))


def half_way(process, tmp_path: Path) -> None:
    """Returns once a table is being written."""
    end = time.monotonic() + 60
    while not unfinished(tmp_path):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(spawn, plain_recipe, many, tmp_path, number):
    process = spawn("prepare", plain_recipe, f"data.sources.0.path={many}")
    half_way(process, tmp_path)
    since = time.monotonic()
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - since < 10
    assert process.returncode == 1 and "interrupted" in err and "Traceback" not in err, err
    assert "prepared:" not in out
    left = [path for path in (tmp_path / "cache" / "tables").iterdir() if path.suffix != ".lock"]
    assert left == unfinished(tmp_path), "what the next command takes up"


@pytest.mark.slow
def test_killed(spawn, call, plain_recipe, tmp_path):
    many = write(tmp_path / "many.jsonl", [ROW] * 5_000)
    process = spawn("prepare", plain_recipe, f"data.sources.0.path={many}")
    half_way(process, tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert unfinished(tmp_path)
    answer = call("prepare", plain_recipe, f"data.sources.0.path={many}")
    assert answer.code == 0 and "prepared: 5,000 rows" in answer.out, answer
    (folder,) = (path for path in (tmp_path / "cache" / "tables").iterdir() if path.suffix != ".lock")
    assert damaged_file(folder) is None
