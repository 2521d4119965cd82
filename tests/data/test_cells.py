"""Cells of CSV: which have messages, what reads them or their text, and what is refused."""

from __future__ import annotations

import csv
import json
import pickle

import pytest

from posttrain.data.cells import Cell, cell_value
from posttrain.data.readers import read
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.prompts import columns_of, reward_example
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
    "{'role': 'assistant', 'content': 'So.'}",
    "{'content': 'So (it is', 'role': 'assistant'}",
    "{'role': 'assistant', 'content': 'So', 'at': Timestamp('2024-01-01 00:00:00')}",
    "{'role': array(['user', 'assistant'], dtype=object), 'content': array(['a', 'b'], dtype=object)}",
    "{'role': ['user'], 'content': ['a']}",
    "array([{'role': 'user', 'content': 'a'}], dtype=object)",
    "({'role': 'user', 'content': 'a'},)",
    "[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'weight': Non",
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
    '{"role": "user", "content": "u"} is it.',
    "{'role': 'user', 'content': \"it's (\"} isn't it.",
    '{"role": "admin", "content": "x"}',
    '{"from": "user"}',
    '{"role": ["user"], "content": "u"}',
    '{"prompt": [{"role": "user", "content": "u"}]}',
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


MESSAGES = [
    *([turns, turns] for turns in ([USER], [USER, SAID], [OTHER], [CALL], [USER, CALL, OTHER])),
    [SAID, [SAID]],
    [OTHER, [OTHER]],
    [{"role": ["user", "assistant"], "content": ["u", "x"]}, [USER, SAID]],
]
"""What a cell says in JSON, and the messages that it has."""


@pytest.mark.parametrize("value, turns", MESSAGES)
def test_messages_beside_their_text(value, turns, tmp_path):
    text = f" {json.dumps(value, indent=1)}\n"
    ((_, row),) = rows_of(tmp_path / "a.csv", {"prompt": text, "n": "[3]"})
    assert row == {"prompt": text, "n": "[3]"}
    for cell in (row["prompt"], pickle.loads(pickle.dumps(row["prompt"]))):
        assert isinstance(cell, Cell) and cell.messages == turns and cell == text


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
        {"prompt": "u", "completion": SAID, "chosen": SAID, "rejected": OTHER},
    ):
        row = {**row, "label": "1"}
        cells = {
            key: json.dumps(each) if isinstance(each, list | dict) else each for key, each in row.items()
        }
        ((_, found),) = rows_of(tmp_path / "a.csv", cells)
        source = Source(name="s", path="a.csv")
        assert SHAPES[shape].read(found, source, "2") == SHAPES[shape].read(row, source, "2")
        assert reward_example(columns_of(found, source), "2").prompt == reward_example(row, "2").prompt


def test_a_text_stays_a_text(tmp_path):
    text = json.dumps([USER])
    source = Source(name="s", path="a.csv")
    cells = {"instruction": "q", "input": text, "output": "c", "system": text, "reasoning": text}
    ((where, row),) = rows_of(tmp_path / "a.csv", cells)
    (found,) = SHAPES["rows"].read(row, source, where)
    system, user, reply = found.messages
    assert (system["content"], user["content"]) == (text, f"q\n\n{text}") and reply["reasoning"] == text
    ((where, row),) = rows_of(tmp_path / "b.csv", {"text": text})
    assert SHAPES["rows"].read(row, source, where)[0].completion == text
    ((where, row),) = rows_of(tmp_path / "c.csv", {"prompt": "q", "answer": text})
    assert SHAPES["prompts"].read(row, source, where)[0].prompt == "q"
    assert reward_example(columns_of(row, source), where).answer == text


def test_replies_in_a_cell(tmp_path):
    entries = [{"role": "assistant", "content": text, "rating": n} for n, text in enumerate("ba")]
    ((where, found),) = rows_of(tmp_path / "a.csv", {"prompt": "q", "completions": json.dumps(entries)})
    one, other = SHAPES["pairs"].read(found, Source(name="s", path="a.csv"), where)
    assert (one.completion, other.completion) == ("a", "b")


@pytest.mark.parametrize("text", REPRS)
def test_what_was_meant_as_messages_is_refused_where_it_would_be_trained(text, tmp_path):
    good = {"prompt": "q", "completion": "c", "chosen": "a", "rejected": "b", "label": "1"}
    uses = {"prompt": ("rows", "labelled", "pairs", "prompts"), "completion": ("rows", "labelled")}
    uses |= dict.fromkeys(("messages", "conversations"), ("rows", "labelled", "prompts"))
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
    assert isinstance(row["other"], Cell) and row["other"] == text
