"""What counts as the same: values as JSON has them, and messages by what they mean."""

from __future__ import annotations

import json

import pytest

from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.tools import as_json, parsed, read_tools
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source

USER, SAID = {"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}
DIFFERENT = [(True, 1), (1, 1.0), (False, 0), (0, None), ([1], [True]), ({"y": 1}, {"y": 1.0}), ("1", 1)]


def call(value, key="x", **more):
    return {"function": {"name": "f", "arguments": {key: value}}, **more}


def calling(value):
    return {"role": "assistant", "content": "", "tool_calls": [call(value)]}


def read(row, shape="pairs", **more):
    return SHAPES[shape].read(row, Source(name="s", path="r.jsonl", **more), "r.jsonl:7")


def dropped(row) -> str:
    with pytest.raises(RowError) as caught:
        read(row)
    return caught.value.reason


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_values_are_the_same_where_json_writes_them_alike(first, second):
    assert as_json({"a": first, "b": 2}) == as_json({"b": 2, "a": first}) != as_json({"a": second, "b": 2})


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_arguments_that_python_takes_for_the_same(first, second):
    rows = [
        {"prompt": "u", "chosen": [calling(each)], "rejected": [calling(second)]} for each in (first, second)
    ]
    made = [side.messages[1]["tool_calls"][0]["function"]["arguments"] for side in read(rows[0])]
    assert json.dumps(made) == json.dumps([{"x": first}, {"x": second}])
    assert dropped(rows[1]) == "equal_pair"

    def talk(value, reply):
        return [USER, calling(value), {"role": "tool", "content": "4"}, SAID | {"content": reply}]

    assert dropped({"chosen": talk(first, "a"), "rejected": talk(second, "b")}) == "prompt_mismatch"
    assert dropped(
        {"prompt": talk(first, "a")[:3], "chosen": talk(second, "a"), "rejected": talk(second, "b")}
    ) == ("prompt_mismatch")
    assert read({"chosen": talk(first, "a"), "rejected": talk(first, "b")})


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_two_ways_to_say_a_value_that_python_takes_for_the_same(first, second):
    turn = calling(first) | {"function_call": {"name": "f", "arguments": {"x": second}}}
    with pytest.raises(RequestError, match="'tool_calls' and 'function_call' differ; keep one"):
        read({"messages": [USER, turn]}, "rows")
    with pytest.raises(RowError, match="key 'a' stands there twice"):
        parsed(json.dumps({"a": first})[:-1] + ", " + json.dumps({"a": second})[1:], "", "bad_call")
    with pytest.raises(RequestError, match="stands beside 'function'"):
        beside = {
            "type": "function",
            "x": first if first else [first],
            "function": {"name": "f", "x": [second]},
        }
        read_tools([beside], "r:1")


def test_calls_with_keys_that_differ_are_two_turns():
    turns = [
        {"role": "function_call", "content": '{"name": "f", "arguments": {}}', "step": step}
        for step in (1, True)
    ]
    with pytest.raises(RowError, match="tool_order"):
        read({"messages": [USER, *turns]}, "rows")
    (found,) = read({"messages": [USER, turns[0], turns[0]]}, "rows")
    assert len(found.messages[1]["tool_calls"]) == 2


def test_two_spellings_of_a_number():
    turn = {"role": "tool", "content": 1}
    row = {"messages": [USER, calling(1), turn | {"value": True}, SAID]}
    with pytest.raises(RequestError, match="'content' and 'value' differ"):
        read(row, "rows")


def test_values_that_are_nested_too_deep_to_compare():
    deep = 1
    for _ in range(5000):
        deep = [deep]
    assert dropped({"prompt": "u", "chosen": [SAID | {"z": deep}], "rejected": "b"}) == "bad_call"


def talk(*turns, thought="t", key="reasoning", number="a", reply="x", **more):
    """A conversation with a call and its answer, which ends in `reply`."""
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [call(1, id=number), call(2, id=f"{number}2")],
    }
    answers = [{"role": "tool", "content": "4", "tool_call_id": f"{number}{n}"} for n in turns or ("", 2)]
    return [USER, called | {key: thought} | more, *answers, SAID | {"content": reply}]


@pytest.mark.parametrize(
    "other",
    [
        {"number": "b"},
        {"key": "reasoning_content"},
        {"thought": "\nt "},
        {"number": "b", "key": "thinking", "thought": "t\n"},
        {"content": "<think>t</think>", "key": "reasoning", "thought": ""},
        {"content": " \n"},
    ],
)
def test_prompts_that_mean_the_same(other):
    """What is rendered is the one prompt of both."""
    row = {"chosen": talk(), "rejected": talk(reply="y", **other)}
    for prompt in ({}, {"prompt": talk()[:-1]}, {"prompt": talk(**other)[:-1]}):
        chosen, rejected = read(row | prompt)
        assert chosen.messages[:-1] == rejected.messages[:-1] and rejected.messages[-1]["content"] == "y"


@pytest.mark.parametrize(
    "other",
    [talk(2, ""), talk(thought="s"), talk(content="u"), talk(weight=0), talk(step=1)],
)
def test_prompts_that_differ(other):
    assert dropped({"chosen": talk(reply="y"), "rejected": other}) == "prompt_mismatch"
    assert dropped({"prompt": other[:-1], "chosen": talk(), "rejected": talk(reply="y")}) == "prompt_mismatch"


def test_the_same_text_with_and_without_its_end_is_a_pair():
    row = {"prompt": "u", "chosen": "x", "rejected": "x", "rejected_is_prefix": True}
    assert [side.partial for side in read(row)] == [False, True]
    for both in (True, False):
        assert dropped(row | {"chosen_is_prefix": both, "rejected_is_prefix": both}) == "equal_pair"
