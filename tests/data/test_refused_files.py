"""Files that are cut off, damaged or none: one sentence with the name, nothing read short, no traceback."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from posttrain.data.hub import HubRows
from posttrain.data.sources import list_files, open_rows
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source
from tests.data.columnar import write_table

ROWS = [{"text": f"row {n}"} for n in range(9)]


def source(path, **more) -> Source:
    return Source(name="numbers", path=str(path), **more)


def rows_of(path, **more) -> list[dict]:
    return [row for _, row in open_rows(source(path, **more))]


def stream(path) -> bytes:
    """Three batches of three rows."""
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path.read_bytes()


def test_a_stream_is_read_to_its_end_and_no_further(tmp_path):
    path = tmp_path / "a.arrow"
    whole = stream(path)
    assert rows_of(path) == ROWS
    third = whole.rindex(b"row 6") - 1
    border = max(n for n in range(third) if whole[n : n + 4] == b"\xff" * 4)  # of the second and third batch
    for content, message in (
        (whole[:-8], "the stream does not end; the file was cut off"),
        (whole[:border], "the stream does not end; the file was cut off"),
        (whole[: border + 40], "a.arrow"),
        (whole + whole, f"the stream ends at byte {len(whole)}, but the file goes on"),
        (whole + b"x", f"the stream ends at byte {len(whole)}, but the file goes on"),
    ):
        path.write_bytes(content)
        with pytest.raises(RequestError, match=message):
            rows_of(path)
        with pytest.raises(RequestError, match=message):
            len(open_rows(source(path)))


def test_streams_of_a_store(tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    whole = stream(tmp_path / "a.arrow")
    fs.pipe("/end.arrow", whole)
    assert rows_of("memory://end.arrow") == ROWS
    fs.pipe("/end.arrow", whole[:-8])
    with pytest.raises(RequestError, match="memory://end.arrow: broken: the stream does not end"):
        rows_of("memory://end.arrow")


def test_what_datasets_saves_has_an_end(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    assert rows_of(tmp_path / "saved") == ROWS


def text(raw: bytes) -> pa.Array:
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, len(raw)], "<i4")), pa.py_buffer(raw)]
    )


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("column", [text(b"a\xffb"), pa.array([2**62], pa.timestamp("us"))])
def test_values_that_python_does_not_have(tmp_path, name, column):
    import datasets

    table = pa.table({"text": ["a"], "other": column})
    write_table(tmp_path / name, table)
    with pytest.raises(RequestError, match=rf"{name}: broken after row 0: "):
        rows_of(tmp_path / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset(table))
        hub = HubRows(source("org/set"))
    for reading in (hub, hub.chosen(np.array([0]))):
        with pytest.raises(RequestError, match=r"org/set\[0\]: cannot be read: "):
            list(reading)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_columns_of_one_name(tmp_path, name):
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["n", "text", "text"])
    write_table(tmp_path / name, table)
    with pytest.raises(RequestError, match=f"{name}: has several columns of the name 'text'"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_lines_that_are_all_broken(tmp_path, name):
    (tmp_path / name).write_text('{"a": \n{"b": \n')
    with pytest.raises(RequestError, match=r"source 'numbers': no row can be read: .*broken JSON"):
        open_rows(source(tmp_path / name, on_error="skip"))


def test_a_broken_line_under_json_is_skipped_as_under_jsonl(tmp_path):
    good = json.dumps(ROWS[0])
    for lines in ([good, "{", good], ['{"a"', good, good]):
        found = []
        for name in ("a.jsonl", "a.json"):
            (tmp_path / name).write_text("\n".join(lines))
            rows = open_rows(source(tmp_path / name, on_error="skip"))
            found.append([getattr(row, "error", row) and row for _, row in rows])
            assert len(rows) == 3
        assert found[0] == found[1] and found[0].count(ROWS[0]) == 2


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, message in (
        (tmp_path / "pipe.jsonl", "source 'numbers': .*pipe.jsonl is neither a file nor a folder"),
        ("~nouser-of-this-name/x.jsonl", "source 'numbers': ~nouser-of-this-name/x.jsonl: "),
        (tmp_path / f"{'x' * 300}.jsonl", "source 'numbers': .*: File name too long"),
        (f"{tmp_path}/{'x' * 300}/*.jsonl", "source 'numbers': "),
        ("/dev/null", "source 'numbers': /dev/null"),
    ):
        for read in (list_files, open_rows):
            with pytest.raises(RequestError, match=message):
                read(source(path))


def test_a_glob_gives_a_file_once(tmp_path):
    """Whatever links lead to it; by its own name where that matches, too."""
    for name in ("b", "c"):
        (tmp_path / "loop" / name).mkdir(parents=True)
        (tmp_path / "loop" / name / "rows.jsonl").write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "loop" / "a").symlink_to(tmp_path / "loop" / "b")
    (tmp_path / "loop" / "c" / "more.jsonl").symlink_to(tmp_path / "loop" / "b" / "rows.jsonl")
    for pattern in ("loop/*/*.jsonl", "loop/**/*.jsonl"):
        paths = [entry["path"] for entry in list_files(source(tmp_path / pattern))]
        assert paths == [str(tmp_path / "loop" / name / "rows.jsonl") for name in "bc"]
    (only,) = list_files(source(tmp_path / "loop" / "a*" / "*.jsonl"))
    assert only["path"] == str(tmp_path / "loop" / "a" / "rows.jsonl")


def test_pieces_of_rows_are_bounded_by_bytes(tmp_path, monkeypatch):
    from posttrain.data import columnar

    monkeypatch.setattr(columnar, "BYTES", 50_000)
    seen, to_pylist = [], columnar._pieces

    def pieces(batch, *rest):
        seen.append(batch.num_rows)
        return to_pylist(batch, *rest)

    monkeypatch.setattr(columnar, "_pieces", pieces)
    rows = [{"text": f"{n:04}" * 2500} for n in range(64)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", use_dictionary=False)
    assert rows_of(tmp_path / "a.parquet") == rows
    assert max(seen) <= 5, "rows of 10,000 bytes"
