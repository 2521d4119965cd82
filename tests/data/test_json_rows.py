"""Keys that an object has twice: refused or skipped with file, line and key; never one of the values."""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.cells import Cell
from posttrain.data.json_rows import Broken, described, parse_array, parse_line
from posttrain.data.sources import open_rows
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source

GOOD = '{"prompt": "a", "completion": "b"}'
TWICE = [
    ('{"prompt": "a", "prompt": "b", "completion": "c"}', "prompt"),
    ('{"prompt": "a", "completion": "c", "prompt": "a"}', "prompt"),  # equal values, too
    ('{"prompt" : "a", "prompt"\t: "b"}', "prompt"),
    ('{"prompt":"a","\\u0070rompt":"b"}', "prompt"),  # the key by its code
    ('{"a\\"b": 1, "a\\"b": 2}', 'a"b'),
    ('{"a\\\\": 1, "a\\\\": 2}', "a\\"),
    ('{"": 1, "": 2}', ""),
    ('{"é:": 1, "é:": 2}', "é:"),
    ('{"b": {"x": 1, "x": 2}, "a": 3}', "x"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "x", "content": "b", "role": "y"}]}', "role"),
    ('{"m": [{"function": {"arguments": {"x": [[{"n": 1, "n": 1}]]}}}]}', "n"),
]
ONCE = [
    '{"prompt": "\\"prompt\\": 1, \\"prompt\\": 2", "completion": ":"}',
    '{"prompt": "a\\\\", "completion": "\\":\\":"}',
    '{"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 1}]}',
    '{"prompt": "{\\"a\\" : 1}", "completion" \r: " :"}',
]


def rows(path, **more) -> list[dict]:
    return [row for _, row in open_rows(Source(name="s", path=str(path), **more))]


