"""Columns to examples: every usual spelling, and a clear word for every row that does not fit."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.pairs import to_pair
from posttrain.data.shapes.prompts import to_prompt
from posttrain.data.shapes.rows import to_example
from posttrain.data.sources import open_rows
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source

WHERE = "rows.jsonl:7"


def example(row, **more):
    return to_example(row, Source(name="s", path="rows.jsonl", **more), WHERE)


def turns(row, **more) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in example(row, **more).messages]


@pytest.mark.parametrize(
    ("row", "prompt", "completion", "answer"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c", None),
        ({"prompt": "p", "completion": "c", "answer": "a"}, "p", "c", "a"),
        ({"prompt": "p", "completion": "c", "answer": 7}, "p", "c", "7"),
        ({"instruction": "i", "input": "x", "output": "o"}, "i\n\nx", "o", None),
        ({"instruction": "i", "input": "", "output": "o"}, "i", "o", None),
        ({"instruction": "i", "input": None, "response": "o"}, "i", "o", None),
        ({"question": "q", "answer": "w\n#### 3"}, "q", "w\n#### 3", "w\n#### 3"),
        ({"problem": "q", "solution": "s", "answer": "3"}, "q", "s", "3"),
        ({"problem": "q", "answer": "3"}, "q", "3", "3"),
        ({"text": "t"}, "", "t", None),
        ({"prompt": " p \n", "completion": " c ", "text": "t"}, " p \n", " c ", None),
    ],
)
def test_usual_spellings(row, prompt, completion, answer):
    found = example(row)
    assert (found.messages, found.prompt, found.completion) == (None, prompt, completion)
    assert (found.answer, found.where, found.p) == (answer, WHERE, None)


def test_named_columns_come_first():
    row = {"prompt": "no", "q": "p", "completion": "no", "a": "c", "text": "t", "n": "3", "rate": 0.5}
    names = Columns(prompt="q", completion="a", answer="n", p="rate")
    found = example(row, columns=names)
    assert (found.prompt, found.completion, found.answer, found.p) == ("p", "c", "3", 0.5)
    assert example(row, columns=Columns(text="a")).completion == "c"
    assert example(row, format="text").completion == "t"
    # a named prompt is taken as it is, without alpaca's `input`
    alpaca = {"instruction": "i", "input": "x", "output": "o"}
    assert example(alpaca, columns=Columns(prompt="instruction")).prompt == "i"


def test_conversations():
    openai = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
    assert turns(openai) == [("user", "u"), ("assistant", "a")]
    sharegpt = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "u"},
            {"from": "gpt", "value": "a"},
        ]
    }
    assert turns(sharegpt) == [("system", "s"), ("user", "u"), ("assistant", "a")]
    trl = {"prompt": openai["messages"][:1], "completion": openai["messages"][1:]}
    assert turns(trl) == [("user", "u"), ("assistant", "a")]
    transcript = {"chosen": "\n\nHuman: hi\n\nAssistant: yes\n\nno\n\nHuman: ok\n\nAssistant: bye"}
    assert turns(transcript, columns=Columns(messages="chosen")) == [
        ("user", "hi"),
        ("assistant", "yes\n\nno"),
        ("user", "ok"),
        ("assistant", "bye"),
    ]


def test_the_row_is_not_changed():
    row = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "<<1>>1"}]}
    example(row, system="s", options={"strip_calculator": True})
    assert row["messages"] == [{"role": "user", "content": "u"}, {"role": "assistant", "content": "<<1>>1"}]


def test_system_messages():
    pair = {"prompt": "p", "completion": "c"}
    whole = [("system", "s"), ("user", "p"), ("assistant", "c")]
    assert turns(pair, system="s") == whole
    assert turns({**pair, "system": "s"}) == whole
    assert turns({**pair, "system": "s"}, system="other") == whole
    assert turns({**pair, "system": ""}, system="s") == whole
    assert turns({**pair, "persona": "s"}, columns=Columns(system="persona")) == whole
    chat = {"messages": [{"role": r, "content": c} for r, c in whole]}
    assert turns(chat, system="other") == whole
    with pytest.raises(RequestError, match="rows.jsonl:7: plain text cannot have a system message"):
        example({"text": "t"}, system="s")


def test_calculator_marks_go_only_when_asked():
    row = {"question": "q <<1>>", "answer": "48/2 = <<48/2=24>>24\n#### 24"}
    assert example(row).completion == row["answer"]
    stripped = example(row, options={"strip_calculator": True})
    assert (stripped.prompt, stripped.completion) == ("q <<1>>", "48/2 = 24\n#### 24")
    assert stripped.answer == row["answer"]


CHAT = [{"role": "user", "content": "u"}]


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        (
            {"promt": "p", "text": "t"},
            {"columns": Columns(prompt="prompt")},
            r"no column 'prompt' \(columns\.prompt\) \(did you mean 'promt'\?\)",
        ),
        (
            {"question": "q"},
            {},
            r"no column with the completion was found; the row has question\. "
            r"Name the column under columns\.completion of source 's'",
        ),
        ({"completion": "q"}, {}, r"with the prompt was found; the row has completion"),
        ({"a": 1, "b": 2}, {}, r"with the text was found; the row has a, b\. Name"),
        ({}, {}, r"the row has no column at all"),
        ({"text": "t"}, {"format": "messages"}, r"with the messages was found"),
        ({"prompt": 3, "completion": "c"}, {}, r"'prompt' must be text, not a number \(3\)"),
        ({"prompt": "p", "completion": ["c"]}, {}, r"completion, message 0: must be an object"),
        ({"instruction": "p", "input": 3, "output": "c"}, {}, r"'input' must be text, not a number"),
        ({"messages": "hello"}, {}, r"column 'messages' is a string, not a list"),
        ({"messages": ["hi"]}, {}, r"message 0: must be an object"),
        (
            {"messages": [*CHAT, {"role": "asistant", "content": "a"}]},
            {},
            r"column 'messages', message 1: unknown role 'asistant' \(did you mean 'assistant'\?\)",
        ),
        ({"messages": [{"role": "judge", "content": "a"}]}, {}, r"message 0: unknown role 'judge'"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, {}, r"unknown role \['user'\]"),
        (
            {"messages": [{"role": "user", "contents": "a"}]},
            {},
            r"'content' is missing \(did you mean 'contents'\?\)",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, {}, r"must be text, not null$"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            {},
            r"has a part of type 'image_url'; only text can be trained",
        ),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "a", "weight": 0.5}]},
            {},
            r"message 1: 'weight' must be 0 or 1 \(false or true\), not 0\.5",
        ),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "a", "weight": 0, "train": True}]},
            {},
            r"weight and train contradict each other",
        ),
        (
            {"prompt": "p", "compeltion": "c", "completion": "d", "systm": "s"},
            {},
            r"column 'systm' of source 's' is not read; did you mean 'system'\?",
        ),
        (
            {"prompt": "p", "completion": "c", "p": 1.5},
            {},
            r"column 'p' must be a probability in \[0, 1\], not 1\.5",
        ),
        ({"prompt": "p", "completion": "c", "p": -0.1}, {}, r"not -0\.1"),
        ({"prompt": "p", "completion": "c", "p": math.nan}, {}, r"not nan"),
        ({"prompt": "p", "completion": "c", "p": True}, {}, r"not True"),
        ({"prompt": "p", "completion": "c", "p": "high"}, {}, r"not 'high'"),
        ({"prompt": "p", "completion": "c", "p": [1]}, {}, r"not \[1\]"),
        ({"prompt": "p", "completion": "c", "p": 10**400}, {}, r"not 10{59}$"),
        ({"prompt": "p", "completion": "c", "p": "1" * 400}, {}, r"not '1{59}$"),
    ],
)
def test_data_that_does_not_fit(row, more, message):
    with pytest.raises(RequestError, match=message) as caught:
        example(row, **more)
    assert str(caught.value).startswith(WHERE)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "completion": None}, "no_completion"),
        ({"prompt": "p", "completion": " \n"}, "no_completion"),
        ({"prompt": "p", "completion": math.nan}, "no_completion"),
        ({"messages": math.nan}, "no_messages"),
        ({"messages": ""}, "no_messages"),
        ({"question": "p", "answer": ""}, "no_completion"),
        ({"prompt": "", "completion": "c"}, "no_prompt"),
        ({"text": ""}, "empty"),
        ({"messages": []}, "no_assistant_turn"),
        ({"messages": CHAT}, "no_assistant_turn"),
        ({"messages": None}, "no_messages"),
        ({"messages": [None]}, "null_message"),
        ({"messages": [{"role": "user", "content": None}]}, "null_message"),
        ({"messages": [*CHAT, {"role": "assistant", "content": None}]}, "empty_reply"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "  "}]}, "empty_reply"),
        ({"messages": [*CHAT, *CHAT, {"role": "assistant", "content": "a"}]}, "two_users"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "assistant_first"),
        ({"messages": [*CHAT, *2 * [{"role": "assistant", "content": "a"}]]}, "two_replies"),
        ({"messages": [*CHAT, {"role": "tool", "content": "a"}]}, "no_assistant_turn"),
        ({"prompt": "p", "completion": "half \ud83d"}, "bad_text"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "bad_text"),
        ({"prompt": "p", "completion": "c", "p": None}, "no_p"),
        ({"prompt": "p", "completion": "c", "p": ""}, "no_p"),
    ],
)
def test_rows_to_drop(row, reason):
    with pytest.raises(RowError) as caught:
        example(row)
    assert caught.value.reason == reason and caught.value.detail


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        ("rows", {"prompt": CHAT, "completion": [{"role": "assistant", "content": "a", "mood": 1}]}),
        ("rows", {"messages": [*CHAT, {"role": "assistant", "content": "a", "mood": 1}]}),
        ("rows", {"prompt": "p", "completion": "c", "mood": 1}),
        ("prompts", {"messages": CHAT, "mood": 1}),
        ("prompts", {"messages": [CHAT[0] | {"mood": 1}]}),
        ("prompts", {"prompt": "p", "mood": 1}),
        ("pairs", {"prompt": "p", "chosen": "c", "rejected": "d", "mood": 1}),
        ("pairs", {"prompt": "p", "chosen": "c", "rejected": "d", "text": "t", "mood": 1}),
        (
            "pairs",
            {"prompt": CHAT, "chosen": [{"role": "assistant", "content": "c", "mood": 1}], "rejected": "d"},
        ),
    ],
)
def test_what_is_ignored_is_counted_in_every_shape(shape, row):
    source = Source(name="s", path="rows.jsonl", ignore=["mood", "never", "text"])
    first = SHAPES[shape].read(row, source, WHERE)[0]
    assert first.ignored == (("mood", "text") if "text" in row else ("mood",))


def test_p_of_zero_one_and_text():
    for value, p in [(0, 0.0), (1, 1.0), ("0.25", 0.25)]:
        assert example({"prompt": "p", "completion": "c", "p": value}).p == p


def test_real_data(data_dir):
    def examples(name, **more):
        source = Source(name="s", path=str(data_dir / name), **more)
        return [to_example(row, source, where) for where, row in open_rows(source)]

    gsm = examples("gsm8k/train.jsonl", options={"strip_calculator": True})
    assert len(gsm) == 7473 and not any("<<" in e.completion for e in gsm)
    assert all("\n#### " in e.completion and e.answer for e in gsm)
    instructions = examples("instruct_small")
    assert len(instructions) == 1100
    assert sum("\n\n" in e.prompt for e in instructions) == 325
    dialogues, reasons = [], Counter()
    source = Source(
        name="s", path=str(data_dir / "hh_rlhf_harmless/test.jsonl.gz"), columns=Columns(messages="chosen")
    )
    for where, row in open_rows(source):
        try:
            dialogues.append(to_example(row, source, where))
        except RowError as error:
            reasons[error.reason] += 1
    assert len(dialogues) == 2300 and reasons == {"two_replies": 8, "empty_reply": 4}
    assert all(e.messages[0]["role"] == "user" for e in dialogues)
    assert max(len(e.messages) for e in dialogues) > 6


@pytest.mark.parametrize("end", ["\n\nAssistant:", "\n\nAssistant: ", ""])
def test_a_transcript_as_the_prompt_is_one_conversation_in_every_shape(end):
    """HH-RLHF's prompts end in a bare `Assistant:`; the reply stands in a column of its own."""
    prompt = f"\n\nHuman: a\n\nAssistant: b\n\nHuman: c{end}"
    asked = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    source = Source(name="s", path="rows.jsonl")
    reply = {"role": "assistant", "content": "d"}
    assert to_example({"prompt": prompt, "completion": "d"}, source, "s:1").messages == [*asked, reply]
    assert to_prompt({"prompt": prompt, "answer": "d"}, source, "s:1").messages == asked
    sides = to_pair({"prompt": prompt, "chosen": "d", "rejected": "e"}, source, "s:1")
    assert [side.messages[:-1] for side in sides] == [asked, asked] and sides[0].messages[-1] == reply


def test_a_column_input_is_used_where_it_is_joined_and_counted_elsewhere():
    row = {"instruction": "i", "input": "x", "output": "o"}
    assert example(row).prompt == "i\n\nx" and example(row).unused == ()
    named = example(row, columns=Columns(prompt="instruction"))
    assert named.prompt == "i" and named.unused == ("input",)
    assert example({"question": "q", "input": "x", "answer": "a"}).unused == ("input",)
