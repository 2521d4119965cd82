"""Cells of CSV: what is read as messages, what stays text, and what is refused."""

from __future__ import annotations

import csv
import json
import pickle

import pytest

from posttrain.data.cells import Garbled, cell_value
from posttrain.data.readers import read
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.rows import is_conversation
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source

USER, SAID = {"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}
OTHER = {"from": "gpt", "value": "y"}
CALL = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {}}]}
REPRS = [
    "[{'role': 'user', 'content': 'How?'}, {'role': 'assistant', 'content': 'So.'}]",
    "[{'content': 'How?', 'role': 'user'}\n {'content': \"It's\", 'role': 'assistant'}]",  # numpy's
    "[{'from': 'human', 'value': 'How?'}]",
    "[{'role': 'assistant', 'tool_calls': None, 'content': None}]",
    '[{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So',  # cut off
    '[{"role": "user", "content": "How\n?"}]',
    '[{"role": "user", "content": "a", "content": "b"}]',
    ' [{"weight": None, "role": "user", "content": "a"}]\n',
]
TEXTS = [
    *('[{"name": "Ann"}, {"name": "Bo"}]', "[1, 2]", "[]", "[x](y)", "0408", "", "[{", '["a"]', "null"),
    '[{"role": "admin", "content": "x"}]',
    '[{"from": "Alice", "to": "Bob", "value": 3}]',
    '[{"from": "Alice", "value": "user"}]',
    '[{"role": "user", "content": "u"}, {"role": "admin", "content": "x"}]',
    '[{"role": "user", "content": "u"}, 3]',
    '[{"role": "user", "name": "u"}]',
    '[{"name": "u", "content": "c"}]',
    '[{"role": "user", "content": "u"}] is the list that I would send.',
    '{"role": "user", "content": "u"}',
    "[{'role': 'admin', 'content': 'x'}]",
    "[{'id': 3, 'content': 'user'}]",
    '[{"role": "user"',
    "He sent [{'role': 'user', 'content': 'u'}]",
    "[{" * 100_000,
    '[{"role": ' * 100_000,
]


def rows_of(path, *rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return [*read(path)]


@pytest.mark.parametrize("turns", [[USER], [USER, SAID], [OTHER], [CALL], [USER, CALL, OTHER]])
def test_a_list_of_messages(turns, tmp_path):
    text = f" {json.dumps(turns, indent=1)}\n"
    ((_, row),) = rows_of(tmp_path / "a.csv", {"prompt": text, "any": text, "n": "[3]"})
    assert row == {"prompt": turns, "any": turns, "n": "[3]"}


@pytest.mark.parametrize("text", TEXTS)
def test_other_cells_stay_text(text):
    assert cell_value(text) == text and type(cell_value(text)) is str


@pytest.mark.parametrize("shape", ["rows", "labelled", "pairs", "prompts"])
def test_a_row_is_as_of_json_lines(shape, tmp_path):
    for row in (
        {"prompt": [USER], "completion": [SAID], "chosen": [SAID], "rejected": [OTHER]},
        {"prompt": "u", "completion": [SAID], "chosen": "x", "rejected": [OTHER]},
        {"prompt": "u", "completion": "x", "chosen": [USER, SAID], "rejected": [USER, OTHER]},
        {"messages": [USER, SAID], "prompt": "u", "chosen": [USER, SAID], "rejected": [USER, OTHER]},
    ):
        row = {**row, "label": "1"}
        cells = {key: json.dumps(each) if isinstance(each, list) else each for key, each in row.items()}
        ((_, found),) = rows_of(tmp_path / "a.csv", cells)
        assert found == row
        assert SHAPES[shape].read(found, Source(name="s", path="a.csv"), "a.csv:2")


@pytest.mark.parametrize("text", REPRS)
def test_what_was_meant_as_messages_is_refused_where_it_would_be_trained(text, tmp_path):
    good = {"prompt": "q", "completion": "c", "chosen": "a", "rejected": "b", "label": "1"}
    uses = {"prompt": ("rows", "labelled", "pairs", "prompts"), "completion": ("rows", "labelled")}
    for name, shapes in (uses | {"chosen": ("pairs",), "rejected": ("pairs",)}).items():
        ((where, row),) = rows_of(tmp_path / "a.csv", good | {name: text})
        for shape in shapes:
            with pytest.raises(RequestError) as caught:
                SHAPES[shape].read(row, Source(name="s", path="a.csv"), where)
            said = str(caught.value)
            assert said.startswith(f"{where}: column {name!r} seems to have messages, but ")
            assert f"Write JSON into it (df[{name!r}].map(json.dumps)), or write JSON lines" in said
            assert "key 'content' stands there twice" in said or " is not JSON. Write" in said
    ((where, row),) = rows_of(tmp_path / "a.csv", good | {"other": text})
    (found,) = SHAPES["rows"].read(row, Source(name="s", path="a.csv"), where)
    assert "other" in found.unused, "what is not trained is not looked at"
    assert pickle.loads(pickle.dumps(row["other"])).problem == row["other"].problem
    assert is_conversation(row), "tables that were made of it as text are not found"
    assert isinstance(row["other"], Garbled) and row["other"] == text
