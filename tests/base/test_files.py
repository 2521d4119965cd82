"""Small files: in one step or not at all; line files that survive a torn end."""

from __future__ import annotations

import fcntl
import json
import multiprocessing

import numpy as np
import pytest

from posttrain.base.files import append_jsonl, read_jsonl, write_json, write_text
from posttrain.errors import WorkError

fork = multiprocessing.get_context("fork")


def test_json_holds_what_json_can(tmp_path):
    value = {"nan": float("nan"), "inf": [float("-inf")], "n": np.float32(0.5), "a": np.arange(2)}
    write_json(tmp_path / "deep/er/x.json", value | {"path": tmp_path, "é": (1, None, True)})
    assert json.loads((tmp_path / "deep/er/x.json").read_text("utf-8")) == {
        "nan": None,
        "inf": [None],
        "n": 0.5,
        "a": [0, 1],
        "path": str(tmp_path),
        "é": [1, None, True],
    }


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(tmp_path):
    write_text(tmp_path / "x", "old")
    with pytest.raises(TypeError):
        write_json(tmp_path / "x", {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x", "new \ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"
    with pytest.raises(WorkError, match="cannot write .*/x/y"):
        write_text(tmp_path / "x" / "y", "no folder")
    with pytest.raises(WorkError, match="cannot append"):
        append_jsonl(tmp_path / "none" / "y", {})


def test_a_reader_that_has_the_old_file_open_keeps_it_whole(tmp_path):
    write_text(tmp_path / "x", "old" * 1000)
    with open(tmp_path / "x") as reader:
        write_text(tmp_path / "x", "new")
        assert reader.read() == "old" * 1000
    assert (tmp_path / "x").read_text() == "new"


def test_lines_in_order_and_no_file_is_no_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    assert read_jsonl(path) == []
    for i in range(3):
        append_jsonl(path, {"i": i, "loss": float("nan"), "text": "a\nb"})
    assert read_jsonl(path) == [{"i": i, "loss": None, "text": "a\nb"} for i in range(3)]
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("torn", ['{"i": 1', "{", '{"text": "\xc3', "x" * 200_000])
def test_a_torn_last_line_is_ignored_and_then_cut_off(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    append_jsonl(path, {"i": 0})
    with open(path, "ab") as file:
        file.write(torn.encode("latin-1"))
    assert read_jsonl(path) == [{"i": 0}]
    append_jsonl(path, {"i": 2})
    assert read_jsonl(path) == [{"i": 0}, {"i": 2}]


def test_a_last_line_that_only_lacks_its_newline_counts(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"i": 0}')
    assert read_jsonl(path) == [{"i": 0}]
    append_jsonl(path, {"i": 1})
    assert read_jsonl(path) == [{"i": 0}, {"i": 1}]


def test_damage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"i": 0}\n{"i": \n{"i": 2}\n')
    with pytest.raises(WorkError, match=r"m\.jsonl:2: not JSON"):
        read_jsonl(path)


def _append_many(path, who):
    for i in range(100):
        append_jsonl(path, {"who": who, "i": i, "pad": "x" * 5000})


def test_two_writers_do_not_tear_each_others_lines(tmp_path):
    children = [fork.Process(target=_append_many, args=(tmp_path / "m", w)) for w in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join()
    lines = read_jsonl(tmp_path / "m")
    assert len(lines) == 200
    assert [line["i"] for line in lines if line["who"] == "a"] == list(range(100))


def test_a_writer_waits_for_its_turn(tmp_path):
    """Else it would take a line that is being written for a torn one, and cut it off."""
    path = tmp_path / "m"
    with open(path, "a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(b'{"half": ')
        held.flush()
        child = fork.Process(target=append_jsonl, args=(path, {"i": 1}), daemon=True)
        child.start()
        child.join(0.3)
        assert child.is_alive()
        held.write(b"1}\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_UN)  # closing is not enough: the child has inherited the file
    child.join(20)
    assert read_jsonl(path) == [{"half": 1}, {"i": 1}]
