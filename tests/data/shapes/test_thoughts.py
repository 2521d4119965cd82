"""Thoughts with the marks of a template around them, and settings under their keys, wherever they stand."""

from __future__ import annotations

import pytest

from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.names import SPELT
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source
from tests.data.tokens import HERMES, byte_tokenizer, row_of, trained

USER, SAID = {"role": "user", "content": "u"}, {"role": "assistant", "content": "4"}
KEYS = ["reasoning_content", "reasoning", "thinking"]


def read(row, shape="rows", **more):
    return SHAPES[shape].read(row, Source(name="s", path="rows.jsonl", **more), "rows.jsonl:7")[0]


def rows_of(key, thought, text="4"):
    """Rows that say the same: in a message, in the columns beside texts, beside messages."""
    said = SAID | {"content": text}
    yield {"messages": [USER, said | {key: thought}]}, "rows"
    yield {"prompt": "u", "completion": text, key: thought}, "rows"
    yield {"prompt": "u", "completion": [said | {key: thought}]}, "rows"
    yield {"messages": [USER, said], key: thought}, "rows"
    yield {"prompt": "u", "chosen": [said | {key: thought}], "rejected": "5"}, "pairs"
    best = {"text": text, "rating": 2, key: thought}
    yield {"prompt": "u", "completions": [best, {"text": "5", "rating": 1}]}, "pairs"


@pytest.mark.parametrize("key", KEYS)
def test_marks_around_a_whole_thought_are_taken_off(key):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = HERMES
    for thought in ("<think>t</think>", " <think>\nt\n</think>\n\n", "t"):
        for row, shape in rows_of(key, thought):
            found = read(row, shape)
            assert found.messages == [USER, SAID | {key: "t"}]
            assert trained(row_of(found, "tokenizer", tokenizer), tokenizer) == "<think>t</think>4<|im_end|>"
    assert read({"messages": [USER, SAID | {key: "<think>\n\n</think>"}]}).messages == [USER, SAID]
    text = {"prompt": "u", "completion": "<think>t</think>4", key: "<think>t</think>"}
    assert read(text).completion == text["completion"], "the reply says it itself"
    about = "write <think> first\nthen"
    assert read({"messages": [USER, SAID | {key: about}]}).messages[1][key] == about


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("blank", [" ", "\n", " \n\t", "<think>\n \n</think>", "\u3000"])
def test_white_space_is_no_thought(key, blank):
    """Trained, it would teach to open a thought and think nothing."""
    for row, shape in rows_of(key, blank):
        found = read(row, shape)
        turns = found.messages or [USER, {"role": "assistant", "content": found.completion}]
        assert turns == [USER, SAID] and found.unused == ()
    other = "thinking" if key == "reasoning" else "reasoning"
    assert read({"messages": [USER, SAID | {key: blank, other: "t"}]}).messages == [USER, SAID | {other: "t"}]
    parts = [{"type": "thinking", "thinking": blank}, {"type": "text", "text": "4"}]
    assert read({"messages": [USER, SAID | {"content": parts}]}).messages == [USER, SAID]
    assert read({"messages": [USER | {key: blank}, SAID]}).messages == [USER, SAID]


def test_marks_around_a_thinking_part():
    for part, wanted in (("<think>t</think>", {"thinking": "t"}), ("<think></think>", {})):
        parts = [{"type": "thinking", "thinking": part}, {"type": "text", "text": "4"}]
        assert read({"messages": [USER, SAID | {"content": parts}]}).messages == [USER, SAID | wanted]
    for first, second in (("<think>a</think>", "b"), ("a", "<think>b</think>"), ("<think>a</think>",) * 2):
        parts = [{"type": "thinking", "thinking": each} for each in (first, second)]
        row = {"messages": [USER, SAID | {"content": [*parts, {"type": "text", "text": "4"}]}]}
        assert read(row).messages[1]["thinking"] == ("ab" if "b" in first + second else "aa")
    parts = [{"type": "thinking", "thinking": "a</think>b"}]
    with pytest.raises(RequestError, match="message 1: parts of content has </think> in the thought"):
        read({"messages": [USER, SAID | {"content": parts}]})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("thought", "mark"),
    [
        ("a</think>b", "</think>"),
        ("t</think>", "</think>"),
        ("<think>a</think>b</think>", "</think>"),
        ("<think>a</think>4", "</think>"),
        ("<think>a", "<think>"),
    ],
)
def test_a_mark_that_would_end_the_thought_is_refused(key, thought, mark):
    for row, shape in rows_of(key, thought):
        with pytest.raises(RequestError) as error:
            read(row, shape)
        said = str(error.value)
        assert said.startswith("rows.jsonl:7: ") and f"{key!r} has {mark} in the thought" in said
        assert repr(thought) in said and f"ignore: [{key}]" in said and "on_error: skip" in said
        assert read(row, shape, ignore=[key]).ignored == (key,)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "label",
    ["off", "None", " HIGH\n", "n/a", "1", "0.0", "nan", "xhigh", "/no_think", "{}", "<think>off</think>"],
)
def test_a_setting_in_a_message_is_no_thought(key, label):
    row = {"messages": [USER, SAID | {key: label}]}
    with pytest.raises(RequestError) as error:
        read(row)
    assert str(error.value) == (
        f"rows.jsonl:7: column 'messages', message 1: {key!r} must be a thought, not {label!r}; set ignore: "
        f"[{key}] if it means something else, or on_error: skip where only a few rows have it"
    )
    assert read(row, ignore=[key]).messages == [USER, SAID]


