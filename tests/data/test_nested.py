"""Arrow gives every row the keys of all: what a row did not have is not trained, what was null stays null."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from posttrain.data.hub import HubRows
from posttrain.data.nested import has_nulls, has_structs, row_reader
from posttrain.data.prepare import build
from posttrain.data.sources import open_rows
from posttrain.data.tokenizers import load_tokenizer
from posttrain.recipe.schema import Data, Loss, Source
from tests.data.columnar import write_table


def tool(name: str, /, **properties) -> dict:
    return {"name": name, "parameters": {"type": "object", "properties": properties}}


def called(name: str, /, **arguments) -> dict:
    return {"role": "assistant", "content": None, "tool_calls": [{"name": name, "arguments": arguments}]}


ROWS = [
    {
        "messages": [{"role": "user", "content": "2+3?"}, called("add", a=2, b={"exact": 3})],
        "tools": [tool("add", a={"type": "integer"}), tool("now")],
        "note": None,
    },
    {
        "messages": [{"role": "user", "content": "Oslo?"}, called("city", name="Oslo"), called("now")],
        "tools": [tool("city", name={"type": "string", "enum": ["Oslo"]})],
        "note": "x",
    },
]
"""As JSON lines have them."""


def written(path, rows):
    table = pa.Table.from_pylist(rows)
    if path.suffix in (".parquet", ".arrow"):
        write_table(path, table)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


def rows_of(path) -> list[dict]:
    return [row for _, row in open_rows(Source(name="s", path=str(path)))]


def content(row: dict) -> dict:
    """Without the content of calls, which may be null or missing."""
    turns = [{k: v for k, v in turn.items() if v is not None} for turn in row["messages"]]
    return row | {"messages": turns}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "saved"])
def test_keys_of_other_rows_are_left_out(tmp_path, name):
    found = rows_of(written(tmp_path / name, ROWS))
    assert [content(row) for row in found] == [content(row) for row in ROWS]
    chosen = [row for *_, row in open_rows(Source("s", path=str(tmp_path / name))).chosen(np.array([1]))]
    assert chosen == found[1:]


def test_of_the_hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    written(tmp_path / "set" / "train.parquet", ROWS)
    hub = HubRows(Source("s", path=str(tmp_path / "set")))
    assert [content(row) for _, row in hub] == [content(row) for row in ROWS]
    assert [content(row) for *_, row in hub.chosen(np.arange(2))] == [content(row) for row in ROWS]


def test_the_tokens_are_those_of_json_lines(tmp_path):
    tokenizer, found = load_tokenizer("builtin:bytes"), {}
    for name in ("a.jsonl", "a.parquet", "saved"):
        path = written(tmp_path / name, ROWS)
        source = Source("s", path=str(path), roles="loose")
        data = Data([source], template="chatml", cache_dir=str(tmp_path / "cache"), max_length=2048)
        (table,) = build(data, Loss(), tokenizer).tables
        found[name] = [tokenizer.decode(table[i].input_ids) for i in range(len(table))]
    assert "null" not in "".join(found["a.jsonl"]) and '{"a": 2' in found["a.jsonl"][0]
    assert found["a.parquet"] == found["saved"] == found["a.jsonl"]


def test_null_stays_where_its_reader_knows_it(tmp_path):
    """The content of a message (a lost row, not a refusal), a rating, a column, what maps and JSON hold."""
    kind = pa.schema(
        {
            "messages": pa.list_(
                pa.struct({"role": pa.string(), "content": pa.string(), "name": pa.string()})
            ),
            "completions": pa.list_(pa.struct({"response": pa.string(), "overall_score": pa.float64()})),
            "prompt": pa.string(),
            "map": pa.map_(pa.string(), pa.struct({"a": pa.int64(), "b": pa.int64()})),
            "calls": pa.struct({"arguments": pa.struct({"role": pa.string(), "content": pa.string()})}),
            "gone": pa.struct({"deep": pa.struct({"a": pa.int64()}), "b": pa.int64()}),
        }
    )
    row = {
        "messages": [{"role": "user", "content": None}],
        "completions": [{"response": "r", "overall_score": None}],
        "prompt": None,
        "map": [("x", {"a": 1}), ("y", None)],
        "calls": {"arguments": {"role": "a"}},
        "gone": {"deep": {"a": None}, "b": 3},
    }
    parquet.write_table(pa.Table.from_pylist([row], kind), tmp_path / "a.parquet")
    (found,) = rows_of(tmp_path / "a.parquet")
    assert found == row | {"map": {"x": {"a": 1}, "y": None}, "gone": {"b": 3}}


def struct(*names, **typed) -> pa.DataType:
    """Of integers, but for the keys that are `typed`."""
    return pa.struct([*((name, pa.int64()) for name in names), *typed.items()])


MESSAGE, SHARED, RATED = struct("role", "content", "name"), struct("from", "value", "x"), struct("text", "n")


@pytest.mark.parametrize(
    ("name", "kind", "value", "want"),
    [
        ("c", struct("a", "b"), {"a": 0, "b": None}, {"a": 0}),
        ("c", struct("a", "b"), None, None),
        ("c", struct("a", "b"), {"a": None, "b": None}, None),
        ("arguments", struct("a"), {"a": None}, {}),
        ("parameters", struct("a"), {"a": None}, {}),
        ("properties", struct("a"), {"a": None}, {}),
        ("c", struct("a", deep=struct("b")), {"a": 1, "deep": {"b": None}}, {"a": 1}),
        ("c", struct(arguments=struct("b")), {"arguments": {"b": None}}, {"arguments": {}}),
        ("c", pa.list_(struct("a")), None, None),
        ("c", pa.list_(struct("a")), [{"a": 1}, {"a": None}, None], [{"a": 1}, None, None]),
        ("c", pa.large_list(struct("a", "b")), [{"a": 1, "b": None}], [{"a": 1}]),
        ("c", pa.list_(struct("a", "b"), 1), [{"a": 1, "b": None}], [{"a": 1}]),
        # messages
        ("c", struct("role", "content"), {"role": 1, "content": None}, {"role": 1, "content": None}),
        ("c", struct("from", "value"), {"from": 1, "value": None}, {"from": 1, "value": None}),
        (
            "c",
            pa.list_(MESSAGE),
            [{"role": 1, "content": None, "name": None}],
            [{"role": 1, "content": None}],
        ),
        ("c", pa.list_(SHARED), [{"from": 1, "value": None, "x": None}], [{"from": 1, "value": None}]),
        ("c", MESSAGE, {"role": None, "content": None, "name": 1}, {"content": None, "name": 1}),
        ("c", struct("role", "value"), {"role": 1, "value": None}, {"role": 1}),
        ("c", struct("from", "content"), {"from": 1, "content": None}, {"from": 1}),
        *(
            (name, pa.list_(MESSAGE), [{"role": 1, "content": None, "name": 2}], [{"role": 1, "name": 2}])
            for name in ("arguments", "tools", "tool_calls", "tool_call", "function_call", "function")
        ),
        (
            "c",
            struct(tools=struct(x=MESSAGE)),
            {"tools": {"x": {"role": 1, "content": None, "name": None}}},
            {"tools": {"x": {"role": 1}}},
        ),
        # rated replies, each an entry of a column
        ("c", pa.list_(RATED), [{"text": 1, "n": None}], [{"text": 1, "n": None}]),
        ("c", pa.list_(pa.list_(RATED)), [[{"text": None, "n": 1}]], [[{"text": None, "n": 1}]]),
        ("c", RATED, {"text": 1, "n": None}, {"text": 1}),
        ("c", struct(x=pa.list_(RATED)), {"x": [{"text": 1, "n": None}]}, {"x": [{"text": 1}]}),
        (
            "c",
            pa.list_(struct("a", x=RATED)),
            [{"a": 1, "x": {"text": 1, "n": None}}],
            [{"a": 1, "x": {"text": 1}}],
        ),
        ("tools", pa.list_(RATED), [{"text": 1, "n": None}], [{"text": 1}]),
        # maps
        ("c", pa.map_(pa.string(), pa.int64()), [("x", 1), ("y", None)], {"x": 1, "y": None}),
        ("c", pa.map_(pa.string(), pa.int64()), None, None),
        (
            "c",
            pa.map_(pa.string(), RATED),
            [("x", {"text": 1, "n": None}), ("y", None)],
            {"x": {"text": 1}, "y": None},
        ),
        ("c", struct(m=pa.map_(pa.string(), pa.int64())), {"m": []}, {"m": {}}),
        (
            "tools",
            pa.map_(pa.string(), MESSAGE),
            [("x", {"role": 1, "content": None, "name": None})],
            {"x": {"role": 1}},
        ),
        # JSON
        ("c", pa.json_(), '{"a": null}', {"a": None}),
        ("c", pa.json_(), None, None),
        ("c", pa.list_(pa.json_()), ["[1]", None], [[1], None]),
        ("c", struct("a", j=pa.json_()), {"a": None, "j": None}, {"j": None}),
        # as they are
        ("c", pa.list_(pa.int64()), [1, None], [1, None]),
        ("c", pa.string(), None, None),
        ("c", pa.struct([]), {}, {}),
    ],
)
def test_values_as_they_were_before_they_were_columns(name, kind, value, want):
    schema = pa.schema({"other": pa.string(), name: kind})
    assert row_reader(schema)({"other": None, name: value}) == {"other": None, name: want}


def test_json_stays_text_where_it_is_not_to_be_parsed():
    kind = {"j": pa.json_(), "s": struct("a", j=pa.json_(), m=pa.map_(pa.string(), pa.json_()))}
    row = {"j": "[1]", "s": {"a": None, "j": "{}", "m": [("x", "2")]}}
    assert row_reader(pa.schema(kind), parse=False)(row) == {"j": "[1]", "s": {"j": "{}", "m": {"x": "2"}}}
    assert row_reader(pa.schema(kind))(row) == {"j": [1], "s": {"j": {}, "m": {"x": 2}}}


MAP = pa.map_(pa.string(), pa.int64())


@pytest.mark.parametrize(
    ("kind", "values", "structs", "nulls"),
    [
        (pa.int64(), [1, None], False, False),
        (pa.list_(pa.int64()), [[1, None], None], False, False),
        (struct("a", "b"), [{"a": 1, "b": 2}], True, False),
        (struct("a", "b"), [{"a": 1, "b": 2}, {"a": 1, "b": None}], True, True),
        (struct(x=struct("a")), [{"x": {"a": None}}], True, True),
        (struct(x=pa.list_(pa.int64())), [{"x": [None]}], True, False),
        (pa.list_(struct("a")), [[{"a": 1}], None], True, False),
        (pa.list_(struct("a")), [[{"a": 1}], [{"a": 2}, {"a": None}]], True, True),
        (pa.large_list(struct("a")), [[{"a": None}]], True, True),
        (pa.list_(struct("a"), 1), [[{"a": None}]], True, True),
        (MAP, [], True, True),
        (pa.list_(MAP), [], True, True),
        (struct(m=MAP), [{"m": []}], True, True),
    ],
)
def test_columns_from_which_something_is_left_out(kind, values, structs, nulls):
    assert has_structs(kind) == structs
    assert has_nulls(pa.array(values, kind)) == nulls


def test_the_name_of_a_table_changes_only_where_a_null_is_left_out(tmp_path):
    """As `fingerprint` was before: SHA-256 over that of the file."""
    import hashlib

    plain = [{"messages": [{"role": "user", "content": "a"}], "tags": [None, "t"], "note": None}]
    for name in ("a.parquet", "a.arrow", "a.jsonl"):
        for rows, same in ((plain, True), (ROWS, name == "a.jsonl")):
            path = written(tmp_path / name, rows)
            digest = hashlib.sha256(path.read_bytes()).digest()
            source = open_rows(Source("s", path=str(path)))
            assert (source.fingerprint == hashlib.sha256(digest).hexdigest()) == same, (name, rows)
