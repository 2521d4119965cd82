"""Messages, calls and tools by their keys: nothing of a row is lost, and nothing is trained that it does not
say."""

from __future__ import annotations

import json
import sys

import pytest

from posttrain.data.shapes.messages import read_messages
from posttrain.data.shapes.prompts import to_prompt
from posttrain.data.shapes.rows import is_conversation, to_example
from posttrain.data.shapes.tools import read_calls, read_tools
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source
from tests.data.tokens import row_of, trained

USER = {"role": "user", "content": "q"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def said(content="a", **more):
    return {"role": "assistant", "content": content, **more}


def read(*turns, ignore=()):
    return read_messages(list(turns), "r:1", set(ignore))


def refused(match, *turns):
    with pytest.raises(RequestError) as caught:
        read(*turns)
    assert match in str(caught.value)


# who speaks, and what


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"content": "EVIL"}, "'value' and 'content'"),
        ({"content": 5}, "'value' and 'content'"),
        ({"role": "user"}, "'from' and 'role'"),
        ({"role": ["x"]}, "'from' and 'role'"),
        ({"role": "assistant", "content": "EVIL"}, "'value' and 'content'"),
    ],
)
def test_two_spellings_that_differ_are_refused(extra, names):
    refused(
        f"r:1, message 0: {names} differ; keep one, or set ignore: [", {"from": "gpt", "value": "a"} | extra
    )
    assert read({"from": "gpt", "value": "a"} | extra, ignore=["role", "content"]) == [said()]


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "gpt", "value": "a", "role": "assistant", "content": "a"},
        {"from": "gpt", "value": "a", "role": None, "content": None},
        {"from": None, "value": None, "role": "assistant", "content": "a"},
        {"from": "gpt", "content": "a"},
        {"role": "gpt", "value": "a"},
    ],
)
def test_two_spellings_that_agree_are_one(turn):
    assert read(turn) == [said()]


@pytest.mark.parametrize("flag", [0, False])
def test_trained_is_a_flag_like_the_others(flag):
    assert read(said(trained=flag)) == [said() | {"trained": False}]
    assert read(said(trained=not flag)) == [said()]
    refused("'trained' must be 0 or 1 (false or true), not 'no'", said(trained="no"))
    refused("weight and trained contradict each other", said(weight=1, trained=flag))
    talk = {"messages": [USER, said("bad", trained=flag), USER, said("good")]}
    assert trained(row_of(to_example(talk, Source(name="s", path="p"), "r:1"))) == "good<|im_end|>"


def test_roles():
    turns = read(USER, said("f()"), {"role": "environment", "content": "4"})
    assert turns[-1] == {"role": "tool", "content": "4"}, "as OLMo 3 spells it"
    refused(
        "unknown role 'critic' (one of: assistant, developer, system, tool, user)",
        {"role": "critic", "content": ""},
    )
    refused("unknown role 'asistant' (did you mean 'assistant'?)", {"role": "asistant", "content": ""})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("reasoning_contents", "reasoning_content"),
        ("tool_call", "tool_calls"),
        ("function_cal", "function_call"),
        ("weights", "weight"),
        ("weigth", "weight"),
        ("Weight", "weight"),
        ("trian", "train"),
        ("Reasoning", "reasoning"),
    ],
)
def test_a_key_that_is_almost_one_of_these(key, near):
    refused(f"r:1, message 0: key {key!r} is not read; did you mean {near!r}? Rename it", said(**{key: "x"}))
    assert read(said(**{key: "x"}), ignore=[key]) == [said()]
    assert read(said(**{key: None})) == [said()]


def test_other_keys_are_left_to_the_template():
    """OLMo 3 has calls and tools as text under keys of its own."""
    turns = [{**USER, "functions": "f", "mood": "x", "gloss": 0, "strain": 1}, said("", function_calls="f()")]
    assert read(*turns) == turns
    row = {"messages": [*turns, {"role": "environment", "content": "4"}, said()]}
    assert len(to_example(row, Source(name="s", path="p"), "r:1").messages) == 4