def test_a_named_column_is_refused_by_its_name():
    row = {"prompt": "u", "completion": "4", "cot": "a</think>b"}
    with pytest.raises(RequestError, match="^rows.jsonl:7: column 'cot' has </think> .*columns.reasoning on"):
        read(row, columns=Columns(reasoning="cot"))
    with pytest.raises(RequestError, match="^rows.jsonl:7: column 'cot' must be a thought, not '<think>none"):
        read(row | {"cot": "<think>none</think>"}, columns=Columns(reasoning="cot"))
    found = read(row | {"cot": "<think>a</think>"}, columns=Columns(reasoning="cot"))
    assert found.messages[1]["reasoning_content"] == "a"


@pytest.mark.parametrize("flag", [*SPELT, "TRUE", "nan", "minimal", "max", "concise", "disable", "-", "[]"])
@pytest.mark.parametrize("key", KEYS)
def test_a_flag_of_a_csv_is_no_thought(key, flag):
    with pytest.raises(
        RequestError, match=f"column {key!r} must be a thought, not {flag!r}".replace("[", ".")
    ):
        read({"prompt": "hi", "completion": "yo", key: flag})
    assert read({"messages": [USER, SAID], key: flag}).messages == [USER, SAID], "a setting of the row"


def test_many_line_breaks_in_a_thought():
    breaks = "\n" * 10_000
    for thought, wanted in (
        (f"<think>{breaks}x{breaks}</think>{breaks}", "x"),
        (f"<think>{breaks}x{breaks}y</think>", f"x{breaks}y"),
    ):
        assert read({"messages": [USER, SAID | {"reasoning": thought}]}).messages[1]["reasoning"] == wanted
    with pytest.raises(RequestError, match="has </think> in the thought"):
        read({"messages": [USER, SAID | {"reasoning": f"<think>{breaks}x</think>y"}]})


def test_thoughts_that_differ_in_space_alone_are_one():
    said = SAID | {"reasoning": "x\n", "thinking": "x"}
    assert read({"messages": [USER, said]}).messages == [USER, SAID | {"reasoning": "x\n"}]
    row = {"messages": [USER, said | {"thinking": "y"}]}
    with pytest.raises(
        RequestError,
        match=r"different reasoning under reasoning and thinking; keep one, or set ignore: .thinking.$",
    ):
        read(row)
    assert read(row, ignore=["thinking"]).messages[1]["reasoning"] == "x\n"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("text", ["<think>\nh\n</think>\n\n4", "<think>h</think>4"])
def test_a_thought_that_the_text_says_too_is_trained_once(key, text):
    """As of a column beside a completion."""
    for row, shape in rows_of(key, "h", text):
        found = read(row, shape)
        turns = found.messages or [{}, {"role": "assistant", "content": found.completion}]
        assert turns[1] == SAID | {"content": text}
    parts = [{"type": "thinking", "thinking": "h"}, {"type": "text", "text": text}]
    assert read({"messages": [USER, SAID | {"content": parts}]}).messages[1] == SAID | {"content": text}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("text", ["h</think>4", " h \n</think>4", "h\n</think>\n\n4", "h</think>\r\n4"])
