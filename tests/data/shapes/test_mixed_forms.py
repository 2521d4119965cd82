"""Rows of which one column is text and another messages: every check of messages holds, and they compare."""

from __future__ import annotations

import json

import pytest

from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Data, Source
from tests.data.tokens import HERMES, byte_tokenizer, row_of, trained

USER, SAID = {"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def read(row, shape="rows", **more):
    return SHAPES[shape].read(row, Source(name="s", path="rows.jsonl", **more), "rows.jsonl:7")


def dropped(row, shape="rows", **more) -> str:
    with pytest.raises(RowError) as caught:
        read(row, shape, **more)
    return caught.value.reason


@pytest.mark.parametrize("shape", ["rows", "labelled"])
@pytest.mark.parametrize("beside", [{}, {"reasoning": "t"}, {"tool_calls": [CALL]}])
@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_only_an_assistant_replies_to_a_text(shape, beside, role):
    row = {"completion": [{"role": role, "content": "x"}], "label": 1} | beside
    assert dropped({"prompt": "u"} | row, shape) == "no_assistant_turn"
    assert dropped({"prompt": [USER]} | row, shape) == "no_assistant_turn"


@pytest.mark.parametrize("content", ["", None, "  \n"])
def test_an_empty_reply_to_a_text_is_dropped(content):
    for reply in ({"role": "assistant", "content": content}, {"from": "gpt", "value": content}):
        for shape in ("rows", "labelled"):
            assert dropped({"prompt": "u", "completion": [reply], "label": 1}, shape) == "empty_reply"
        assert dropped({"prompt": "u", "chosen": [reply], "rejected": "x"}, "pairs") == "empty_reply"
        assert dropped({"prompt": "u", "chosen": [SAID], "rejected": [reply]}, "pairs") == "empty_reply"


@pytest.mark.parametrize("instruction", ["u", [USER], USER, "\n\nHuman: u\n\nAssistant:"])
def test_the_input_of_alpaca_stands_behind_the_instruction(instruction):
    row = {"instruction": instruction, "input": "i", "label": 1, "chosen": "x", "rejected": "y"}
    for shape in ("rows", "labelled", "pairs", "prompts"):
        (found, *_) = read(row | {"output": "x"}, shape)
        turns = found.messages or [{"content": found.prompt}, SAID]
        assert turns[-1 if shape == "prompts" and found.messages else -2]["content"] == "u\n\ni"
        assert "input" not in found.unused


def test_an_input_behind_no_users_message_is_refused():
    row = {"instruction": [USER, SAID], "input": "i", "output": "x"}
    with pytest.raises(RequestError, match="^rows.jsonl:7: column 'input' .* ignore: .input. on the source"):
        read(row, roles="loose")
    assert len(read(row, roles="loose", ignore=["input"])[0].messages) == 3
    with pytest.raises(RequestError, match="'input' must be text, not a number"):
        read({"instruction": [USER], "input": 0, "output": "x"})


@pytest.mark.parametrize("content", ["", " \n"])
@pytest.mark.parametrize("roles", ["strict", "join", "loose"])
def test_an_empty_question_is_none_as_text_or_as_messages(content, roles):
    silent = {"role": "user", "content": content}
    for prompt in (content, [silent], [silent | {"role": "system"}, silent], silent):
        row = {"prompt": prompt, "completion": "x", "label": 1, "chosen": "x", "rejected": "y"}
        for shape in ("rows", "labelled", "pairs", "prompts"):
            assert dropped(row, shape, roles=roles) == "no_prompt"
    assert dropped({"messages": [silent, SAID]}, roles=roles) == "no_prompt"
    assert dropped({"messages": [silent]}, "prompts", roles=roles) == "no_prompt"
    for asked in ([USER, SAID, silent], [{"role": "system", "content": "s"}, silent]):
        assert read({"messages": [*asked, SAID]}, roles=roles)[0].messages == [*asked, SAID]
        assert read({"prompt": asked, "completion": "x"}, roles=roles)[0].messages == [*asked, SAID]


def parts(row, shape="rows"):
    return SHAPES[shape].parts(read(row, shape), Data(sources=[]))


@pytest.mark.parametrize("content", ["", None, "  \n"])
def test_a_thought_alone_is_no_reply(content):
    """As an empty completion beside a column of reasoning is none."""
    reply = {"role": "assistant", "content": content, "reasoning": "t"}
    bare = {"role": "assistant", "content": content}
    rated = [{"text": content, "reasoning": "t", "rating": 2}, {"text": "x", "rating": 1}]
    assert dropped({"prompt": "u", "completions": rated}, "pairs") == "no_chosen"
    for row, shape in (
        ({"messages": [USER, reply]}, "rows"),
        ({"messages": [USER, reply, USER, SAID]}, "rows"),
        ({"messages": [USER, bare], "reasoning": "t"}, "rows"),
        ({"prompt": "u", "completion": [reply]}, "rows"),
        ({"prompt": [USER], "completion": [bare], "reasoning": "t"}, "rows"),
        ({"prompt": "u", "completion": [reply], "label": 1}, "labelled"),
        ({"prompt": "u", "chosen": [SAID], "rejected": [reply]}, "pairs"),
        ({"messages": [USER, reply, USER]}, "prompts"),
    ):
        with pytest.raises(
            RowError, match=r"^empty_reply: message \d .assistant. says nothing behind its th"
        ):
            parts(row, shape)
    assert dropped({"prompt": "u", "completion": content, "reasoning": "t"}) == "no_completion"
    assert parts({"messages": [USER, reply | {"weight": 0}, USER, SAID]})
    answer = {"role": "tool", "content": "4"}
    assert parts({"messages": [USER, reply | {"tool_calls": [CALL]}, answer, SAID]})
    cut = {"prompt": "u", "chosen": [SAID], "rejected": [reply], "rejected_is_prefix": True}
    assert parts(cut, "pairs")[1].messages[1]["reasoning"] == "t", "a prefix may end in its thought"


@pytest.mark.parametrize(
    "text", ["<think>h</think>", "<think>\nh\n</think>\n\n", "h</think>", "<think></think>"]
)
def test_a_thought_alone_in_a_text_is_no_reply(text):
    reply = SAID | {"content": text}
    for row, shape in (
        ({"messages": [USER, reply]}, "rows"),
        ({"messages": [USER, reply, USER, SAID]}, "rows"),
        ({"prompt": "u", "completion": text}, "rows"),
        ({"prompt": "u", "completion": text, "label": 1}, "labelled"),
        ({"prompt": "u", "completion": [reply], "label": 1}, "labelled"),
        ({"prompt": "u", "chosen": text, "rejected": "x"}, "pairs"),
        ({"prompt": "u", "chosen": "x", "rejected": text}, "pairs"),
    ):
        with pytest.raises(RowError, match="^empty_reply: .* says nothing behind its thought$"):
            parts(row, shape)
    cut = {"prompt": "u", "chosen": "x", "rejected": text, "rejected_is_prefix": True}
    assert parts(cut, "pairs")[1].completion == text, "a prefix may end in its thought"
    assert parts({"messages": [USER, reply | {"weight": 0}, USER, SAID]})
    assert parts({"messages": [USER | {"content": text}, SAID]})
    assert parts({"messages": [USER, reply | {"tool_calls": [CALL]}]})
    assert parts({"prompt": "u", "completion": f"{text}x"})
    assert parts({"text": text})[0].completion == text, "plain text has no replies"


def test_a_reply_as_messages_is_a_conversation_and_two_texts_are_none():
    (found,) = read({"prompt": "u", "completion": [SAID]})
    assert found.messages == [USER, SAID] and found.prompt is None
    for prompt in ("u", "\n\nHuman: u\n\nAssistant:"):
        (found,) = read({"prompt": prompt, "completion": "x"})
        assert (found.messages, found.prompt, found.completion) == (None, "u", "x")
    only_marks = {"prompt": "u", "completion": "<<1+1=2>>"}
    assert dropped(only_marks, options={"strip_calculator": True}) == "empty_reply"


@pytest.mark.parametrize(
    "turns", [[USER, SAID, USER], [SAID], [SAID | {"role": "admin"}], [{"from": "Paris"}]]
)
def test_json_text_is_a_text(turns):
    """Of messages, too: a judge is asked about conversations, and a completion may be one."""
    text = json.dumps(turns)
    row = {"system": "s", "prompt": text, "completion": text, "chosen": text, "rejected": "y", "label": 1}
    system = {"role": "system", "content": "s"}
    asked = [system, USER | {"content": text}]
    for shape in ("rows", "labelled", "pairs"):
        assert read(row, shape)[0].messages == [*asked, SAID | {"content": text}]
    assert read(row, "prompts")[0].messages == asked
    (found,) = read({"prompt": text, "completion": text})
    assert (found.messages, found.prompt, found.completion) == (None, text, text)
    assert read({"prompt": "q", "chosen": "x", "rejected": text}, "pairs")[1].completion == text


@pytest.mark.parametrize("shape", ["rows", "labelled"])
def test_one_message_is_a_list_of_one(shape):
    for row in ({"prompt": USER, "completion": SAID}, {"prompt": "u", "completion": SAID}):
        assert read(row | {"label": 1}, shape)[0].messages == [USER, SAID]
    assert read({"prompt": USER}, "prompts")[0].messages == read({"messages": USER}, "prompts")[0].messages


@pytest.mark.parametrize("shape", ["rows", "labelled"])
def test_a_reply_behind_a_transcript_is_stripped_as_in_one(shape):
    row = {"prompt": "\n\nHuman: u\n\nAssistant:", "completion": " x\n", "label": 1}
    assert read(row, shape)[0].completion == "x"
    assert read(row | {"prompt": "u"}, shape)[0].completion == " x\n"


@pytest.mark.parametrize("prompt", ["\n\nHuman:\n\nAssistant:", "\n\nHuman: ", "\n\nAssistant:"])
def test_a_transcript_without_text_is_no_prompt(prompt):
    row = {"prompt": prompt, "completion": "b", "label": 1, "chosen": "c", "rejected": "d"}
    for shape in ("rows", "labelled", "pairs", "prompts"):
        assert dropped(row, shape) == "no_prompt"


def test_what_an_assistant_says_in_a_transcript_is_no_question():
    row = {"prompt": "\n\nAssistant: hello", "completion": "b", "label": 1, "chosen": "c", "rejected": "d"}
    for shape in ("rows", "labelled", "pairs"):
        assert dropped(row, shape) == "assistant_first"
    with pytest.raises(RequestError, match="the prompt ends with an assistant message"):
        read(row, "prompts")
    (found,) = read(row, roles="loose")
    assert found.messages == [{"role": "assistant", "content": "hello"}, SAID | {"content": "b"}]


@pytest.mark.parametrize("asked", ["u", [USER]])
@pytest.mark.parametrize(
    ("more", "more_of_rejected"),
    [
        ({"reasoning_content": "t"}, {}),
        ({"reasoning_content": "t"}, {"reasoning_content": None}),
        ({}, {"reasoning_content": "t"}),
        ({"tool_calls": [CALL]}, {}),
        ({"mood": "glad"}, {}),
    ],
)
def test_sides_that_say_different_things_answer_the_same_prompt(asked, more, more_of_rejected):
    row = {"prompt": asked, "chosen": [SAID | more], "rejected": [SAID | {"content": "c"} | more_of_rejected]}
    chosen, rejected = read(row, "pairs")
    assert chosen.messages == [USER, SAID | more]
    kept = {key: value for key, value in more_of_rejected.items() if value}
    assert rejected.messages == [USER, SAID | {"content": "c"} | kept]
    text = read(row | {"rejected": "c"}, "pairs")
    assert [side.messages for side in text] == [chosen.messages, [USER, SAID | {"content": "c"}]]


def test_sides_of_two_forms_are_trained_and_compared():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = HERMES
    thought = SAID | {"reasoning_content": "t"}
    sides = read({"prompt": "u", "chosen": [thought], "rejected": "c"}, "pairs")
    rows = [row_of(side, "tokenizer", tokenizer) for side in sides]
    assert [trained(row, tokenizer) for row in rows] == ["<think>t</think>x<|im_end|>", "c<|im_end|>"]
    assert dropped({"prompt": "u", "chosen": [SAID], "rejected": "x"}, "pairs") == "equal_pair"
    other = [{"role": "user", "content": "v"}, SAID]
    assert dropped({"prompt": "u", "chosen": other, "rejected": "c"}, "pairs") == "prompt_mismatch"
    muted = read({"prompt": "u", "chosen": [SAID | {"weight": 0}], "rejected": [SAID]}, "pairs")
    with pytest.raises(RowError, match="empty"):
        row_of(muted[0], "tokenizer", tokenizer)
