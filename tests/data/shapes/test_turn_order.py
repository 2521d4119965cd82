"""The order of turns: which follows which, calls and their answers, and calls that are written as text."""

from __future__ import annotations

import time

import pytest

from posttrain.data.shapes.turn_order import end_in_reply, ordered, refuse_listed
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source
from posttrain.types import Example

ADD = '{"name": "add", "arguments": {"a": 2}}'


def turn(role, content=""):
    return {"role": role, "content": content}


def talk(reply):
    """A reply that the user goes on from."""
    return [turn("user", "u"), turn("assistant", reply), turn("user", "w"), turn("assistant", "a")]


def called(*ids):
    """A reply that makes a call for each id; None: a call without one."""
    calls = [{"function": {"name": "f", "arguments": {}}} | ({"id": each} if each else {}) for each in ids]
    return turn("assistant") | {"tool_calls": calls}


def answer(call):
    return turn("tool", "4") | ({} if call is None else {"tool_call_id": call})


ROLES = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}


def spelled(letters):
    """A turn for each letter, `c` for a reply that calls."""
    return [called(None) if each == "c" else turn(ROLES[each], each) for each in letters]


@pytest.mark.parametrize(
    "letters", ["ua", "sua", "dua", "sdsua", "uaua", "s", "u", "ucta", "ucttua", "uctct", "uauct"]
)
def test_orders_that_are_kept(letters):
    for rule in ("strict", "loose"):
        assert ordered(spelled(letters), rule) == spelled(letters)


@pytest.mark.parametrize(
    ("letters", "words"),
    [
        ("usa", "late_system: message 1 (system) comes after the first turn"),
        ("suad", "late_system: message 3 (developer) comes after the first turn"),
        ("ucs", "late_system: message 2 (system) comes after the first turn"),
        ("a", "assistant_first: message 0 (assistant) comes before any user message"),
        ("sca", "assistant_first: message 1 (assistant) comes before any user message"),
        ("suua", "two_users: message 2 (user) follows another user message"),
        ("uaa", "two_replies: message 2 (assistant) follows another assistant message"),
        ("uac", "two_replies: message 2 (assistant) follows another assistant message"),
        ("uca", "tool_order: message 2 (assistant) follows a call that no tool has answered"),
        ("ucu", "tool_order: message 2 (user) follows a call that no tool has answered"),
        ("t", "tool_order: message 0 (tool) answers no call"),
        ("sta", "tool_order: message 1 (tool) answers no call"),
        ("uta", "tool_order: message 1 (tool) answers no call"),
        ("uata", "tool_order: message 2 (tool) answers no call"),
        ("uctaut", "tool_order: message 5 (tool) answers no call"),
    ],
)
def test_orders_that_are_dropped(letters, words):
    with pytest.raises(RowError) as caught:
        ordered(spelled(letters), "strict")
    assert str(caught.value) == words
    assert ordered(spelled(letters), "loose") == spelled(letters)


@pytest.mark.parametrize(
    "turns",
    [
        [called("x", "y"), answer("x"), answer("y"), turn("assistant", "a")],
        [called("x", "y"), answer("y"), answer("x"), turn("user", "u")],
        [called("x", "y"), answer("x")],  # the row ends there
        [called("x", None), answer("x"), turn("assistant", "a")],  # what has no id is tied by its order
        [called("x", "y", None), answer("x"), turn("assistant", "a")],
        [called("x", "x"), answer("x"), turn("assistant", "a")],
        [called("x", "y"), answer(None), turn("assistant", "a")],
        [called("x", "y"), answer("x"), answer(3), turn("assistant", "a")],
        [called(None), answer("z"), turn("assistant", "a")],
        [called("x"), answer("x"), answer("x"), called("y"), answer("y")],
    ],
)
def test_calls_and_answers_that_belong_together(turns):
    turns = [turn("user", "u"), *turns]
    assert ordered(turns, "strict") == turns


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([called("x"), answer("y")], "2 (tool) answers call 'y', which was not made"),
        ([called("x", None), answer("y")], "2 (tool) answers call 'y', which was not made"),
        (
            [called("x"), answer("x"), called("y"), answer("x")],
            "4 (tool) answers call 'x', which was not made",
        ),
        (
            [called("x", "z", "y"), answer("x"), turn("user", "u")],
            "3 (user) follows call 'y', which no tool has answered",
        ),
        (
            [called("x", "y"), answer("x"), answer("x"), turn("assistant", "a")],
            "4 (assistant) follows call 'y', which no tool has answered",
        ),
        (
            [called("x", "y"), answer("x"), called("z"), answer("z")],
            "3 (assistant) follows call 'y', which no tool has answered",
        ),
    ],
)
def test_calls_and_answers_that_do_not(turns, words):
    turns = [turn("user", "u"), *turns]
    with pytest.raises(RowError) as caught:
        ordered(turns, "strict")
    assert str(caught.value) == f"tool_order: message {words}"
    assert ordered(turns, "loose") == turns