@pytest.mark.parametrize(("line", "key"), TWICE)
def test_a_key_that_is_there_twice_is_refused_or_skipped(tmp_path, line, key):
    said = f"one object has the key {key!r} twice; keep one of them"
    for name, place, text in (
        ("a.jsonl", ":2", f"{GOOD}\n{line}\n{GOOD}\n"),
        ("a.json", ":2", f"{GOOD}\n{line}\n{GOOD}\n"),
        ("b.json", "[1]", f"[{GOOD}, {line},\n {GOOD}]"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(RequestError) as refused:
            rows(path)
        assert str(refused.value) == f"{path}{place}: {said}"
        source = open_rows(Source(name="s", path=str(path), on_error="skip"))
        (_, first), (where, broken), (_, last) = list(source)
        assert first == last == json.loads(GOOD) and len(source) == 3
        assert isinstance(broken, Broken) and broken.error == f"{where}: {said}"


@pytest.mark.parametrize("line", ONCE)
def test_text_that_looks_like_keys_is_none(tmp_path, line):
    assert parse_line(line.encode(), "a:1") == json.loads(line)
    (tmp_path / "a.json").write_text(f"[{line}]")
    assert rows(tmp_path / "a.json") == [json.loads(line)]


def test_the_first_row_of_an_array_is_refused_by_its_place(tmp_path):
    (tmp_path / "a.json").write_text(f"[{TWICE[0][0]}, {GOOD}]")
    with pytest.raises(RequestError, match=r"a\.json\[0\]: one object has the key 'prompt' twice"):
        rows(tmp_path / "a.json")


def test_entries_of_an_array_that_are_no_rows_are_skipped(tmp_path):
    (tmp_path / "a.json").write_text(f"[{GOOD}, 3, {GOOD}]")
    _, broken, _ = rows(tmp_path / "a.json", on_error="skip")
    assert broken.error == f"{tmp_path}/a.json[1]: a row must be a JSON object, not a number"
    with pytest.raises(RequestError, match=r"a\.json\[1\]: a row must be a JSON object, not a number"):
        rows(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", f"{GOOD} {GOOD}\n", ":1: broken JSON: Extra data at column 36"),
        (
            "a.jsonl",
            f"[{GOOD}]\n",
            ":1: a row must be a JSON object, not an array; a file that is an array is named .json",
        ),
        (
            "a.jsonl",
            f"[\n{GOOD}\n]\n",
            ":1: broken JSON: Expecting value at column 2; a file that is an array is named .json",
        ),
        ("a.jsonl", f"{GOOD}\n[3]\n", ":2: a row must be a JSON object, not an array"),
        ("a.jsonl", f"{GOOD}\n{{}}\n", ":2: the row is an empty object"),
        (
            "a.json",
            f'{{"data": [{GOOD}]}}',
            ": the rows stand under 'data'; write them, an array, as the whole file",
        ),
        (
            "a.json",
            f'{{\n"v": 1, "data": [{GOOD}]}}',
            ": the rows stand under 'data'; write them, an array, as the whole file",
        ),
        (
            "a.json",
            f'{{"mine": [{GOOD}]}}',
            ": the rows stand under 'mine'; write them, an array, as the whole file",
        ),
        (
            "a.json",
            '{\n"mine": 1}',
            ": contains one object; rows must be an array of objects, or one object per line",
        ),
        (
            "a.csv",
            "q;a\n1;2\n",
            ":1: the header is the one column 'q;a'; is the separator ';'? Write the file with commas",
        ),
        (
            "a.csv",
            "q\ta\n1\t2\n",
            ":1: the header is the one column 'q\\ta'; is the separator '\\t'? Write the file with commas",
        ),
    ],
)
def test_files_of_another_form_are_told(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError) as refused:
        rows(tmp_path / name)
    assert str(refused.value) == f"{tmp_path / name}{said}"


def test_what_looks_like_another_form_and_is_none(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for row in ({"messages": turns}, {"prompt": "a", "responses": [{"text": "b", "rating": 1}]}):
        (tmp_path / "a.json").write_text(json.dumps(row))
        assert rows(tmp_path / "a.json") == [row]
    (tmp_path / "a.csv").write_text("text\na;b\n")
    assert rows(tmp_path / "a.csv") == [{"text": "a;b"}]


TREES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text('a":\\ {,', max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(st.sampled_from('ab":'), inner), max_size=3)
    ),
    max_leaves=8,
)


def written(value, space: str) -> tuple[str, bool]:
    """JSON of a tree, where lists of pairs are objects, and whether an object has a key twice."""
    if not isinstance(value, list):
        return json.dumps(value), False
    if not value or not isinstance(value[0], tuple):
        parts = [written(each, space) for each in value]
        return f"[{','.join(text for text, _ in parts)}]", any(twice for _, twice in parts)
    keys = [key for key, _ in value]
    parts = [written(each, space) for _, each in value]
    texts = [f"{json.dumps(key)}{space}:{text}" for key, (text, _) in zip(keys, parts, strict=True)]
    return f"{{{', '.join(texts)}}}", len(set(keys)) < len(keys) or any(twice for _, twice in parts)


@given(tree=TREES, space=st.sampled_from(["", " ", "\t \r"]))
def test_it_is_told_exactly(tree, space):
    text, twice = written([("row", tree)], space)
    row = parse_line(text.encode(), "a:1")
    assert isinstance(row, Broken) is twice
    value, found = parse_array(text)
    assert found is twice and value == json.loads(text)
    if not twice:
        assert row == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "a truth value (True)"),
        (3, "a number (3)"),
        (0.5, "a number (0.5)"),
        ("a", "a string ('a')"),
        (Cell("a"), "a string ('a')"),
        ([1], "an array ([1])"),
        ({}, "an object ({})"),
        (b"a", "a value of type bytes (b'a')"),
        (date(2020, 1, 2), "a value of type date (datetime.date(2020, 1, 2))"),
    ],
)
def test_a_value_in_words(value, words):
    assert described(value) == words
