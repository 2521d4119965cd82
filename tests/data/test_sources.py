"""Sources: every format read back, every kind of broken file named with its line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from posttrain.data.sources import list_files, open_rows
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source

ROWS = [{"prompt": "1+1=", "completion": "02"}, {"prompt": "é😀", "completion": "a\nb"}]


def source(path, **more) -> Source:
    return Source(name="numbers", path=str(path), **more)


def rows_of(path, **more) -> list[dict]:
    rows = open_rows(source(path, **more))
    found = [row for _, row in rows]
    assert len(rows) == len(found)
    return found


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def write_jsonl(path):
    path.write_text(lines(ROWS), encoding="utf-8")


def write_gz(path):
    path.write_bytes(gzip.compress(lines(ROWS).encode()))


def write_zst(path):
    path.write_bytes(zst(lines(ROWS).encode()))


def zst(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def write_json_zst(path):
    path.write_bytes(zst(json.dumps(ROWS).encode()))


def write_csv_zst(path):
    path.write_bytes(zst('prompt,completion\r\n1+1=,02\r\né😀,"a\nb"\r\n'.encode()))


def write_json(path):
    path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")


def write_csv(path):
    path.write_bytes('prompt,completion\r\n1+1=,02\r\né😀,"a\nb"\r\n'.encode())


def write_parquet(path):
    parquet.write_table(table(), path)


def write_arrow_file(path):
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table().schema) as writer:
        writer.write_table(table())


def write_arrow_stream(path):
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table().schema) as writer:
        writer.write_table(table(), max_chunksize=1)


@pytest.mark.parametrize(
    ("name", "write", "where"),
    [
        ("a.jsonl", write_jsonl, ["a.jsonl:1", "a.jsonl:2"]),
        ("a.NDJSON", write_jsonl, ["a.NDJSON:1", "a.NDJSON:2"]),
        ("a.jsonl.gz", write_gz, ["a.jsonl.gz:1", "a.jsonl.gz:2"]),
        ("a.jsonl.zst", write_zst, ["a.jsonl.zst:1", "a.jsonl.zst:2"]),
        ("a.JSON.ZST", write_json_zst, ["a.JSON.ZST[0]", "a.JSON.ZST[1]"]),
        ("a.csv.zst", write_csv_zst, ["a.csv.zst:2", "a.csv.zst:4"]),
        ("a.json", write_json, ["a.json[0]", "a.json[1]"]),
        ("b.json", write_jsonl, ["b.json:1", "b.json:2"]),
        ("a.csv", write_csv, ["a.csv:2", "a.csv:4"]),
        ("a.parquet", write_parquet, ["a.parquet[0]", "a.parquet[1]"]),
        ("a.arrow", write_arrow_file, ["a.arrow[0]", "a.arrow[1]"]),
        ("b.arrow", write_arrow_stream, ["b.arrow[0]", "b.arrow[1]"]),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, write, where):
    path = tmp_path / name
    write(path)
    rows = open_rows(source(path))
    assert [row for _, row in rows] == ROWS
    assert [row for _, row in rows] == ROWS  # a second pass, as the second epoch's
    assert [place for place, _ in rows] == [str(tmp_path / part) for part in where]
    assert len(rows) == 2
    assert rows.files == [{"path": str(path), "bytes": path.stat().st_size}]
    assert list_files(source(path)) == rows.files


def test_bom_crlf_blank_lines_and_line_separators_inside_strings(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b\xe2\x80\xa8c"}\r\n\n{"text": "d"}')
    rows = open_rows(source(path))
    assert [row["text"] for _, row in rows] == ["a", "b\u2028c", "d"]
    assert [place.rpartition(":")[2] for place, _ in rows] == ["1", "4", "6"]
    assert len(rows) == 3


def test_bom_of_a_csv(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfq,a\n1,02\n")
    assert rows_of(tmp_path / "a.csv") == [{"q": "1", "a": "02"}]


def test_reading_is_lazy(tmp_path):
    """A broken third line is met after two good rows: nothing reads ahead of the consumer."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nnot json\n')
    rows = open_rows(source(path))
    stream = iter(rows)
    assert [next(stream)[1]["text"], next(stream)[1]["text"]] == ["a", "b"]
    assert len(rows) == 3
    with pytest.raises(RequestError, match=r"a\.jsonl:3: broken JSON: .* column 1"):
        next(stream)