def test_neighbours_are_joined():
    named = turn("user", "n") | {"name": "Ann"}
    parts = [turn("system", "r"), *spelled("suua"), turn("assistant", "b"), *spelled("uc")]
    joined = [turn("system", "r\n\ns"), turn("user", "u\n\nu"), turn("assistant", "a\n\nb"), *spelled("uc")]
    assert ordered(parts, "join") == joined
    assert parts[0] == turn("system", "r"), "messages are not changed"
    for alone in ([*spelled("u"), named], [named, *spelled("u")]):
        with pytest.raises(RowError, match=r"two_users: message 1 .user. follows"):
            ordered(alone, "join")
    for kept in ("ddua", "uctta"):
        assert ordered(spelled(kept), "join") == spelled(kept)
    with pytest.raises(RowError, match=r"two_replies: message 2 "):
        ordered(spelled("uuac"), "join")


@pytest.mark.parametrize("rule", ["strict", "join", "loose"])
def test_a_trained_reply_says_something(rule):
    talk = [*spelled("ua"), turn("user", " "), turn("assistant", " ")]
    for flag in ({}, {"trained": True}):
        with pytest.raises(RowError, match=r"^empty_reply: message 3 .assistant. says nothing$"):
            ordered([*talk[:3], talk[3] | flag], rule)
    untrained = [*talk[:3], talk[3] | {"trained": False}]
    assert ordered(untrained, rule) == untrained


@pytest.mark.parametrize(
    ("letters", "kept"), [("uau", "ua"), ("ucta", "ucta"), ("uauct", "uauc"), ("su", "su"), ("", "")]
)
def test_what_follows_the_last_reply_is_cut_off(letters, kept):
    example = Example(messages=spelled(letters), ignored=("mood",))
    end_in_reply(example)
    assert example.messages == spelled(kept)
    assert example.ignored == ("mood", *["turns behind the last reply"] * (letters != kept))
    plain = Example(prompt="p", completion="c")
    end_in_reply(plain)
    assert plain == Example(prompt="p", completion="c")


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "f.x")]


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("<tools>add</tools>", True),
        ("<tools>other, f.x</tools>", True),
        ("<tools>other</tools> <tools>add</tools>", True),
        ("{'name' : 'f.x' , 'description':", True),
        ('{"name": "add", "description": ', True),
        ("add", False),
        ("<tools>other</tools> add", False),
        ("add <tools>other</tools>", False),
        ("<tools>add_all, sub.added, fox</tools>", False),
        ('{"name": "add"}', False),
        ('{"name": "fox", "description": ', False),
        ('{"name": "address", "description": ', False),
    ],
)
def test_tools_that_a_system_message_lists(text, listed):
    def refuse(*turns):
        refuse_listed([*turns, *spelled("ua")], TOOLS, "tools", Source(name="s", path="p"), "r:1")

    refuse(turn("user", text), turn("assistant", text))
    for role in ("system", "developer"):
        if not listed:
            refuse(turn(role, text))
            continue
        with pytest.raises(RequestError, match=r"^r:1: the system message lists the tools of column 'tools'"):
            refuse(turn("system", "Be brief."), turn(role, text))


MENTIONED = [
    "#include <functional>\nstd::function<int()> f;",
    "The mark `<tool_call>` opens a call, `</tool_call>` ends it.",
    f"<tool_call>{ADD}",
    "<tool_call>{}</tool_call>",
    "<tool_call>[]</tool_call>",
    '<tool_call>{"name": 3}</tool_call>',
    "<tool_call>3</tool_call>",
    f"<tool_call>[{ADD}, {{}}]</tool_call>",
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
    for first in ([], [turn("system", "Be brief.")], [turn("developer", "<tools>\n</tools>")]):
        turns = [*first, *talk(reply)]
        assert ordered(turns, "strict") == turns, "an example of a call, in a talk without tools"
    turns = [turn("user", f"<tools>{ADD}</tools>"), *talk(reply)[1:]]
    assert ordered(turns, "strict") == turns, "a user declares none"
    assert ordered(answered, "strict", True) == answered


@pytest.mark.parametrize("reply", [*MENTIONED[1:], "Code:\n<|python_tag|>print(4)"])
def test_a_tool_may_answer_what_looks_like_a_call(reply):
    turns = [*talk(reply)[:2], turn("tool", "4"), turn("assistant", "4")]
    assert ordered(turns, "strict") == turns
    with pytest.raises(RowError, match="tool_order: message 2 .tool. answers no call"):
        ordered([turns[0], turn("assistant", "4"), *turns[2:]], "strict")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", [""]),  # a tool that returns nothing has answered
        (" \n", [" \n"]),
        ("<tool_response></tool_response>", [""]),
        ("<tool_response>4</tool_response>\n<tool_response> 5 </tool_response>", ["4", "5"]),
        ("4", ["4"]),
    ],
)
@pytest.mark.parametrize("rule", ["strict", "loose"])
def test_an_answer_for_each_that_a_tool_returned(content, found, rule):
    talk = [turn("user", "u"), called(None), turn("tool", content), turn("assistant", "a")]
    want = [*talk[:2], *(turn("tool", each) for each in found), talk[3]]
    assert ordered(talk, rule) == want


def test_calls_under_the_key_of_olmo_3():
    called = turn("assistant") | {"function_calls": "add(a=2)"}
    turns = [turn("user", "u"), called, turn("tool", "4"), turn("assistant", "4")]
    assert ordered(turns, "strict") == turns
    with pytest.raises(RowError, match="tool_order: message 2 .user. follows a call"):
        ordered([*turns[:2], turn("user", "w"), turns[3]], "strict")
