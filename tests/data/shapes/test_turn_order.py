"""The order of turns: calls that are written into the text of a reply, and replies that only mention them."""

from __future__ import annotations

import time

import pytest

from posttrain.data.shapes.turn_order import ordered
from posttrain.data.tokens import RowError

ADD = '{"name": "add", "arguments": {"a": 2}}'


def turn(role, content=""):
    return {"role": role, "content": content}


def talk(reply):
    """A reply that the user goes on from."""
    return [turn("user", "u"), turn("assistant", reply), turn("user", "w"), turn("assistant", "a")]


MENTIONED = [
    "#include <functional>\nstd::function<int()> f;",
    "The mark `<tool_call>` opens a call, `</tool_call>` ends it.",
    f"<tool_call>{ADD}",
    "<tool_call>{}</tool_call>",
    "<tool_call>[]</tool_call>",
    '<tool_call>{"name": 3}</tool_call>',
    "<tool_call>" + "[" * 100_000 + "</tool_call>",
    "Mistral writes [TOOL_CALLS] before its calls.",
    "`[TOOL_CALLS]` and <|python_tag|> are tokens.",
    "<|python_tag|> opens code.",
    "<function=add> has no end here.",
    "<function_calls> is OLMo's mark",
    "<function name='f'>...</function>",
]
CALLS = [
    f"<tool_call>\n{ADD}\n</tool_call>",
    f"Let me see.\n<tool_call>\nadd\n</tool_call><tool_call>{ADD}</tool_call>",
    "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n</function>\n</tool_call>",
    '<function=add>{"a": 2}</function>',
    "<function_calls>add(a=2)\nadd(a=3)</function_calls>",
    f"[TOOL_CALLS] [{ADD}]",
    '[TOOL_CALLS]add[ARGS]{"a": 2}',
    f"<|python_tag|>{ADD}",
    '<|python_tag|>brave_search.call(query="x")',
]


@pytest.mark.parametrize("reply", MENTIONED)
def test_a_reply_that_mentions_a_mark_calls_nothing(reply):
    assert ordered(talk(reply), "strict", tools=True) == talk(reply)


@pytest.mark.parametrize(
    "mark",
    ["<tool_call>", "<function=a>", "<function_calls>a(", "[TOOL_CALLS]a{", "<|python_tag|>", "<tools>"],
)
def test_many_marks_take_no_time(mark):
    began = time.process_time()
    ordered([turn("system", 50_000 * mark), *talk(50_000 * mark)], "strict", mark != "<tools>")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("reply", CALLS)
def test_a_call_in_the_text_wants_an_answer_where_there_are_tools(reply):
    listed = turn("system", f"Call:\n<tools>\n{ADD}\n</tools>")
    answered = [*talk(reply)[:2], turn("tool", "4"), turn("assistant", "4")]
    for turns, tools in (
        (talk(reply), True),
        ([listed, *talk(reply)], False),
        ([*answered, *talk(reply)[2:3], *talk(reply)[1:]], False),
    ):
        with pytest.raises(RowError, match="tool_order: .* follows a call that no tool has answered"):
            ordered(turns, "strict", tools)
    assert ordered(talk(reply), "strict") == talk(reply), "an example of a call, in a talk without tools"
    assert ordered(answered, "strict", True) == answered


@pytest.mark.parametrize("reply", [*MENTIONED[1:], "Code:\n<|python_tag|>print(4)"])
def test_a_tool_may_answer_what_looks_like_a_call(reply):
    turns = [*talk(reply)[:2], turn("tool", "4"), turn("assistant", "4")]
    assert ordered(turns, "strict") == turns
    with pytest.raises(RowError, match="tool_order: message 2 .tool. answers no call"):
        ordered([turns[0], turn("assistant", "4"), *turns[2:]], "strict")


def test_calls_under_the_key_of_olmo_3():
    called = turn("assistant") | {"function_calls": "add(a=2)"}
    turns = [turn("user", "u"), called, turn("tool", "4"), turn("assistant", "4")]
    assert ordered(turns, "strict") == turns
    with pytest.raises(RowError, match="tool_order: message 2 .user. follows a call"):
        ordered([*turns[:2], turn("user", "w"), turns[3]], "strict")