def test_an_object_of_nulls_is_empty():
    filled_up = {
        "function_call": {"name": None, "arguments": None},
        "metadata": {"src": None, "b": {"c": None}},
    }
    assert read(USER | filled_up, said(**filled_up)) == [USER, said()]
    refused("a user message cannot call a tool", USER | {"function_call": {"name": "f", "arguments": None}})


# the list


TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
COLUMNS = {"role": ["user", "assistant"], "content": ["q", "a"]}


@pytest.mark.parametrize(
    "value",
    [json.dumps(TALK), COLUMNS, COLUMNS | {"tool_calls": None}, json.dumps(COLUMNS), f" {json.dumps(TALK)}"],
)
def test_a_conversation_as_text_or_as_columns(value):
    row, source = {"messages": value}, Source(name="s", path="p")
    assert to_example(row, source, "r:1").messages == TALK
    assert to_prompt(row, source, "r:1").messages == TALK[:1]
    assert is_conversation(row), "its table is named after how conversations are read"
    assert not is_conversation({"prompt": "p", "tests": '[{"a": 1}]', "info": {"a": [1]}})


def test_a_prompt_as_text_keeps_its_last_question():
    """What ends with a question has no reply to leave out."""
    for value in (json.dumps([USER, said(), USER]), {"role": ["user"], "content": ["q"]}):
        found = to_prompt({"messages": value}, Source(name="s", path="p"), "r:1").messages
        assert found[-1] == USER


def test_keys_that_are_ignored_in_columns_are_counted():
    row = {"messages": COLUMNS | {"mood": ["x", "y"]}}
    found = to_example(row, Source(name="s", path="p", ignore=["mood"]), "r:1")
    assert found.messages == TALK and found.ignored == ("mood",)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            COLUMNS | {"role": ["user"]},
            "is an object, not a list of messages; an object needs lists of one length",
        ),
        ({"role": "user"}, "an object needs lists of one length"),
        ("[" * 3000, "is a string, not a list of messages"),
        (
            '[{"role": "user"',
            'is a string, not a list of messages; as JSON: \'[{"role": "user"\' is not JSON',
        ),
        (
            '[{"role": "user", "content": "q", "content": "EVIL"}]',
            "is a string, not a list of messages; as JSON: "
            '\'[{"role": "user", "content": "q", "content": "EVIL"}]\': key \'content\' stands there twice',
        ),
        ("hello", "is a string, not a list of messages"),
    ],
)
def test_what_is_no_list(value, match):
    with pytest.raises(RequestError) as caught:
        read_messages(value, "r:1")
    assert match in str(caught.value)


def test_nan_is_no_flag_and_null_is_no_call():
    for flag in ("weight", "train", "loss"):
        assert read(said() | {flag: float("nan")}) == [said()]
    for key in ("tool_calls", "function_call"):
        for nothing in ("null", " null ", "[]"):
            assert read(said() | {key: nothing}) == [said()]
            found = to_example({"prompt": "p", "completion": "c", key: nothing}, Source(name="s"), "r:1")
            assert (found.completion, found.messages) == ("c", None)


# parts


@pytest.mark.parametrize("key", ["image", "cache_control", "txt"])
def test_a_part_with_a_key_that_is_not_read(key):
    part = {"type": "text", "text": "q", "id": "1", "index": 0, "image_url": {"url": None}, key: {"a": "x"}}
    turn = {"role": "user", "content": [part]}
    refused(f"r:1, message 0: key {key!r} of a part of type 'text' is not read", turn)
    assert read(turn, ignore=[key]) == [USER]


def test_a_thinking_part_and_a_key_beside_it():
    def parts(thought, **more):
        return said(
            [{"type": "thinking", "thinking": thought, "signature": "s"}, {"type": "text", "text": "a"}],
            **more,
        )

    assert read(parts("so")) == [said(thinking="so")]
    assert read(parts("so", reasoning_content="so")) == [said(reasoning_content="so")]
    assert read(parts("", reasoning_content="so")) == [said(reasoning_content="so")]
    refused(
        "different reasoning under reasoning_content and parts of content",
        parts("so", reasoning_content="not"),
    )
    refused("different reasoning under thinking and parts of content", parts("so", thinking="not"))
    refused("key 'summary' of a part", said([{"type": "thinking", "thinking": "so", "summary": "x"}]))


