"""What a text must have of the messages that it renders: each check alone, without a template."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.kept import refuse_changed, refuse_left_out, refuse_lost, refuse_twice, says_all
from posttrain.data.tokens import RowError


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name="f", /, **arguments):
    return {"id": "c", "function": {"name": name, "arguments": arguments}}


def error_of(check, *arguments) -> str | None:
    try:
        check(*arguments)
    except RowError as error:
        return str(error)
    return None


# ---- texts of all messages ---------------------------------------------------------------------------------

QUOTED = 'say "é"'


@pytest.mark.parametrize(
    ("role", "content", "text", "kept"),
    [
        ("user", "2+2?", "Q: 2+2? A:", True),
        ("user", "2+2?", "Q: 2 + 2? A:", True),
        ("user", "2+2?", "Q: 2+2 A:", False),
        ("user", "\n2+2? ", "Q:2+2?A:", True),
        ("user", "2 +\n2?", "2\t+2?", True),
        ("user", "", "", True),
        ("user", "<think>so</think>4", "4", False),  # only a reply has thoughts
        ("tool", QUOTED, r'["say \"é\""]', True),  # as JSON
        ("tool", QUOTED, r'["say \"\u00e9\""]', True),
        ("tool", QUOTED, r'"[\"say \\\"é\\\"\"]"', False),  # as JSON in JSON
        ("assistant", QUOTED, f"A: {QUOTED}", True),
        ("assistant", "It is\n4.", "A: It is 4.", True),
        ("assistant", QUOTED, r"A: say \"é\"", False),  # a reply that is spelled otherwise is another
        ("assistant", "<think>\nso\n</think>\n\n4", "A: 4", True),
        ("assistant", "<think>\nso\n</think>\n\n4", "A: so", False),
        ("assistant", "so</think> 4 ", "A:4", True),
    ],
)
def test_the_text_of_every_message_is_kept(role, content, text, kept):
    messages = [turn("system", ""), turn(role, content)]
    said = None if kept else f"template_error: the template leaves out message 1 ({role})"
    assert error_of(refuse_left_out, messages, text) == said


def test_the_first_message_that_is_left_out_is_named():
    messages = [turn("user", "2 + 2?"), turn("assistant", "four"), turn("user", "3?"), turn("user", "5?")]
    said = "template_error: the template leaves out message 2 (user)"
    assert error_of(refuse_left_out, messages, "2+2? four") == said
    assert error_of(refuse_left_out, messages, "2+2? four 3? 5?") is None


# ---- calls -------------------------------------------------------------------------------------------------


def rendered(messages, asks=False) -> str:
    """All contents and calls."""
    return "".join(each["content"] + json.dumps(each.get("tool_calls", [])) for each in messages)


def without(drop):
    """A template that changes what it renders by `drop`."""
    return lambda messages, asks: rendered([drop(dict(each)) for each in deepcopy(messages)])


def first_call(each):
    return each | {"tool_calls": each.get("tool_calls", [])[:1]}


def no_text(each):
    return each | {"content": ""} if each.get("tool_calls") else each


def no_arguments(each):
    return {key: value for key, value in each.items() if key != "tool_calls"}


ASKED = turn("user", "It?")
ONE, TWO, THREE = [call()], [call(), call()], [call(a=2), call(a=2), call(a=2)]


@pytest.mark.parametrize(
    ("calls", "content", "drop", "said"),
    [
        (THREE, "", dict, None),
        (THREE, "It", dict, None),
        (ONE, "It", first_call, None),
        (TWO, "It", first_call, "the template renders 1 of 2 calls of message 1"),
        (THREE, "", first_call, "the template renders 1 of 3 calls of message 1"),
        (ONE, "", no_arguments, "the template renders 0 of 1 calls of message 1"),
        (ONE, "It", no_text, "the template leaves out the text of message 1, which calls"),
        (ONE, "<think>so</think>It", no_text, "the template leaves out the text of message 1, which calls"),
        (ONE, "<think>It</think>", no_text, None),
        (ONE, " \n", no_text, None),
    ],
)
@pytest.mark.parametrize("after", [0, 1])
def test_every_call_and_the_text_beside_it_is_kept(calls, content, drop, said, after):
    """In an earlier turn as in the last."""
    messages = [ASKED, turn("assistant", content, tool_calls=calls), *after * [turn("assistant", "It.")]]
    assert error_of(refuse_lost, without(drop), messages) == (said and f"template_error: {said}")


def test_a_call_that_is_lost_behind_one_that_is_kept():
    """Marks of one turn are not taken for those of another."""
    lost = turn("assistant", "", tool_calls=TWO)
    messages = [ASKED, turn("assistant", "It", tool_calls=TWO), turn("tool", "4"), lost]

    def render(seen, asks):
        return rendered([*seen[:3], first_call(seen[3])])

    said = "template_error: the template renders 1 of 2 calls of message 3"
    assert error_of(refuse_lost, render, messages) == said


@pytest.mark.parametrize(("more", "asks"), [((), False), ((False,), False), ((True,), True)])
def test_what_is_rendered_with_marks(more, asks):
    """First only texts that would not be missed, then only arguments and the text behind a thought."""
    calls = [call("add", a=2) | {"type": "function"}, call("add", a=2)]
    messages = [ASKED, turn("assistant", "4</think>\n4", tool_calls=calls, weight=0)]
    before, seen = deepcopy(messages), []

    def render(marked, asked):
        seen.append(deepcopy(marked))
        assert asked == asks
        return rendered(marked)

    refuse_lost(render, messages, *more)
    [[hidden, reply], [asked, turn_that_calls]] = seen
    assert messages == before and reply == messages[1] and asked == ASKED
    assert hidden.pop("content") not in ("", "It?") and hidden == {"role": "user"}
    content, marked = turn_that_calls.pop("content"), turn_that_calls.pop("tool_calls")
    assert content.startswith("4</think>\n") and not content.endswith("4")
    assert turn_that_calls == {"role": "assistant", "weight": 0}
    found = [each["function"].pop("arguments") for each in marked]
    assert all(isinstance(each, dict) for each in found) and found[0] != found[1]
    assert marked == [{"id": "c", "type": "function", "function": {"name": "add"}}, marked[1]]


LONG = "Is it four or so"
"""Of 16 characters: nothing else says it by chance."""


@pytest.mark.parametrize(
    ("messages", "marked"),
    [
        ([turn("user", LONG), turn("assistant", "5"), turn("assistant", "4", tool_calls=[])], [0, 1]),
        ([turn("user", LONG), turn("assistant", "4"), turn("user", " "), turn("assistant", "5")], [0, 1]),
        ([turn("user", LONG), turn("assistant", "4", trained=False)], [0, 1]),
        ([turn("system", LONG), turn("user", LONG), turn("assistant", "4")], [0, 1]),
        ([turn("user", LONG), turn("assistant", "4"), turn("tool", "4"), turn("tool", " ")], [0, 1, 2]),
        ([turn("user", LONG), turn("assistant", "", tool_calls=TWO)], [0]),
    ],
)
def test_all_that_is_said_is_marked_but_a_last_reply(messages, marked):
    """What is trained of that is proved otherwise."""
    seen = []

    def render(others, asks):
        seen.append([k for k, each in enumerate(others) if each != messages[k]])
        return rendered(others)

    refuse_lost(render, messages)
    assert seen[0] == marked


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool"])
def test_a_turn_is_not_lost_because_another_says_its_words(role):
    messages = [turn("user", LONG), turn(role, "4"), turn("assistant", "It is 4.")]
    lossy = without(lambda each: each | {"content": ""} if each["role"] == role else each)
    first = 0 if role == "user" else 1
    assert error_of(refuse_lost, lossy, messages) == (
        f"template_error: the template leaves out message {first} ({role})"
    )
    assert error_of(refuse_lost, rendered, messages) is None


QUOTED_TOOL = '{"temperature": 21, "unit": "C"}'


@pytest.mark.parametrize(
    ("lost", "reply"),
    [
        (turn("tool", QUOTED_TOOL), turn("assistant", '{"temperature":21,"unit":"C"}')),
        (turn("tool", QUOTED_TOOL), turn("assistant", "21", reasoning_content=f"It says {QUOTED_TOOL}")),
        (
            turn("tool", 'he said "yes, do it" twice'),
            turn("assistant", r'{"text": "he said \"yes, do it\" twice"}'),
        ),
        (turn("assistant", "4", trained=False), turn("assistant", "It is 4.")),
        (turn("assistant", "<think>a</think>4", trained=False), turn("assistant", "It is 4.")),
        (turn("assistant", LONG, trained=False), turn("assistant", f"You asked: {LONG}")),
    ],
)
def test_a_turn_that_another_quotes_in_its_own_way_is_not_lost(lost, reply):
    messages = [turn("user", "What is the weather like?"), lost, turn("user", "And now, please?"), reply]
    who = lost["role"], lost.get("trained")
    lossy = without(
        lambda each: each | {"content": ""} if (each["role"], each.get("trained")) == who else each
    )
    assert error_of(refuse_lost, lossy, messages) == (
        f"template_error: the template leaves out message 1 ({lost['role']})"
    )
    assert error_of(refuse_lost, rendered, messages) is None


@pytest.mark.parametrize(
    "written",
    [
        str.lower,
        str.upper,
        lambda text: text[:2],
        lambda text: " ".join(text),
        lambda text: f"<mode {len(text)}>",
    ],
)
def test_a_turn_that_the_template_writes_in_its_own_way_is_not_lost(written):
    messages = [turn("system", "2+2="), turn("user", "Seven?"), turn("assistant", "It is 4.")]
    assert (
        error_of(
            refuse_lost,
            lambda each, asks: rendered([m | {"content": written(m["content"])} for m in each]),
            messages,
        )
        is None
    )


def test_a_template_that_reads_arguments_fails_with_marks():
    def render(messages, asks):
        raise RowError("template_error", "no argument a")

    refuse_lost(render, [ASKED, turn("assistant", "It", tool_calls=TWO)])


# ---- a turn that is trained --------------------------------------------------------------------------------

CHANGED = "template_error: the template changes the text of message 3"


@pytest.mark.parametrize(
    ("message", "said", "kept"),
    [
        (turn("assistant", "It is 4."), "It is 4.<end>", True),
        (turn("assistant", " It is\n4. "), "It is 4.<end>", True),
        (turn("assistant", "It is 4."), "It is 5.<end>", False),
        (turn("assistant", 'a "b"'), r"a \"b\"", False),
        (turn("assistant", "<think>so</think>4"), "so\n</think>\n4", True),
        (turn("assistant", "<think>so</think>4"), "4", False),
        (turn("assistant", "<think>so</think>4"), "so", False),
        (turn("assistant", "4", reasoning_content="s o"), "so</think>4", True),
        (turn("assistant", "4", reasoning_content="so"), "4", False),
    ],
)
def test_a_trained_turn_says_all_of_its_text(message, said, kept):
    assert error_of(refuse_changed, message, said, 3) == (None if kept else CHANGED)


@pytest.mark.parametrize(
    ("calls", "said", "kept"),
    [
        ([call("add", a=2)], '{"name": "add", "arguments": {"a": 2}}', True),
        ([call("add", a=2)], "plus(a=2)", False),
        ([call("add", key=2)], "add(2)", False),
        ([call("add", key=23)], "add(key=24)", False),
        ([call("f"), call("g", k=0.125)], "f() g(k=0.125)", True),
        ([call("f"), call("g", k=0.125)], "f() g(k=0.1)", False),
        ([call(k=[7, {"deep": "x"}])], "f(k=[7, {deep: x}])", True),
        ([call(k=[7, {"deep": "x"}])], "f(k=[7, {deep: y}])", False),
        ([call(k=[7, {"deep": "x"}])], "f(k=[7, x])", False),
        ([call(k=[7, {"deep": "x"}])], "f(k=[{deep: x}])", False),
        ([call(k=[True, None], no=False)], "f(k=[yes, nil], no=0)", True),
    ],
)
def test_a_trained_call_says_its_name_and_all_arguments(calls, said, kept):
    message = turn("assistant", "", tool_calls=calls)
    assert error_of(refuse_changed, message, said, 3) == (None if kept else CHANGED)


@pytest.mark.parametrize(
    ("spelled", "kept"),
    [
        ('xé"\x07', True),
        (r"xé\"\u0007", True),  # JSON
        (r"x\u00e9\"\u0007", True),  # in ASCII
        (r"xé\\\"\\u0007", True),  # JSON in JSON
        (r"x\\u00e9\\\"\\u0007", True),
        (r'xé"\x07', True),  # Python
        (r"x\xe9\"\x07", False),
        ('xé"', False),
    ],
)
def test_an_argument_is_spelled_as_json_or_python_do(spelled, kept):
    message = turn("assistant", "", tool_calls=[call(k='xé"\x07')])
    assert error_of(refuse_changed, message, f"f(k={spelled})", 3) == (None if kept else CHANGED)


@pytest.mark.parametrize(
    ("prompt", "said", "twice"),
    [
        ("Q A:<think>\n", "<think>so</think>4", True),
        ("Q A:<think>", "\n<think>so</think>4", True),
        ("Q A:<think>", "so</think>4", False),
        ("Q A:", "<think>so</think>4", False),
        ("Q <think> A:", "<think>so</think>4", False),
    ],
)
def test_a_thought_is_opened_once(prompt, said, twice):
    want = (
        "template_error: the template opens the thought of message 3 twice; write it under "
        "'reasoning_content', without <think>"
    )
    assert error_of(refuse_twice, prompt, said, 3) == (want if twice else None)


def test_a_thought_behind_one_that_the_prompt_has_closed():
    want = (
        "template_error: the prompt has closed the thought of message 1, which opens one behind it; leave "
        "out the thought, or the option that turns thinking off"
    )
    closed = "A: <think>\n\n</think>\n\n"
    assert error_of(refuse_twice, closed, "<think>so</think>4", 1) == want
    assert error_of(refuse_twice, closed, "4", 1) is None
    assert error_of(refuse_twice, f"{closed}Well: ", "<think>so</think>4", 1) is None


@pytest.mark.parametrize("asks", [False, True])
def test_an_earlier_reply_is_not_lost(asks):
    """Under `train_on: last` and in a prompt nothing else looks at it."""
    messages = [turn("user", LONG), turn("assistant", "4"), turn("user", "Is 2+2 4, really?")]
    messages += [] if asks else [turn("assistant", "Yes")]

    def last_only(each, asks):
        return rendered([m for m in each if m["role"] != "assistant" or m is each[-1]])

    assert error_of(refuse_lost, last_only, messages, asks) == (
        "template_error: the template leaves out message 1 (assistant)"
    )
    assert error_of(refuse_lost, rendered, messages, asks) is None


SAID = ("The cat sat on the mat.", "A second sentence, longer.", "Who sat on the mat?")
CONTENTS = st.lists(st.sampled_from(SAID), min_size=1, max_size=3).map(" ".join)


@given(st.lists(CONTENTS, min_size=1, max_size=6), st.data())
def test_turns_that_quote_each_other_have_places_of_their_own(contents, data):
    messages = [{"role": ("user", "assistant")[k % 2], "content": each} for k, each in enumerate(contents)]
    rendered = [f"<{turn['role']}> {turn['content']}\n" for turn in messages]
    assert says_all(messages, "".join(rendered))
    del rendered[data.draw(st.integers(0, len(rendered) - 1))]
    assert not says_all(messages, "".join(rendered))


@pytest.mark.parametrize(
    "other",
    [
        {"content": "short"},  # may stand in the template
        {"reasoning_content": "The mat: who sat on it?"},  # may quote what was asked
        {"content": "The  cat sat on the mat."},  # is written in another way
    ],
)
def test_what_needs_a_closer_look(other):
    messages = [{"role": "user", "content": SAID[2]}, {"role": "assistant", "content": SAID[0]}]
    text = "\n".join(turn["content"] for turn in messages)
    assert says_all(messages, text)
    assert not says_all([messages[0], messages[1] | other], f"{text} short")
