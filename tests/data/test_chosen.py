"""Some rows of a source by their numbers: the same rows as a full pass gives, the others not parsed."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from posttrain.data import readers
from posttrain.data.sources import HubRows, open_rows
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source
from tests.data.columnar import write_table

ROWS = [{"prompt": f"{n}+1=", "completion": f"{n + 1:03d}"} for n in range(10)]


def source(path, **more) -> Source:
    return Source(name="numbers", path=str(path), **more)


def ints(*numbers) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def write_csv(path):
    path.write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS))


def write_parquet(path):
    parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4)


def write_arrow(path, new=pa.ipc.new_file):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as out, new(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


WRITERS = {
    "a.jsonl": lambda path: path.write_text("\n".join(json.dumps(row) + "\n" for row in ROWS)),
    "a.jsonl.gz": lambda p: p.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
    "b.arrow": lambda path: write_arrow(path, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", WRITERS)
def test_chosen_rows_are_those_of_a_full_pass(tmp_path, name):
    WRITERS[name](tmp_path / name)
    every = list(readers.read(tmp_path / name))
    assert [row for _, row in every] == ROWS
    rows = open_rows(source(tmp_path / name))
    for numbers in ([], [0], [9], [3, 4], [0, 2, 3, 7, 9], range(10), [8, 10, 99], [10]):
        wanted = [(n, *every[n]) for n in numbers if n < 10]
        assert list(rows.chosen(ints(*numbers))) == wanted
        assert list(readers.read(tmp_path / name, ints(*numbers))) == [every[n] for n in numbers if n < 10]


def test_numbers_run_through_the_files_of_a_folder(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / name)
    rows = open_rows(source(tmp_path))
    every = list(rows)
    assert len(every) == len(rows) == 70
    numbers = ints(0, 9, 10, 11, 35, 36, 59, 60, 69, 70)
    assert list(rows.chosen(numbers)) == [(int(n), *every[n]) for n in numbers[:-1]]


def test_rows_of_generators_and_of_the_hub(monkeypatch):
    import datasets

    made = open_rows(Source(name="m", generator="multiplication", options={"train_size": 5}))
    every = list(made)
    assert list(made.chosen(ints(1, 4, 5))) == [(1, *every[1]), (4, *every[4])]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(ROWS))
    hub = HubRows(source("org/name"))
    assert list(hub.chosen(ints(2, 9, 12))) == [(2, "org/name[2]", ROWS[2]), (9, "org/name[9]", ROWS[9])]


def test_lines_that_are_not_chosen_are_not_parsed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 0}\nbroken\n\n{"n": 2}\nbroken\n')
    rows = open_rows(source(tmp_path / "a.jsonl"))
    assert [(n, row["n"]) for n, _, row in rows.chosen(ints(0, 2))] == [(0, 0), (2, 2)]
    with pytest.raises(RequestError, match=r"a\.jsonl:2: broken JSON"):
        list(rows.chosen(ints(0, 1)))


def test_row_groups_without_a_chosen_row_are_not_read(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path)
    group = parquet.ParquetFile(path).metadata.row_group(1)
    start = min(group.column(i).dictionary_page_offset or group.column(i).data_page_offset for i in range(2))
    content = bytearray(path.read_bytes())
    content[start : start + 60] = b"\xff" * 60
    path.write_bytes(content)
    numbers = ints(0, 3, 8, 9)  # groups are rows 0-3, 4-7, 8-9
    assert [n for n, _, row in open_rows(source(path)).chosen(numbers) if row == ROWS[n]] == [0, 3, 8, 9]
    with pytest.raises(RequestError, match=r"a\.parquet"):
        list(open_rows(source(path)).chosen(ints(0, 5)))


def test_a_batch_that_is_the_whole_file_becomes_python_objects_in_pieces(tmp_path, monkeypatch):
    """One batch of 5,000 rows: `where` and order hold over its pieces."""
    rows = [{"n": n} for n in range(5000)]
    table = pa.Table.from_pylist(rows)
    write_table(tmp_path / "a.arrow", table)
    found = list(readers.read(tmp_path / "a.arrow"))
    assert [row for _, row in found] == rows
    assert found[4999][0] == f"{tmp_path}/a.arrow[4999]"


def test_columns_of_the_type_json_are_parsed(tmp_path):
    """What `datasets` writes for objects whose keys differ from row to row."""
    import datasets

    features = datasets.Features({"a": datasets.List(datasets.Json()), "b": {"c": datasets.Json()}})
    rows = [{"a": [{"x": 0}, {"y": "z"}], "b": {"c": {"k": [1]}}}, {"a": None, "b": {"c": None}}]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "a.parquet"))
    assert list(made) == rows
    assert [row for _, row in open_rows(source(tmp_path / "saved"))] == rows
    assert [row for _, row in open_rows(source(tmp_path / "a.parquet"))] == rows


def test_broken_json_in_a_column_of_that_type_is_named(tmp_path):
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "{"]))
    table = pa.table({"a": column})
    write_table(tmp_path / "a.arrow", table)
    with pytest.raises(RequestError, match=r"a\.arrow\[1\]: broken JSON: Expecting"):
        [row for _, row in open_rows(source(tmp_path / "a.arrow"))]