def test_what_a_tool_returns():
    assert read({"role": "tool", "content": [{"type": "text", "text": "4"}]})[0]["content"] == "4"
    assert read({"role": "tool", "content": {"a": 4}})[0]["content"] == '{"a": 4}'
    refused("'content' is a list of texts; write what the tool", {"role": "tool", "content": ["a", "b"]})
    assert read(said(["a", "b"])) == [said("ab")], "as parts of other messages are"


# calls


@pytest.mark.parametrize("roles", ["strict", "join", "loose"])
def test_calls_that_follow_each_other_are_one_turn(roles):
    """As LLaMA-Factory writes parallel calls."""
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 2}}'},
            {"from": "observation", "value": "1"},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "a"},
        ]
    }
    turns = to_example(row, Source(name="s", path="p", roles=roles), "r:1").messages
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [call["function"]["arguments"] for call in turns[1]["tool_calls"]] == [{"a": 1}, {"a": 2}]


def test_calls_of_two_turns_stay_two():
    call = {"role": "function_call", "content": '{"name": "f"}'}
    assert len(read(call, {"role": "tool", "content": "1"}, call)) == 3
    assert len(read(call, call | {"weight": 0})) == 2
    assert len(read(call, call | {"reasoning": "so"})) == 2
    assert len(read(call | {"weight": 0}, call | {"weight": 0})) == 1
    refused("has calls under 'content' and under another key", call | {"tool_calls": [CALL]})
    assert read({"role": "function_call", "content": None, "tool_calls": [CALL]}) == [
        said("", tool_calls=[CALL])
    ]


@pytest.mark.parametrize(
    ("inner", "key", "hint"),
    [
        ({"args": {"a": 1}}, "args", " (did you mean 'arguments'?)"),
        ({"argument": {"a": 1}}, "argument", " (did you mean 'arguments'?)"),
        ({"kwargs": {"a": 1}}, "kwargs", " (one of: arguments, input, name, parameters)"),
        ({"arguments": {}, "result": "4"}, "result", " (one of: arguments, input, name, parameters)"),
    ],
)
def test_a_key_of_a_call_that_is_not_read(inner, key, hint):
    want = f"r:1, message 0: key {key!r} of a call is not read{hint}. Rename it, or set ignore: [{key}]"
    for call in ({"name": "f"} | inner, {"function": {"name": "f"} | inner}):
        turn = said(None, tool_calls=[call])
        refused(want, turn)
        assert read(turn, ignore=[key])[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_a_key_beside_the_function_of_a_call():
    for key, value in (("name", "g"), ("arguments", {"a": 2}), ("result", "4")):
        turn = said(None, tool_calls=[CALL | {key: value}])
        refused(f"key {key!r} of a call stands beside 'function', where it is not read", turn)
    alike = CALL | {"name": "f", "index": 0, "result": None, "id": "1"}
    assert read_calls(alike, "r:1") == [{"id": "1"} | CALL]
    assert read_calls({"function": None, "name": "f", "arguments": {"a": 1}}, "r:1") == [CALL]
    assert read_calls([CALL | {"name": "g"}], "r:1", ["name"]) == [CALL], "never the name in the function"


def test_arguments_under_one_key():
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}
    assert read_calls(use, "r:1") == [{"id": "1"} | CALL], "as Anthropic writes it"
    same = {"name": "f", "arguments": '{"a": 1}', "parameters": {"a": 1}}
    assert read_calls(same, "r:1") == [CALL]
    assert read_calls({"name": "f", "arguments": {"a": 1}, "input": {"b": None}}, "r:1") == [CALL]
    for first in ({"a": 1}, {}):  # which may have its schema beside it
        both = {"name": "f", "arguments": first, "parameters": SCHEMA}
        with pytest.raises(
            RequestError, match="different arguments under 'arguments' and 'parameters'; keep one"
        ):
            read_calls(both, "r:1")
        assert read_calls(both, "r:1", ["parameters"])[0]["function"]["arguments"] == first
    assert read_calls({"name": "f", "parameters": {"a": 1}}, "r:1", ["parameters"]) == [CALL]