def test_a_thought_whose_opening_mark_is_in_the_prompt(key, text):
    """The prompts of other templates have no such mark: what ends it would be trained as a reply."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = HERMES
    for row, shape in rows_of(key, "h", text):
        found = read(row, shape)
        assert found.messages == [USER, SAID | {key: "h"}] and found.unused == ()
        assert trained(row_of(found, "tokenizer", tokenizer), tokenizer) == "<think>h</think>4<|im_end|>"
    parts = [{"type": "thinking", "thinking": "h"}, {"type": "text", "text": text}]
    assert read({"messages": [USER, SAID | {"content": parts}]}).messages[1] == SAID | {"thinking": "h"}
    assert read({"prompt": "u", "completion": text}).completion == text, "without a key it may be meant so"
    shown = [USER, SAID | {"content": text, "weight": 0}, USER, SAID]
    found = read({"messages": shown, key: "h"}).messages
    assert found[1]["content"] == text and found[3] == SAID | {key: "h"}, "what is not trained stays as it is"


@pytest.mark.parametrize("text", ["h\n</think>\n\n4", "</think>\n4"])
def test_another_thought_beside_a_column_is_refused(text):
    for row in ({"prompt": "u", "completion": text}, {"messages": [USER, SAID | {"content": text}]}):
        with pytest.raises(RequestError, match="column 'reasoning' and the reply itself differ; keep one"):
            read(row | {"reasoning": "g"})
        assert read(row | {"reasoning": "g"}, ignore=["reasoning"]).ignored == ("reasoning",)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "text",
    [
        "<think>g</think>4",
        "<think>\n\n</think>4",
        "<think>h2",
        "g\n</think>\n\n4",
        "g</think> \n4",
        "g</think>",
    ],
)
def test_another_thought_in_the_text_is_refused(key, text):
    """It would be trained behind the first."""
    reply = SAID | {"content": text, key: "h"}
    for row, shape in (
        ({"messages": [USER, reply]}, "rows"),
        ({"prompt": "u", "completion": [reply]}, "rows"),
        ({"prompt": "u", "chosen": [reply], "rejected": "5"}, "pairs"),
        (
            {
                "prompt": "u",
                "completions": [{"text": text, key: "h", "rating": 2}, {"text": "5", "rating": 1}],
            },
            "pairs",
        ),
    ):
        with pytest.raises(
            RequestError,
            match=f"different reasoning under {key} and in the text; keep one, or set ignore: .{key}.$",
        ):
            read(row, shape)
        found = read(row, shape, ignore=[key])
        assert text in (found.completion or found.messages[1]["content"])
    parts = [{"type": "thinking", "thinking": "h"}, {"type": "text", "text": text}]
    for more, remedy in (({}, "keep one$"), ({key: "k"}, "keep one$")):
        with pytest.raises(RequestError, match=remedy):
            read({"messages": [USER, SAID | {"content": parts} | more]})


def test_a_text_that_speaks_of_a_mark_has_no_thought():
    about = "</think> ends a thought"
    for said in (about, f"The mark {about}"):
        turn = SAID | {"content": said, "reasoning": "h"}
        assert read({"messages": [USER, turn]}).messages[1] == turn
    asked = {"role": "user", "content": "<think>g</think>?", "reasoning": "h"}
    assert read({"messages": [asked, SAID]}).messages[0] == asked


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [False, 3, {"a": 1}, ["t"]])
def test_what_is_no_text_may_be_ignored(key, value):
    best = {"text": "4", "rating": 2, key: value}
    for row, shape in (
        ({"messages": [USER, SAID | {key: value}]}, "rows"),
        ({"prompt": "u", "completions": [best, {"text": "5", "rating": 1}]}, "pairs"),
    ):
        with pytest.raises(
            RequestError,
            match=rf"{key!r} must be text, not .*; set ignore: .{key}. if it means something else$",
        ):
            read(row, shape)
        assert (read(row, shape, ignore=[key]).messages or [0, SAID])[1] == SAID


@pytest.mark.parametrize("flag", ["weight", "loss", "train", "training", "trained"])
@pytest.mark.parametrize("value", [1.3, "rlhf", "1"])
def test_what_is_no_flag_may_be_ignored(flag, value):
    best = {"text": "4", "rating": 2, flag: value}
    for row, shape in (
        ({"messages": [USER, SAID | {flag: value}]}, "rows"),
        ({"prompt": "u", "completions": [best, {"text": "5", "rating": 1}]}, "pairs"),
    ):
        with pytest.raises(
            RequestError,
            match=rf"{flag!r} must be 0 or 1 .*; set ignore: .{flag}. if it means something else$",
        ):
            read(row, shape)
        assert (read(row, shape, ignore=[flag]).messages or [0, SAID])[1] == SAID
