"""A file that changes while its rows are made into a table gives no table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from posttrain.data import make_table as making
from posttrain.data.prepare import build
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import WorkError
from posttrain.recipe.schema import Data, Loss, Source

LINE = '{"prompt": "a", "completion": "b"}\n'
ROWS = 2000
"""More bytes than are read at once."""


def appended(path: Path) -> None:
    with path.open("a") as file:
        file.write(LINE)


def cut(path: Path) -> None:
    os.truncate(path, len(LINE) * (ROWS // 2) + 5)


def rewritten(path: Path) -> None:
    with path.open("r+") as file:
        file.seek(len(LINE) * (ROWS - 1))
        file.write(LINE.replace("b", "c"))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(LINE * ROWS)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("chosen", [None, ROWS // 2])
@pytest.mark.parametrize("change", [appended, cut, rewritten, replaced, removed])
@pytest.mark.parametrize("kept", [False, True])
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, change, chosen, kept):
    """`kept`: part of the rows is recorded for the next start, which must not take it up either."""
    path, keep, done = tmp_path / "rows.jsonl", making._keep, []
    path.write_text(LINE * ROWS)

    def changing(made, *rest):
        keep(made, *rest)
        done.append(made.read)
        if len(done) == 2:  # of 64 rows
            change(path)

    monkeypatch.setattr(making, "_keep", changing)
    if kept:
        monkeypatch.setattr(making, "KEEP_S", 0.0)
    source = Source("s", path=str(path), max_examples=chosen)
    data = Data([source], template="chatml", cache_dir=str(tmp_path / "c"), num_proc=1)
    with pytest.raises(WorkError, match=r"rows\.jsonl changed while it was read; start again"):
        build(data, Loss(), load_tokenizer("builtin:bytes"))
    assert not [each for each in (tmp_path / "c" / "tables").iterdir() if each.is_dir()]


def test_a_change_between_the_fingerprint_and_reading(tmp_path, monkeypatch):
    path, make = tmp_path / "rows.jsonl", making.remove_old
    path.write_text(LINE * 3)
    monkeypatch.setattr(making, "remove_old", lambda folder: appended(path) or make(folder))
    data = Data([Source("s", path=str(path))], template="chatml", cache_dir=str(tmp_path / "c"))
    with pytest.raises(WorkError, match=r"rows\.jsonl changed while it was read; start again"):
        build(data, Loss(), load_tokenizer("builtin:bytes"))
