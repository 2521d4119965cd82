"""Files and folders under temporary names: removed once their process has ended, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.base import files
from posttrain.base.temporary import OTHER_MACHINE_S, machine, remove_abandoned, temporary_name


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(pid: int, folder: Path, host: str | None = None, name: str = "a.json") -> Path:
    path = folder / f".tmp-{name}.0123abcd.{pid}.{host or machine()}"
    path.mkdir(parents=True)
    (path / "half").touch()
    return path


def test_only_what_dead_processes_left_is_removed(tmp_path, dead):
    gone = [left_by(dead, tmp_path), left_by(dead, tmp_path / "x/y"), left_by(os.getpid(), tmp_path)]
    kept = [left_by(os.getppid(), tmp_path), left_by(dead, tmp_path, "other"), tmp_path / ".tmp-step-000001"]
    kept[-1].mkdir()
    remove_abandoned(tmp_path, below=True)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)


def test_of_another_machine_age_decides(tmp_path, dead):
    left = left_by(dead, tmp_path, "other.example")
    old = left.stat().st_mtime - OTHER_MACHINE_S - 60
    os.utime(left, (old, old))
    remove_abandoned(tmp_path)
    assert not left.exists()


def test_one_name_and_one_folder_where_asked(tmp_path, dead):
    kept = [left_by(dead, tmp_path, name="a"), left_by(dead, tmp_path / "below", name="b")]
    mine = left_by(dead, tmp_path, name="b")
    remove_abandoned(tmp_path, "b")
    assert all(path.exists() for path in kept) and not mine.exists()
    remove_abandoned(tmp_path / "nowhere")


def test_names_fit_however_long(tmp_path, dead):
    for name in ("x" * 200, "é" * 120):
        path = temporary_name(tmp_path / name)
        assert len(os.fsencode(path.name)) < 255
        dying = tmp_path / path.name.replace(f".{os.getpid()}.", f".{dead}.")
        dying.touch()
        remove_abandoned(tmp_path, name)
        assert not dying.exists()


@pytest.mark.parametrize("kind", ["write_text", "stream_jsonl"])
def test_a_kill_while_writing_leaves_what_the_next_start_removes(tmp_path, kind):
    """The process ends between writing and renaming."""
    code = (
        "import os, sys, pathlib; from posttrain.base import files\n"
        "files.os.replace = lambda *names: os._exit(9)\n"
        f"path = pathlib.Path({str(tmp_path / 'x.jsonl')!r})\n"
        "if sys.argv[1] == 'write_text': files.write_text(path, 'half')\n"
        "with files.stream_jsonl(path) as add: add({'half': 1})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, kind], env=environment)
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp-x.jsonl.")
    remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())