@pytest.mark.parametrize(
    ("call", "detail"),
    [
        ({"name": "", "arguments": {}}, "a call must be an object with name and arguments"),
        ({"function": {"name": " "}}, "a call must be an object with name and arguments"),
        ({"name": "f", "arguments": '{"a": NaN}'}, "has NaN or Infinity, which JSON does not know"),
        ({"name": "f", "arguments": '{"a": [1e400]}'}, "has NaN or Infinity, which JSON does not know"),
        ({"name": "f", "arguments": {"a": float("-inf")}}, "has NaN or Infinity, which JSON does not know"),
        ({"name": "f", "arguments": '{"a": 1, "a": 2}'}, "key 'a' stands there twice"),
        ('{"name": "f", "name": "g"}', "key 'name' stands there twice"),
        ({"name": "f", "arguments": '{"a": ' * 3000 + "1" + "}" * 3000}, "is nested too deep"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "is nested too deep"),
        ("[" * 3000 + "]" * 3000, "is nested too deep"),
    ],
)
def test_calls_that_are_dropped(call, detail):
    with pytest.raises(RowError) as caught:
        read_calls(call, "r:1")
    assert caught.value.reason == "bad_call" and detail in caught.value.detail
    for turn in (said(None, tool_calls=call), said(None, function_call=call)):
        with pytest.raises(RowError, match="bad_call"):
            read(turn)


def test_a_key_twice_with_one_value_is_one():
    assert read_calls('{"name": "f", "arguments": {"a": 1, "a": 1}}', "r:1") == [CALL]


def test_arguments_as_deep_as_a_row_may_be():
    """Whatever the depth of the stack: never an error of Python."""
    deep = {"a": 1}
    for _ in range(sys.getrecursionlimit() - 50):
        deep = {"a": deep}
    with pytest.raises(RowError, match=r"bad_call.*nested too deep"):
        read(said(None, tool_calls=[{"name": "f", "arguments": deep}]))
    assert read(said(mood=deep)) == [said(mood=deep)]


# tools


@pytest.mark.parametrize(("key", "value"), [("description", "LOST"), ("parameters", SCHEMA), ("name", "g")])
def test_a_key_beside_the_function_of_a_tool(key, value):
    tool = {"type": "function", "function": {"name": "f"}, key: value}
    row = {"messages": TALK, "tools": [tool]}
    with pytest.raises(RequestError) as caught:
        to_example(row, Source(name="s", path="p"), "r:1")
    assert str(caught.value) == (
        f"r:1: column 'tools', tool 0: key {key!r} of a tool stands beside 'function', where it is not read. "
        f"Move it into 'function', or set ignore: [{key}]"
    )
    quiet = to_example(row, Source(name="s", path="p", ignore=[key]), "r:1")
    assert quiet.tools == [{"type": "function", "function": {"name": "f"}}]


def test_tools_keep_every_key_of_their_function():
    inner = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True, "examples": ["x"]}
    wanted = [{"type": "function", "function": inner}]
    assert read_tools([inner], "r:1") == wanted
    assert read_tools([{"type": "function", "strict": True, "name": "f", "function": inner}], "r:1") == wanted
    assert read_tools([inner | {"function": None, "type": "function"}], "r:1") == wanted


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("[" * 3000 + "]" * 3000, "is nested too deep"),
        ('[{"name": "f", "name": "g"}]', "key 'name' stands there twice"),
        ('[{"name": "f", "parameters": {"default": NaN}}]', "has NaN or Infinity"),
        ("[{", "is not JSON"),
    ],
)
def test_tools_that_are_dropped(text, detail):
    with pytest.raises(RowError) as caught:
        read_tools(text, "r:1")
    assert caught.value.reason == "bad_tools" and detail in caught.value.detail


def test_a_tool_without_a_name():
    with pytest.raises(RequestError, match="r:1, tool 0: must be an object with name and parameters"):
        read_tools([{"name": "", "parameters": SCHEMA}], "r:1")
