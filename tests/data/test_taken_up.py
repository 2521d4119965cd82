"""What a kill leaves of a table is taken up, unless it is damaged, forged or old."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from posttrain.data import make_table as making
from posttrain.data import table_writer
from posttrain.data.table import IDS
from posttrain.errors import RequestError
from tests.data.test_make_table import content, filled, tables


@pytest.fixture
def rows(tmp_path) -> Path:
    return filled(tmp_path / "rows.jsonl")


class Killed(BaseException):
    """In place of a kill: nothing of ours catches it."""


@pytest.mark.parametrize("shape", ["rows", "prompts"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_kill_loses_what_was_not_kept_and_nothing_else(rows, tmp_path, monkeypatch, shape, count, caplog):
    """The table is that of one go, whenever the work is cut; rows that were kept are not tokenised again."""
    tables(rows, tmp_path / "whole", shape, num_proc=count)
    cache = tmp_path / "cut"
    monkeypatch.setattr(making, "KEEP_S", 0.0)
    caplog.set_level("INFO")
    keep, starts = making._keep, []
    for dies in (70, 300, 301, 650):
        seen = []

        def cut(made, *rest, dies=dies, seen=seen):
            seen.append(made.first)
            if made.first <= dies < made.first + made.read:
                raise Killed
            keep(made, *rest)

        monkeypatch.setattr(making, "_keep", cut)
        with pytest.raises(Killed):
            tables(rows, cache, shape, num_proc=count)
        starts.append(seen[0])
        (part,) = (cache / "tables").glob(".partial-*")
        with open(part / IDS, "ab") as file:
            file.write(b"torn")  # what was written after the record
    assert starts == [0, 64, 256, 256], "the last chunk of 64 that was kept"
    monkeypatch.setattr(making, "_keep", keep)
    tables(rows, cache, shape, num_proc=count)
    assert content(cache) == content(tmp_path / "whole")
    assert "goes on after row 640" in caplog.text
    assert not list((cache / "tables").glob(".partial-*"))


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A folder with `few.jsonl`, its cache `whole`, and the cache `part`, which has 128 of 200 rows."""
    folder = tmp_path_factory.mktemp("cut")
    lines = [{"prompt": f"{i}", "completion": f"{i}" if i != 5 else "", "more": 1} for i in range(200)]
    (folder / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tables(folder / "few.jsonl", folder / "whole", num_proc=1)
    keep = making._keep

    def dying(made, *rest):
        if made.first <= 150 < made.first + made.read:
            raise Killed
        keep(made, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "KEEP_S", 0.0)
        patch.setattr(making, "_keep", dying)
        with pytest.raises(Killed):
            tables(folder / "few.jsonl", folder / "part", num_proc=1)
    return folder


def forged(change):
    """Changes the record and gives it the hash that it then has."""

    def forge(part: Path) -> None:
        record = json.loads((part / "progress.json").read_text())
        del record["hash"]
        change(record)
        (part / "progress.json").write_text(json.dumps(record | {"hash": table_writer._hash_of(record)}))

    return forge


def text(content: str):
    return lambda part: (part / "progress.json").write_text(content)


def count(part: Path) -> None:
    record = (part / "progress.json").read_text()
    text(record.replace('"read": 128', '"read": 129'))(part)


def flip(part: Path) -> None:
    raw = bytearray((part / IDS).read_bytes())
    raw[100] ^= 1
    (part / IDS).write_bytes(raw)


def linked(part: Path) -> None:
    (part / IDS).rename(part.parent / "moved")
    (part / IDS).symlink_to(part.parent / "moved")


def a_file(part: Path) -> None:
    shutil.rmtree(part)
    part.write_text("x")


def a_link(part: Path) -> None:
    part.rename(part.parent.parent / "moved")
    part.symlink_to(part.parent.parent / "moved")
    os.truncate(part / IDS, 100)


DAMAGES = {
    "flip": flip,
    "short": lambda part: os.truncate(part / IDS, 100),
    "linked": linked,
    "a file": a_file,
    "a link": a_link,
    "record": text('{"files": {'),
    "deep": text("[" * 100_000),
    "list": text("[]"),
    "no hash": lambda part: text(json.dumps({"files": {}, "counts": {}, "state": {}}))(part),
    "count": count,
    "outside": forged(lambda record: record["files"].update({"../../x": {"bytes": 0, "hash": "x"}})),
    "absolute": forged(lambda record: record["files"].update({"/tmp/x": {"bytes": 0, "hash": "x"}})),
    "nul": forged(lambda record: record["files"].update({"\0": {"bytes": 0, "hash": "x"}})),
    "other table": forged(lambda record: record.update(table="0" * 32)),
    "files": forged(lambda record: record.update(files=[7])),
    "size": forged(lambda record: record["files"][IDS].update(bytes=-1)),
    "no size": forged(lambda record: record["files"][IDS].pop("bytes")),
    "counts": forged(lambda record: record["counts"].update(tokens="many")),
    "no counts": forged(lambda record: record.update(counts=None)),
    "state": forged(lambda record: record.update(state=[1])),
    "no state": forged(lambda record: record["state"].pop("read")),
    "read": forged(lambda record: record["state"].update(read="128")),
    "negative": forged(lambda record: record["state"].update(read=-3)),
    "dropped": forged(lambda record: record["state"].update(dropped={"a": "b"})),
    "unused": forged(lambda record: record["state"].update(unused=7)),
    "examples": forged(lambda record: record["state"].update(dropped_examples=[1])),
}


@pytest.mark.parametrize("damage", [None, *DAMAGES])
def test_a_damaged_part_is_begun_again(cut, tmp_path, monkeypatch, damage):
    """Also one that somebody wrote: no file outside of it is touched."""
    shutil.copytree(cut / "part", tmp_path / "c")
    (part,) = (tmp_path / "c" / "tables").glob(".partial-*")
    (tmp_path / "c" / "x").write_text("kept")
    if damage is not None:
        DAMAGES[damage](part)
    keep, seen = making._keep, []
    monkeypatch.setattr(making, "_keep", lambda made, *rest: seen.append(made.first) or keep(made, *rest))
    tables(cut / "few.jsonl", tmp_path / "c", num_proc=1)
    assert seen[0] == (128 if damage is None else 0)
    assert content(tmp_path / "c") == content(cut / "whole")
    assert (tmp_path / "c" / "x").read_text() == "kept"
    if damage == "a link":
        assert (tmp_path / "c" / "moved" / IDS).stat().st_size == 100


def test_a_refusal_leaves_no_part(tmp_path, monkeypatch):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 300 + "{")
    monkeypatch.setattr(making, "KEEP_S", 0.0)
    with pytest.raises(RequestError, match="broken.jsonl:301"):
        tables(path, tmp_path / "c")
    assert not [f for f in (tmp_path / "c" / "tables").iterdir() if f.is_dir()]


def test_parts_that_nobody_takes_up_are_removed_after_a_week(rows, tmp_path):
    old, new = (tmp_path / "c" / "tables" / f".partial-{name}" for name in ("old", "new"))
    for part in (old, new):
        part.mkdir(parents=True)
    notes = [old.with_name(name) for name in (".partial-file", "a.failed", "a.holder", "b.failed")]
    for note in notes:
        note.write_text("{}")
    for each in (old, *notes[:3]):
        os.utime(each, (time.time() - making.OLD_S - 60,) * 2)
    tables(rows, tmp_path / "c")
    assert new.exists() and notes[3].exists()
    assert not [each for each in (old, *notes[:3]) if each.exists()]