GOOD = b'{"text": "a"}\n'
LONG = b"\x28\xb5\x2f\xfd\x04\xa8" + b"\x01\x00\x00"
"""The head of a zstd frame with a window of 2 GiB, as `zstd --long=31` writes it, and an empty block."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + b'{"text": }\n', r"a\.jsonl:2: broken JSON: Expecting value.*column 10"),
        ("a.jsonl", GOOD + b"[1, 2]\n", r"a\.jsonl:2: a row must be a JSON object, .*an array"),
        ("a.jsonl", GOOD + b"null\n", r"a\.jsonl:2: .* not null"),
        ("a.jsonl", GOOD + b'{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 \(byte 11"),
        ("a.jsonl", GOOD + b"[" * 200_000 + b"\n", r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", GOOD + b'{"n": ' + b"9" * 5000 + b"}\n", r"a\.jsonl:2: broken JSON: Exceeds"),
        ("a.jsonl", "\ufeff{}".encode("utf-16"), r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", b"", r"source 'numbers': .*a\.jsonl has no rows"),
        ("a.jsonl", b"\n \n", r"has no rows"),
        ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz: cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(GOOD * 9, mtime=0)[:-12], r"a\.jsonl\.gz: cannot be read"),
        ("a.jsonl.zst", b"not zstd", r"a\.jsonl\.zst: cannot be read: ZSTD decompress failed: Unknown frame"),
        ("a.jsonl.zst", zst(GOOD * 9)[:-5], r"a\.jsonl\.zst: cannot be read: Truncated compressed stream"),
        ("a.jsonl.zst", zst(GOOD * 9) + b"more", r"a\.jsonl\.zst: cannot be read: ZSTD decompress failed"),
        ("a.jsonl.zst", zst(GOOD + b"{\n"), r"a\.jsonl\.zst:2: broken JSON"),
        ("a.jsonl.zst", b"", r"has no rows"),
        ("a.jsonl.zst", LONG, r"too much memory.*zstd --long: write it again without"),
        ("a.jsonl", GOOD + b'{"text": "\x00"}\n', r"a\.jsonl:2: broken JSON: Invalid control character"),
        ("a.jsonl", GOOD + b"\x00\x00\n", r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", GOOD + b'{"text": "\xed\xa0\x80"}\n', r"a\.jsonl:2: not UTF-8 \(byte 11"),
        ("a.json", b'[{"a": 1},\n {"a": }]', r"a\.json:2: broken JSON: .* column 8"),
        ("a.json", b'[{"a": 1}, 3]', r"a\.json\[1\]: a row must be .* not a number"),
        ("a.json", b'{\n "a": 1\n}', r"a\.json: contains one object; rows must be an array"),
        ("a.json", b"[" * 9 + b'{"a": ' + b"[" * 200_000 + b"\n", r"a\.json: broken JSON"),
        ("a.json", b'{"a": ' + b"[" * 200_000 + b"\n", r"a\.json: broken JSON"),
        ("a.json", b'[\n"\xff"]', r"a\.json:2: not UTF-8"),
        ("a.json", b"[]", r"has no rows"),
        ("a.csv", b"q,a\n1,2\n1,2,3\n", r"a\.csv:3: 3 cells, but the header has 2 columns"),
        ("a.csv", b"q,a,q\n1,2,3\n", r"a\.csv:1: the header has the column 'q' twice; rename"),
        ("a.csv", b",q,a\n0,1,2\n", r"a\.csv:1: column 1 of the header has no name; .*index=False"),
        ("a.csv", b'q,a\n1,"2\n', r"a\.csv:\d: broken CSV"),
        ("a.csv", b"q,a\n1,2\n\xff,2\n", r"a\.csv:3: not UTF-8"),
        ("a.csv", b"q,a\n", r"has no rows"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: not a Parquet file"),
        ("a.arrow", b"no arrow at all", r"a\.arrow: not an Arrow file"),
        ("a.arrow", b"", r"a\.arrow"),
        ("a.txt", b"hello", r"a\.txt does not end in one of \.jsonl, \.ndjson"),
        ("a.zst", b"", r"does not end in one of"),
        ("a.arrow.zst", b"", r"does not end in one of"),
        ("a.parquet.gz", b"", r"does not end in one of"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message):
        list(open_rows(source(tmp_path / name)))


def test_a_folder_is_read_sorted_and_without_what_is_no_data(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    (tmp_path / "c.csv").write_text("text\nc\n")
    (tmp_path / ".hidden.jsonl").write_text("broken")
    (tmp_path / "README.md").write_text("broken")
    (tmp_path / "LICENSE").write_text("broken")
    (tmp_path / "sub.jsonl").mkdir()
    assert [row["text"] for row in rows_of(tmp_path)] == ["a", "b", "c"]
    assert [row["text"] for row in rows_of(tmp_path / "*.[jc]s*")] == ["a", "b", "c"]
    assert len(list_files(source(tmp_path))) == 3


def test_the_order_is_not_the_disks(tmp_path, monkeypatch):
    import glob
    from pathlib import Path

    names = [tmp_path / f"{letter}.jsonl" for letter in "bca"]
    for path in names:
        path.write_text(lines([{"text": path.stem}]))
    monkeypatch.setattr(glob, "glob", lambda *_, **__: [str(path) for path in names])
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(names))
    for path in (tmp_path, tmp_path / "*.jsonl"):
        assert [row["text"] for row in rows_of(path)] == ["a", "b", "c"]


def test_a_folder_that_datasets_saved(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert rows_of(tmp_path / "saved") == ROWS


def test_a_file_whose_name_holds_glob_characters(tmp_path):
    path = tmp_path / "a[1].jsonl"
    write_jsonl(path)
    assert rows_of(path) == ROWS


def test_missing_paths_say_what_is_near(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(lines(ROWS))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    (tmp_path / "nested" / "deep").mkdir(parents=True)
    for path, message in [
        ("data/trian.jsonl", r"source 'numbers': no such file.*data/trian\.jsonl.*'train\.jsonl'"),
        ("dta/train.jsonl", r"dta/train\.jsonl \(there is no dta\) \(did you mean 'data'"),
        ("./data/x/y", r"there is no data/x"),
        ("data/*.parquet", r"no readable file matches data/\*\.parquet"),
        ("empty", r"the folder empty is empty"),
        ("notes", r"no file ending in .*\(it has: a\.txt\)"),
        ("nested", r"to read its subfolders, write nested/\*\*/\*\.jsonl"),
        ("", r"the path is empty .*environment variable"),
        ("  ", r"the path is empty"),
        ("$DATA/train.jsonl", r"\$NAME is not expanded in a recipe; write \$\{oc\.env:NAME\}"),
        ("gsm8k", r"no such file or folder: gsm8k"),
    ]:
        with pytest.raises(RequestError, match=message):
            list_files(source(path))
        with pytest.raises(RequestError, match=message):
            open_rows(source(path))


def test_exactly_one_origin_and_known_options(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(RequestError, match="set either path or generator"):
        open_rows(Source(name="x"))
    with pytest.raises(RequestError, match="set either path or generator"):
        open_rows(Source(name="x", path="a.jsonl", generator="addition"))
    with pytest.raises(RequestError, match="'strip_calculater' .did you mean 'strip_calculator'"):
        list_files(source(tmp_path / "a.jsonl", options={"strip_calculater": True}))
    with pytest.raises(RequestError, match="must be true or false, not 'yes'"):
        list_files(source(tmp_path / "a.jsonl", options={"strip_calculator": "yes"}))


def test_the_fingerprint_is_the_content(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    write_jsonl(tmp_path / "b.jsonl")
    first = open_rows(source(tmp_path / "a.jsonl")).fingerprint
    assert open_rows(source(tmp_path / "b.jsonl")).fingerprint == first
    (tmp_path / "b.jsonl").write_text(lines(ROWS).replace("02", "03"))
    assert open_rows(source(tmp_path / "b.jsonl")).fingerprint != first
    assert open_rows(source(tmp_path)).fingerprint != first


def test_listing_files_needs_no_heavy_library(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    code = (
        "import sys; from posttrain.data.sources import list_files, open_rows\n"
        "from posttrain.recipe.schema import Source\n"
        f"s = Source(name='a', path={str(tmp_path / 'a.jsonl')!r})\n"
        "assert list_files(s) == open_rows(s).files\n"
        "heavy = {'torch', 'datasets', 'pyarrow', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=str(tmp_path), env=_env())


def _env() -> dict[str, str]:
    import os

    import posttrain

    folder = os.path.dirname(os.path.dirname(posttrain.__file__))
    return {**os.environ, "PYTHONPATH": folder}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k/train.jsonl", 7473),
        ("aqua_rat/test.json", 254),
        ("instruct_small", 1100),
        ("hh_rlhf_harmless/*.gz", 2312),
        ("math/train_answers.json", 7474),
    ],
)
def test_real_data(data_dir, name, count):
    rows = open_rows(source(data_dir / name))
    assert len(rows) == count == sum(1 for _ in rows)
