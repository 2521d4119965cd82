"""Columns that say something of the reply, as the same keys of its message do: reasoning, calls, flags."""

from __future__ import annotations

import json

import pytest

from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.rows import is_conversation
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source
from tests.data.tokens import HERMES, byte_tokenizer, row_of, trained

USER, SAID = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
TEXTS = {"prompt": "2+2?", "completion": "4"}
TURNS = {"prompt": [USER], "completion": [SAID]}
PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
OTHER = {"type": "function", "function": {"name": "sub", "arguments": {}}}
ONE, TRUE = ({"type": "function", "function": {"name": "add", "arguments": {"a": a}}} for a in (1, True))


def read(row, shape="rows", **more):
    return SHAPES[shape].read(row, Source(name="s", path="rows.jsonl", **more), "rows.jsonl:7")[0]


def said(row, **data) -> str:
    """What is trained of `row`."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = HERMES
    return trained(row_of(read(row), "tokenizer", tokenizer, **data), tokenizer)


@pytest.mark.parametrize("row", [TEXTS, TURNS, {"question": "2+2?", "answer": "4"}])
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_beside_the_completion_is_trained_as_that_of_its_message(row, key):
    assert said(row | {key: "two and two"}) == "<think>two and two</think>4<|im_end|>"
    as_message = read({"messages": [USER, SAID | {key: "two and two"}]})
    found = read(row | {key: "two and two"})
    assert found.messages == as_message.messages and found.unused == ()
    quiet = read(row | {key: "x"}, ignore=[key])
    assert quiet.messages == read(row).messages and quiet.ignored == (key,)
    for empty in ("", " \n", None):
        assert read(row | {key: empty}).messages == read(row).messages


def test_calls_beside_the_completion():
    tools = {"tools": [{"name": "add"}]}
    call = '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call><|im_end|>'
    for key in ("tool_calls", "function_call"):
        for value in ([CALL], json.dumps([CALL]), CALL["function"]):
            for completion in ("", None, []):
                assert said({"prompt": "2+2?", "completion": completion, key: value} | tools) == call
    assert read(TEXTS | tools | {"tool_calls": [CALL]}).messages[1]["content"] == "4"
    for nothing in ("[]", []):
        assert read(TEXTS | {"tool_calls": nothing}).completion == "4"
        with pytest.raises(RowError, match="no_completion"):
            read({"prompt": "p", "completion": "", "tool_calls": nothing})
    with pytest.raises(RowError, match="bad_call"):
        read(TEXTS | {"tool_calls": "[{"})


@pytest.mark.parametrize("thought", ["Hm.", " Hm.\n"])
def test_a_reply_that_says_it_itself_has_it_once(thought):
    inside = {"prompt": "p", "completion": "<think>\nHm.\n</think>\n\n4", "reasoning": thought}
    assert read(inside).completion == inside["completion"] and read(inside).unused == ()
    beside = {"prompt": [USER], "completion": [SAID | {"thinking": "Hm."}], "reasoning": thought}
    assert read(beside).messages == [USER, SAID | {"thinking": "Hm."}]
    calls = {"prompt": [USER], "completion": [SAID | {"tool_calls": [CALL]}], "tool_calls": [CALL]}
    assert read(calls).messages == [USER, SAID | {"tool_calls": [CALL]}]
    assert read({"query": "q", "answers": json.dumps([CALL]), "tool_calls": [CALL]}).messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL],
    }


def test_a_mark_in_a_reply_begins_no_thought():
    for text in ("Use `</think>` to close.", "Between <think> and </think> it thinks."):
        assert read({"prompt": "p", "completion": text, "reasoning": "b"}).messages[1] == {
            "role": "assistant",
            "content": text,
            "reasoning": "b",
        }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "p", "completion": "<think>a</think>4", "reasoning": "b"},
            "'reasoning' and the reply",
        ),
        (
            {"prompt": "p", "completion": "<think></think>4", "reasoning": "b"},
            "'reasoning' and the reply",
        ),
        (
            {"prompt": [USER], "completion": [SAID | {"thinking": "a"}], "reasoning": "b"},
            "column 'reasoning' and the reply itself differ; keep one, or set ignore: .reasoning.$",
        ),
        ({"query": "q", "answers": json.dumps([OTHER]), "tool_calls": [CALL]}, "'tool_calls' and the reply"),
        (
            {"prompt": [USER], "completion": [SAID | {"tool_calls": [ONE]}], "tool_calls": [TRUE]},
            "'tool_calls' and the reply",
        ),
        (
            {"prompt": [USER], "completion": [SAID | {"tool_calls": [CALL]}], "function_call": OTHER},
            "column 'function_call' and the reply itself differ; keep one, or set ignore: .function_call.$",
        ),
        (
            {"prompt": [USER], "completion": [SAID, USER, SAID], "function_call": CALL},
            "'function_call' stands beside 2 replies; write it .* ignore: .function_call.$",
        ),
        (
            TEXTS | {"reasoning": "a", "thinking": "b"},
            "columns 'reasoning' and 'thinking' have different reasoning; keep one, or set ignore: "
            ".thinking. on source 's'$",
        ),
        (
            TEXTS | {"tool_calls": "auto"},
            "column 'tool_calls' must be calls of tools, not 'auto'; set ignore: .",
        ),
        (TEXTS | {"function_call": "none"}, "column 'function_call' must be calls of tools, not 'none'; set"),
        (
            {"prompt": [USER], "completion": [SAID, USER, SAID], "reasoning": "a"},
            "column 'reasoning' stands beside 2 replies; write it into the message that it "
            "belongs to, or set ignore: .reasoning.$",
        ),
        (
            TEXTS | {"reasoning": 4},
            "column 'reasoning' must be text, not 4; set ignore: .reasoning. on source 's' if it means "
            "something else$",
        ),
        (TEXTS | {"thinking": True}, "column 'thinking' must be text, not True; set ignore: .thinking."),
        (TEXTS | {"tool_calls": 3}, "column 'tool_calls' must be calls of tools, not 3; set ignore: .tool_c"),
        (TEXTS | {"reasonings": "x"}, "'reasonings' .* did you mean 'reasoning'.*ignore: .reasonings."),
        (TEXTS | {"tool_call": json.dumps(CALL)}, "column 'tool_call' .* did you mean 'tool_calls'"),
    ],
)
def test_what_a_column_of_the_reply_cannot_be(row, words):
    with pytest.raises(RequestError, match=f"^rows.jsonl:7: .*{words}"):
        read(row)


def test_calls_under_both_names_are_the_same():
    """Ids aside, which only one of the forms has."""
    both = {"tool_calls": [{"id": "1"} | CALL], "function_call": CALL["function"]}
    empty = TEXTS | {"completion": ""}
    for turn in (read(empty | both).messages[1], read({"messages": [USER, SAID | both]}).messages[1]):
        assert turn["tool_calls"] == [{"id": "1"} | CALL] and "function_call" not in turn
    differ = "'tool_calls' and 'function_call' differ; keep one, or set ignore: .function_call.$"
    for row in (
        empty | both | {"function_call": OTHER},
        {"messages": [USER, both | SAID | {"function_call": OTHER}]},
    ):
        with pytest.raises(RequestError, match=differ):
            read(row)
        assert read(row, ignore=["function_call"]).messages[1]["tool_calls"] == both["tool_calls"]


def test_the_advice_about_calls_that_differ_leads_away():
    row = {"prompt": [USER], "completion": [SAID | {"tool_calls": [CALL]}], "function_call": OTHER}
    assert read(row, ignore=["function_call"]).messages[1]["tool_calls"] == [CALL]


def test_a_thought_that_the_template_leaves_out_is_named():
    with pytest.raises(RequestError, match="message 1 .assistant.: template 'tokenizer' does not render"):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = HERMES.replace("m.reasoning_content", "m.nothing")
        row_of(read(TEXTS | {"reasoning_content": "x"}), "tokenizer", tokenizer)


EVERY = [
    ("rows", TEXTS),
    ("rows", TURNS),
    ("rows", {"messages": [USER, SAID]}),
    ("rows", {"text": "4"}),
    ("pairs", PAIR),
    ("pairs", {"chosen": [USER, SAID], "rejected": [USER, SAID | {"content": "5"}]}),
    ("pairs", {"prompt": "p", "completions": [{"text": "5", "rating": 9}, {"text": "6", "rating": 2}]}),
    ("labelled", TEXTS | {"label": True}),
]


@pytest.mark.parametrize(("shape", "row"), EVERY)
@pytest.mark.parametrize("flag", ["weight", "train", "training", "loss", "trained"])
def test_a_row_of_weight_0_is_not_trained(shape, row, flag):
    for no in (0, False, 0.0, "0", "0.0", "false", " False "):
        with pytest.raises(RowError, match=f"^empty: column '{flag}' says that the row is not trained"):
            read(row | {flag: no}, shape)
    for yes in (1, True, 1.0, "1", "1.0", "true", None, "", float("nan")):
        found = read(row | {flag: yes}, shape)
        assert found.unused == () and found.messages == read(row, shape).messages
    for other in (0.37, 2, -1, "high", "0.5", [0, 1]):
        with pytest.raises(
            RequestError,
            match=rf"^rows.jsonl:7: column '{flag}' must be 0 or 1 \(false or true\), not .*; set ignore: "
            rf"\[{flag}\] on source 's' if it means something else$",
        ):
            read(row | {flag: other}, shape)
        assert read(row | {flag: other}, shape, ignore=[flag]).ignored == (flag,)


def test_only_the_reply_gets_what_columns_say_of_it():
    talk = [{"role": "user", "content": "u"}, SAID, USER]
    row = {"prompt": talk, "completion": [SAID], "reasoning": "r"}
    assert read(row).messages == [*talk, SAID | {"reasoning": "r"}]
    answered = [SAID | {"tool_calls": [CALL]}, {"role": "tool", "content": "4"}]
    found = read({"prompt": [USER], "completion": answered, "reasoning": "r"})
    assert found.messages == [USER, answered[0] | {"reasoning": "r"}, answered[1]]
    several = {"prompt": [USER], "completion": [SAID, USER, SAID], "weight": 1}
    assert read(several).messages == [USER, SAID, USER, SAID]


def test_flags_that_contradict_each_other():
    words = "columns 'weight' and 'loss' contradict each other; keep one, or set ignore: .loss. on source 's'"
    with pytest.raises(RequestError, match=f"^rows.jsonl:7: {words}$"):
        read(TEXTS | {"loss": 0, "weight": 1})
    assert read(TEXTS | {"loss": 1, "weight": True}).completion == "4"


def test_a_column_is_what_the_source_names_it():
    rated = {"prompt": "p", "completions": ["5", "6"], "loss": [0.2, 0.7]}
    assert read(rated, "pairs", columns=Columns(rating="loss")).completion == "6"
    assert read(TEXTS | {"weight": 0.5}, columns=Columns(p="weight")).p == 0.5
    assert read(TEXTS | {"train": "bad"}, "labelled", columns=Columns(label="train")).p == 0
    found = read({"prompt": "p", "reasoning": "r"}, columns=Columns(completion="reasoning"))
    assert found.completion == "r" and found.messages is None


def test_where_it_is_not_known_which_reply_is_meant_it_is_counted():
    beside = {"reasoning": "r", "tool_calls": [CALL]}
    assert read(PAIR | beside, "pairs").unused == ("reasoning", "tool_calls")
    assert read({"messages": [USER, SAID]} | beside).unused == ("tool_calls",)
    assert read({"text": "t"} | beside).unused == ("reasoning", "tool_calls")


LABELS = [
    "on",
    "Off",
    " yes",
    "no",
    "true",
    "FALSE",
    "none",
    "null",
    "N/A",
    "low",
    "medium",
    "high\n",
    "enabled",
]


@pytest.mark.parametrize("label", [*LABELS, "disabled", "auto"])
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_setting_is_no_thought(name, label):
    with pytest.raises(RequestError) as error:
        read({"prompt": "q", "output": "a", name: label})
    assert str(error.value) == (
        f"rows.jsonl:7: column {name!r} must be a thought, not {label!r}; set ignore: [{name}] on source 's' "
        "if it means something else, or on_error: skip where only a few rows have it"
    )
    assert read({"prompt": "q", "output": "a", name: label}, ignore=[name]).completion == "a"
    for talk in ([USER, SAID], [USER, SAID, USER, SAID]):
        assert read({"messages": talk, name: label}).unused == (name,)
    assert read(TEXTS | {name: f"{label.strip()}, because"}).messages[1][name] == f"{label.strip()}, because"


def test_a_thought_beside_a_conversation_is_that_of_its_only_reply():
    row = {"messages": [USER, SAID], "reasoning": "two and two"}
    assert said(row) == "<think>two and two</think>4<|im_end|>"
    found = read(row)
    assert found.messages == [USER, SAID | {"reasoning": "two and two"}] and found.unused == ()
    shown = {"messages": [USER, SAID | {"weight": 0}, USER, SAID], "reasoning": "r"}
    assert read(shown).messages[3] == SAID | {"reasoning": "r"} and "reasoning" not in read(shown).messages[1]
    assert read({**row, "label": True}, "labelled").messages == found.messages
    assert read(row, "prompts").messages == [USER]
    for other in (True, 3, ["a"], {"effort": "r"}):
        assert read(row | {"reasoning": other}).unused == ("reasoning",)
    assert read(row, ignore=["reasoning"]).messages == [USER, SAID]


def test_a_thought_beside_several_replies():
    row = {"messages": [USER, SAID, USER, SAID], "reasoning": "r"}
    words = (
        "column 'reasoning' stands beside 2 replies; write it into the message that it belongs to, or set "
    )
    with pytest.raises(RequestError, match=f"^rows.jsonl:7: {words}ignore: .reasoning.$"):
        read(row)
    assert read(row, ignore=["reasoning"]).messages == row["messages"]
    itself = [USER, SAID, USER, SAID | {"content": "<think>r</think>4"}]
    found = read(row | {"messages": itself})
    assert found.messages == itself and found.unused == (), "one of them says it itself"


def test_a_reasoning_column_of_another_name():
    named = {"columns": Columns(prompt="Question", completion="Response", reasoning="Complex_CoT")}
    row = {"Question": "2+2?", "Complex_CoT": "two and two", "Response": "4"}
    found = read(row, **named)
    assert found.messages == [USER, SAID | {"reasoning_content": "two and two"}] and found.unused == ()
    other = read(row | {"reasoning": "r"}, **named)
    assert other.messages == found.messages and other.unused == ("reasoning",), "no usual name stands in"
    assert read(row | {"Complex_CoT": None}, **named).completion == "4"
    own = {"columns": Columns(reasoning="thinking")}
    assert read(TEXTS | {"thinking": "t"}, **own).messages[1] == SAID | {"thinking": "t"}
    talk = {"messages": [USER, SAID], "Complex_CoT": "t"}
    assert read(talk, columns=Columns(reasoning="Complex_CoT")).messages[1]["reasoning_content"] == "t"


@pytest.mark.parametrize(
    ("row", "shape", "words"),
    [
        (TEXTS, "rows", r"source 's' has no column 'cot' \(columns.reasoning\)"),
        (TEXTS | {"cot": "on"}, "rows", "'cot' must be a thought, not 'on'; leave out columns.reasoning on"),
        ({"messages": [USER, SAID], "cot": 3}, "rows", "'cot' must be text, not 3; leave out columns.reason"),
        ({"messages": [USER, SAID] * 2, "cot": "t"}, "rows", "beside 2 replies; .* leave out columns.reason"),
        ({"text": "t", "cot": "t"}, "rows", r"plain text cannot have reasoning \(columns.reasoning: cot\)"),
        (PAIR | {"cot": "t"}, "pairs", "source 's' names columns.reasoning, but of a pair it is not known"),
    ],
)
def test_where_a_named_reasoning_column_cannot_be_used(row, shape, words):
    with pytest.raises(RequestError, match=f"^rows.jsonl:7: .*{words}"):
        read(row, shape, columns=Columns(reasoning="cot"))


@pytest.mark.parametrize(("shape", "row"), EVERY)
@pytest.mark.parametrize(
    ("name", "near"),
    [("Weight", "weight"), ("weigth", "weight"), ("trian", "train"), ("weights", "weight"), ("LOSS", "loss")],
)
def test_a_misspelt_flag_is_refused(shape, row, name, near):
    words = rf"column '{name}' of source 's' is not read; did you mean '{near}'\? Rename it"
    for flag in (0, 1, False, True, 0.0, "0", "true", "False"):
        with pytest.raises(RequestError, match=rf"^rows.jsonl:7: {words}$"):
            read(row | {name: flag}, shape)
        assert read(row | {name: flag}, shape, ignore=[name]).ignored == (name,)
    for empty in ([], None, ""):
        assert read(row | {name: empty}, shape)
    for other in (0.37, "high", [0, 2], 2, [0, 1]):  # or of a conversation's messages
        with pytest.raises(RequestError, match=f"column '{name}' of source 's' may say what is trained"):
            read(row | {name: other}, shape)
    if shape == "rows":
        assert read(row | {name: 0}, shape, columns=Columns(label=name))


@pytest.mark.parametrize(("shape", "row"), EVERY)
@pytest.mark.parametrize(
    "name",
    ["is_trained", "lossMask", "train_mask", "assistant_masks", "trainable", "Masked", "sample_weight"],
)
def test_what_may_be_a_mask_is_not_passed_over(shape, row, name):
    words = (
        rf"^rows.jsonl:7: column '{name}' of source 's' may say what is trained, and is not read; write it "
        rf"as 'weight', 0 or 1, of the row or of its messages, or set ignore: \[{name}\] on the source "
    )
    for value in (0, 1, True, "0", "True", [0, 1], [False], 0.5, "[MASK]", [0, 7]):
        with pytest.raises(RequestError, match=words):
            read(row | {name: value}, shape)
        assert read(row | {name: value}, shape, ignore=[name]).ignored == (name,)
    for empty in (None, "", []):
        assert read(row | {name: empty}, shape)
    assert read(row, shape) == read(row | {name: None}, shape)


def test_a_named_mask_is_something_else():
    assert read(TEXTS | {"answer_mask": "0"}, columns=Columns(answer="answer_mask")).answer == "0"
    assert read({"prompt": "p", "loss_mask": [0]}, "prompts").prompt == "p", "rewards read every column"


def test_prompts_have_nothing_to_train_and_leave_their_columns_to_rewards():
    beside = {"reasoning": "r", "weight": 0.37, "tool_calls": 3, "weights": [1]}
    for row, found in (({"prompt": "p"}, "p"), ({"messages": [USER, SAID]}, None)):
        assert read(row | beside, "prompts").prompt == found


@pytest.mark.parametrize(
    "name",
    ["reasoning_content", "thinking", "tool_calls", "weight", "train", "loss", "loss_mask", "completions"],
)
def test_tables_of_such_rows_are_named_after_how_they_are_read(name):
    assert is_conversation(TEXTS | {name: 1}) and not is_conversation(TEXTS | {"gloss": 1, "answer": "4"})
    assert is_conversation(TEXTS | {"answer": " "})


def test_a_row_without_such_columns_is_what_it_was():
    """`gloss` and `strain` are words, not misspelt flags; a mask of padding or a weight in kg is no flag."""
    others = {"reason": "r", "gloss": "w", "strain": 0, "loss_scale": 1, "weight_kg": 1, "training_step": 0}
    others |= {"weight_decay": 0, "split_train": 1, "attention_mask": [1, 1], "special_tokens_mask": [0, 1]}
    found = read(TEXTS | others)
    assert (found.prompt, found.completion) == ("2+2?", "4") and found.unused == (*others,)
