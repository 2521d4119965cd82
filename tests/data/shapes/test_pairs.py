"""Preference rows to pairs: every usual shape, and the pairs that teach nothing."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from posttrain.data.shapes.pairs import to_pair
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source

WHERE = "pairs.jsonl:7"


def pair(row, **more):
    return to_pair(row, Source(name="s", path="pairs.jsonl", **more), WHERE)


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"question": "p", "chosen": "c", "rejected": "r", "output": "x", "text": "y"},
        {"instruction": "p", "input": "", "output": "c", "chosen": "c", "rejected": "r"},
    ],
)
def test_text(row):
    chosen, rejected = pair(row)
    assert (chosen.prompt, chosen.completion, rejected.completion) == ("p", "c", "r")
    assert rejected.prompt == "p" and chosen.where == rejected.where == WHERE


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [user("p"), bot("c")], "rejected": [user("p"), bot("r")]},
        {"prompt": "p", "chosen": [user("p"), bot("c")], "rejected": [user("p"), bot("r")]},
        {"prompt": [user("p")], "chosen": [bot("c")], "rejected": [bot("r")]},
        {"messages": [user("p")], "chosen": [user("p"), bot("c")], "rejected": [user("p"), bot("r")]},
        {"chosen": "\n\nHuman: p\n\nAssistant: c", "rejected": "\n\nHuman: p\n\nAssistant: r"},
    ],
)
def test_conversations(row):
    chosen, rejected = pair(row)
    assert chosen.messages == [user("p"), bot("c")] and rejected.messages == [user("p"), bot("r")]


def test_alpaca_input_system_and_named_columns():
    row = {"instruction": "i", "input": "x", "good": "c", "bad": "r", "system": "s"}
    chosen, rejected = pair(row, columns=Columns(chosen="good", rejected="bad"))
    assert chosen.messages == [{"role": "system", "content": "s"}, user("i\n\nx"), bot("c")]
    assert rejected.messages[-1] == bot("r")
    row = {"chosen": [user("p"), bot("c")], "rejected": [user("p"), bot("r")]}
    assert pair(row, system="be brief")[0].messages[0] == {"role": "system", "content": "be brief"}


@pytest.mark.parametrize("value", [None, "", " ", math.nan])
def test_a_prefix_that_is_not_said(value):
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_is_prefix": value}
    assert [side.partial for side in pair(row | {"rejected_is_prefix": "1"})] == [False, True]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": " c\n"}, "equal_pair"),
        ({"prompt": "p", "chosen": "", "rejected": "r"}, "no_chosen"),
        ({"prompt": "p", "chosen": math.nan, "rejected": "r"}, "no_chosen"),
        ({"prompt": math.nan, "chosen": "c", "rejected": "r"}, "no_prompt"),
        ({"prompt": "p", "chosen": "c", "rejected": None}, "no_rejected"),
        ({"chosen": [], "rejected": [user("p"), bot("r")]}, "no_chosen"),
        ({"prompt": "", "chosen": "c", "rejected": "r"}, "no_prompt"),
        ({"chosen": [user("p"), bot("c")], "rejected": [user("q"), bot("r")]}, "prompt_mismatch"),
        (
            {"chosen": [user("p"), bot("c")], "rejected": [user("p"), bot("x"), user("p"), bot("r")]},
            "prompt_mismatch",
        ),
        (
            {"chosen": [user("p"), bot("c"), user("?")], "rejected": [user("p"), bot("r")]},
            "no_assistant_turn",
        ),
    ],
)
def test_pairs_that_teach_nothing_are_dropped(row, reason):
    with pytest.raises(RowError) as error:
        pair(row)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"prompt": "p", "choosen": "c", "rejected": "r"},
            "pairs.jsonl:7: .*'chosen' .did you mean 'choosen'",
        ),
        (
            {"prompt": "p", "completion": "c", "label": 1},
            "single replies with a label need preference.loss: kto",
        ),
        ({"prompt": "p", "chosen": "c", "rejected": 3}, "'rejected' must be text or messages, not a number"),
        ({"chosen": "c", "rejected": "r"}, "no column with the prompt was found"),
        ({"chosen": [{"role": "x", "content": "c"}], "rejected": [bot("r")]}, "unknown role 'x'"),
    ],
)
def test_rows_that_are_no_pairs_are_refused(row, sentence):
    with pytest.raises(RequestError, match=sentence):
        pair(row)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
OTHER = {"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}


@pytest.mark.parametrize(
    ("chosen", "same", "other"),
    [
        (bot("4") | {"reasoning": "t"}, bot("4") | {"thinking": " t\n"}, bot("4") | {"thinking": "s"}),
        (bot("4") | {"reasoning": "t"}, bot("<think>\nt\n</think>\n\n4"), bot("<think>s</think>4")),
        (bot("<think>t</think>4"), bot("<think>\nt\n</think>\n\n4"), bot("t</think>4")),
        (
            bot("") | {"tool_calls": [CALL | {"id": "a"}]},
            bot("") | {"tool_calls": [CALL | {"id": "b"}]},
            bot("") | {"tool_calls": [OTHER | {"id": "a"}]},
        ),
        (
            bot("") | {"tool_calls": [CALL | {"id": "a"}]},
            bot("") | {"function_call": CALL["function"]},
            bot("") | {"tool_calls": [CALL, CALL]},
        ),
        (bot("4") | {"mood": "x"}, bot("4 ") | {"mood": "x"}, bot("4") | {"mood": "y"}),
        (bot("4"), bot("<think></think>4"), bot("4") | {"reasoning": "t"}),
    ],
)
def test_sides_that_mean_the_same_are_no_pair(chosen, same, other):
    for sides in ((chosen, same), (same, chosen)):
        with pytest.raises(RowError, match="^equal_pair"):
            pair({"prompt": "p"} | dict(zip(("chosen", "rejected"), ([side] for side in sides), strict=True)))
    assert pair({"prompt": "p", "chosen": [chosen], "rejected": [other]})[1].messages[1] == other


def asked(*ids, answers=None, **more):
    """A prompt with a call and its answer for each of `ids`, in turn, or at once in the order `answers`."""
    calls = [CALL if one is None else CALL | {"id": one} for one in ids]
    tied = [{} if one is None else {"tool_call_id": one} for one in ids]
    returned = [{"role": "tool", "content": "5"} | tie | more for tie in tied]
    turns = [[bot("") | {"tool_calls": [call]}, answer] for call, answer in zip(calls, returned, strict=True)]
    if answers is not None:
        turns = [[bot("") | {"tool_calls": calls}], [returned[k] | {"content": f"{k}"} for k in answers]]
    return [user("p"), *(turn for each in turns for turn in each)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked("a"), asked(None)),
        (asked("a", "b"), asked("c0", "c1")),
        (asked("c0", "c0", "c0"), asked("0", "1", "2")),
        (asked("c0", "c0", "c0"), asked(None, None, None)),
        (asked("a", name="add"), asked("a")),
        (asked(None, name="add"), asked("a")),
        (asked("c", "c", answers=[0, 1]), asked("0", "1", answers=[0, 1])),
        (asked("a", "b", answers=[1, 0]), asked("0", "1", answers=[1, 0])),
    ],
)
def test_answers_are_tied_to_calls_on_both_sides(one, other):
    for first, second in ((one, other), (other, one)):
        chosen, rejected = pair({"chosen": [*first, bot("c")], "rejected": [*second, bot("r")]})
        assert rejected.messages == [*chosen.messages[:-1], bot("r")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked("a", "b", answers=[0, 1]), asked("a", "b", answers=[1, 0])),
        (asked("a", name="add"), asked("a", name="sub")),
        (asked("a"), asked("a", "b")),
    ],
)
def test_prompts_with_other_answers_are_others(one, other):
    for first, second in ((one, other), (other, one)):
        with pytest.raises(RowError, match="^prompt_mismatch"):
            pair({"chosen": [*first, bot("c")], "rejected": [*second, bot("r")]})


SYSTEM = {"role": "system", "content": "be brief"}


def test_the_system_message_of_a_prompt_beside_whole_conversations():
    whole = {"chosen": [user("p"), bot("c")], "rejected": [user("p"), bot("r")]}
    for opening in ([SYSTEM, user("p")], [SYSTEM]):
        for side in pair({"prompt": opening} | whole):
            assert side.messages[:-1] == [SYSTEM, user("p")]
        both = {key: [SYSTEM, *turns] for key, turns in whole.items()}
        assert pair({"prompt": opening} | both)[1].messages == both["rejected"]
        other = {key: [SYSTEM | {"content": "be long"}, *turns] for key, turns in whole.items()}
        with pytest.raises(RowError, match="prompt_mismatch"):
            pair({"prompt": opening} | other)
    theirs = {"from": "system", "value": "be brief", "note": "n"}
    row = {"messages": [theirs, user("p")]} | whole
    assert pair(row, ignore=["note"])[0].messages == [SYSTEM, user("p"), bot("c")]
    assert pair({"prompt": [user("p")]} | both)[0].messages == both["chosen"]
    with pytest.raises(RowError, match="prompt_mismatch"):  # not known where it would stand
        pair({"prompt": [user("p"), SYSTEM]} | whole, roles="loose")


def test_one_message_is_a_list_of_one():
    for row in (
        {"messages": [user("p")], "chosen": bot("c"), "rejected": bot("r")},
        {"prompt": user("p"), "chosen": bot("c"), "rejected": {"from": "gpt", "value": "r"}},
        {"prompt": "p", "chosen": bot("c"), "rejected": "r"},
    ):
        chosen, rejected = pair(row)
        assert chosen.messages == [user("p"), bot("c")] and rejected.messages == [user("p"), bot("r")]
    with pytest.raises(RequestError, match="'chosen' must be text or messages, not an object"):
        pair({"prompt": "p", "chosen": {"text": "c"}, "rejected": "r"})


def test_a_reply_behind_a_transcript_is_stripped_as_in_one():
    prompt = "\n\nHuman: p\n\nAssistant:"
    chosen, rejected = pair({"prompt": prompt, "chosen": " c\n", "rejected": f"{prompt} r"})
    assert chosen.messages == [user("p"), bot("c")] and rejected.messages == [user("p"), bot("r")]
    chosen, _ = pair({"prompt": "p", "chosen": " c\n", "rejected": "r"})
    assert chosen.completion == " c\n"


def test_real_preference_sets(data_dir):
    """1,100 alpaca rows, some with the same reply twice; 2,312 transcripts, some of which differ early."""
    rows = json.loads((data_dir / "preference_small" / "instruction-data-with-preference.json").read_text())
    with gzip.open(data_dir / "hh_rlhf_harmless" / "test.jsonl.gz", "rt") as file:
        transcripts = [json.loads(line) for line in file]
    kept, reasons = 0, []
    for row in [*rows, *transcripts]:
        try:
            chosen, rejected = pair(row)
            kept += chosen.messages is not None or chosen.prompt == rejected.prompt
        except RowError as error:
            reasons.append(error.reason)
    assert set(reasons) <= {
        "empty_reply",
        "two_replies",
        "equal_pair",
        "prompt_mismatch",
        "no_chosen",
        "no_rejected",
        "no_assistant_turn",
        "empty",
    }
    assert kept + len(reasons) == 3412 and kept > 3200
