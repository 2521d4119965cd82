"""A writer that ends early: what of its rows stays for the next one, and what the next one makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from posttrain.data import table_writer
from posttrain.data.in_order import Ended
from posttrain.data.table import TokenTable
from posttrain.data.table_writer import TableWriter
from posttrain.data.tokens import TokenRow
from posttrain.errors import RequestError

STATS = {"fingerprint": "t"}


class Killed(BaseException):
    """In place of a kill."""


def row(*ids, p=None) -> TokenRow:
    """The first token is the prompt, the others are one segment."""
    ids = np.array(ids, np.int32)
    labels, segments = ids.copy(), np.ones(len(ids), np.int32)
    labels[0], segments[0] = -100, 0
    return TokenRow(ids, labels, segments, p)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def written(folder: Path, rows) -> TokenTable:
    with TableWriter(folder) as writer:
        assert writer.kept is None
        for number, each in enumerate(rows):
            writer.add(each, number)
        return writer.finish(STATS)


ROWS = [row(1, 2, 3), row(4, 5, p=0.5), row(6, 7, 8, 9), row(1, 9)]


@pytest.fixture
def cut(tmp_path) -> Path:
    """The part of a table `t` that was kept after two rows, and written further."""
    with pytest.raises(Killed), TableWriter(tmp_path / "t", resumable=True) as writer:
        assert writer.kept is None
        for number, each in enumerate(ROWS[:2]):
            writer.add(each, number)
        writer.keep({"read": 2, "names": ("a", "b")})
        writer.add(row(7, 7, 7), 2)
        writer._flush()
        writer.append("more.bin", b"begun after the record")
        raise Killed
    return tmp_path / ".partial-t"


def test_what_was_kept_is_taken_up(cut, tmp_path):
    assert sorted(content(cut)) == ["input_ids.bin", "marks.bin", "more.bin", "progress.json", "rows.bin"]
    with TableWriter(tmp_path / "t", resumable=True) as writer:
        assert writer.kept == {"read": 2, "names": ["a", "b"]}
        assert sorted(content(cut)) == ["input_ids.bin", "marks.bin", "progress.json", "rows.bin"]
        for number, each in enumerate(ROWS[2:], 2):
            writer.add(each, number)
        table = writer.finish(STATS)
    written(tmp_path / "whole" / "t", ROWS)
    assert content(table.folder) == content(tmp_path / "whole" / "t") and not cut.exists()
    counts = {"rows_kept": 4, "tokens": 11, "trained_tokens": 7, "segments": 4, "rows_with_p": 1}
    assert table.stats == STATS | counts and table.lengths.tolist() == [3, 2, 4, 2]


def test_what_is_kept_twice_is_taken_up_twice(cut, tmp_path):
    with pytest.raises(Killed), TableWriter(tmp_path / "t", resumable=True) as writer:
        writer.add(ROWS[2], 2)
        writer.keep({"read": 3})
        raise Killed
    with TableWriter(tmp_path / "t", resumable=True) as writer:
        assert writer.kept == {"read": 3}
        writer.add(ROWS[3], 3)
        table = writer.finish(STATS)
    assert content(table.folder) == content(written(tmp_path / "whole" / "t", ROWS).folder)


def test_what_was_taken_up_can_be_left(cut, tmp_path):
    with TableWriter(tmp_path / "t", resumable=True) as writer:
        writer.begin_again()
        assert writer.kept is None and content(cut) == {}
        writer.add(ROWS[3], 3)
        table = writer.finish(STATS)
    assert table.lengths.tolist() == [2] and table.stats["tokens"] == 2 and table.origin(0) == 3
    assert sorted(content(table.folder)) == ["input_ids.bin", "marks.bin", "rows.bin", "table.json"]


def test_a_record_without_a_state_is_not_taken_up(tmp_path):
    folder = tmp_path / "new" / "t"
    with pytest.raises(Killed), TableWriter(folder, resumable=True) as writer:
        writer.add(ROWS[0], 0)
        writer.keep(None)
        raise Killed
    with TableWriter(folder, resumable=True) as writer:
        assert writer.kept is None
        assert len(writer.finish(STATS)) == 0


@pytest.mark.parametrize("missing", ["files", "counts", "state", "table"])
def test_a_record_with_a_missing_key_is_not_taken_up(cut, tmp_path, missing):
    record = json.loads((cut / "progress.json").read_text())
    del record["hash"], record[missing]
    (cut / "progress.json").write_text(json.dumps(record | {"hash": table_writer._hash_of(record)}))
    with TableWriter(tmp_path / "t", resumable=True) as writer:
        assert writer.kept is None and content(cut) == {}


@pytest.mark.parametrize("name", ["input_ids.bin", "marks.bin", "rows.bin"])
@pytest.mark.parametrize("change", [lambda raw: raw[:-100], lambda raw: b"x" + raw[1:], None])
def test_a_part_whose_files_are_not_those_of_the_record_is_begun_again(cut, tmp_path, name, change):
    if change is None:
        (cut / name).unlink()
    else:
        (cut / name).write_bytes(change((cut / name).read_bytes()))
    with TableWriter(tmp_path / "t", resumable=True) as writer:
        assert writer.kept is None and content(cut) == {}
        writer.add(ROWS[0], 0)
        assert writer.finish(STATS).stats["rows_kept"] == 1


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (Killed(), True),
        (KeyboardInterrupt(), True),
        (KeyError(), True),  # a mistake of the program
        (Ended("a worker was killed"), True),
        (RequestError("a row is wrong"), False),
        (OSError("the disk is full"), False),
        (None, False),  # nothing is finished
    ],
)
def test_a_part_stays_where_the_rows_are_not_to_blame(tmp_path, error, stays):
    def write(resumable):
        with TableWriter(tmp_path / "t", resumable) as writer:
            writer.add(ROWS[0], 0)
            writer.keep(1)
            if error is not None:
                raise error

    for resumable in (False, True):
        try:
            write(resumable)
        except BaseException as found:
            assert found is error
        assert [each.name for each in tmp_path.iterdir()] == [".partial-t"] * (stays and resumable)


def test_tokens_are_written_when_a_buffer_of_them_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(table_writer, "BUFFER", 5)
    with TableWriter(tmp_path / "t") as writer:
        file, sizes = writer.temporary / "input_ids.bin", []
        for number, each in enumerate(ROWS):  # 3, 2, 4 and 2 tokens of 4 bytes
            writer.add(each, number)
            sizes.append(file.stat().st_size if file.exists() else 0)
        assert sizes == [0, 20, 20, 44]
        assert writer.finish(STATS).lengths.tolist() == [3, 2, 4, 2]


def test_ids_of_eight_bytes_are_written_as_four(tmp_path):
    wide = row(1, 2, 3)
    wide.input_ids = wide.input_ids.astype(np.int64)
    table = written(tmp_path / "t", [wide, ROWS[1]])
    assert [table[i].input_ids.tolist() for i in range(2)] == [[1, 2, 3], [4, 5]]


def test_something_else_in_the_place_of_the_table(tmp_path):
    (tmp_path / "t").write_text("mine")
    with pytest.raises(NotADirectoryError):
        written(tmp_path / "t", ROWS)
    assert content(tmp_path) == {"t": b"mine"}
