"""Folders that appear whole, whoever else writes to the same name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.base import new_folder as module
from posttrain.base.new_folder import new_folder
from posttrain.base.temporary import machine
from posttrain.errors import WorkError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_at_the_end(tmp_path):
    out = tmp_path / "above" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("mine")
        assert not out.exists() and folder.parent == out.parent
    assert (out / "file").read_text() == "mine" and names(out.parent) == ["out"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, kind):
    with pytest.raises(kind), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise kind
    assert not names(tmp_path)


def test_another_process_works_on_the_same_name(tmp_path):
    """Its files stay, whether this process fails or is done first."""
    other = tmp_path / f".tmp-out.0123abcd.{os.getppid()}.{machine()}"
    elsewhere = tmp_path / ".tmp-out.0123abcd.1.another-machine"
    for place in (other, elsewhere):
        place.mkdir()
        (place / "file").write_text("theirs")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out"):
        raise RuntimeError
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("mine")
    assert [(place / "file").read_text() for place in (other, elsewhere)] == ["theirs", "theirs"]


@pytest.mark.parametrize("late", [False, True], ids=["before the look", "after the look"])
def test_the_first_that_is_done_has_the_name(tmp_path, monkeypatch, late):
    out = tmp_path / "out"

    def appear() -> None:
        out.mkdir()
        (out / "file").write_text("theirs")

    rename = module._rename

    def looked_too_early(temporary: Path, place: Path) -> None:
        look = os.path.lexists
        monkeypatch.setattr(module.os.path, "lexists", lambda path: appear() if not look(path) else True)
        rename(temporary, place)

    if late:
        monkeypatch.setattr(module, "_rename", looked_too_early)
    with pytest.raises(WorkError, match="out has appeared since .* left as it is"), new_folder(out) as folder:
        (folder / "file").write_text("mine")
        if not late:
            appear()
    assert (out / "file").read_text() == "theirs" and names(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getpid()):  # in a container each process may have the same id
        left = tmp_path / f".tmp-out.0123abcd.{pid}.{machine()}"
        left.mkdir()
        (left / "file").write_text("half")
    others = [".tmp-out.txt", f".tmp-out.txt.0123abcd.{gone.pid}.{machine()}"]
    for name in others:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out") as folder:
        assert not names(folder)
    assert names(tmp_path) == [*others, "out"]
