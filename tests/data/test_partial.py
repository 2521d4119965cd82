"""Replies that stop short: golden masks without an end of turn, and the flags of a pair that ask for them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.cache import prepare_sources
from posttrain.data.shapes.pairs import to_pair
from posttrain.data.template import load_template
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Data, Loss, Source
from posttrain.types import Example
from tests.data.tokens import BPE, BYTES, STYLES, TALK, check, pair, row_of, trained

SHORT = {
    "chatml": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n[It is 5.\n]",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[It is 5.]",  # its template trims replies
    "tulu": "<|user|>\n2+2?\n<|assistant|>\n[It is 5.\n]",
    "plain": "2+2?[It is 5.\n]",
}
MERGED = {
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello there]",
    "plain": "Hi[Hello there]",
}


@pytest.mark.parametrize("style", STYLES)
def test_exact_masks_of_a_reply_that_stops_short(style):
    row = row_of(pair("2+2?", "It is 5.\n", partial=True), style)
    check(row, SHORT[style])
    assert row.segment_ids.max() == 1


def test_a_tokenizer_that_merges_does_not_reach_past_the_cut():
    for style in ("chatml", "plain"):
        check(row_of(pair("Hi", "Hello there", partial=True), style, BPE), MERGED[style], BPE)


def test_only_the_last_turn_of_a_conversation_stops_short():
    example = Example(messages=[*TALK[:4], {"role": "assistant", "content": "So"}], partial=True)
    said = trained(row_of(example, "chatml"))
    assert said == "Hé 😀<|im_end|>So"
    with pytest.raises(RowError, match="no_assistant_turn"):
        row_of(Example(messages=TALK[:4], partial=True), "chatml")


@settings(deadline=None, max_examples=40)
@given(
    reply=st.text(st.sampled_from("ab \n\té😀<"), max_size=12),
    style=st.sampled_from(STYLES),
    segment=st.sampled_from(["step", "completion"]),
)
def test_a_short_reply_is_the_whole_one_without_its_end(reply, style, segment):
    whole = row_of(pair("q", reply), style, loss=Loss(segment=segment))
    end = BYTES.convert_tokens_to_ids(load_template(style, BYTES).end_of_turn)
    said = trained(whole).removesuffix(BYTES.decode([end]))
    if not said:
        with pytest.raises(RowError, match="empty"):
            row_of(pair("q", reply, partial=True), style)
        return
    short = row_of(pair("q", reply, partial=True), style, loss=Loss(segment=segment))
    size = len(short.input_ids)
    assert short.input_ids.tolist() == whole.input_ids[:size].tolist()
    assert trained(short) == said and end not in short.labels
    assert short.segment_ids.tolist() == whole.segment_ids[:size].tolist()


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ({}, (False, False)),
        ({"rejected_is_prefix": True}, (False, True)),
        ({"rejected_is_prefix": 1, "chosen_is_prefix": "false"}, (False, True)),
        ({"chosen_is_prefix": True, "rejected_is_prefix": None}, (True, False)),
    ],
)
def test_a_pair_says_which_side_stops_short(flags, want):
    row = {"prompt": "2+2?", "chosen": "It is 4.", "rejected": "It is 5.\n"} | flags
    sides = to_pair(row, Source(name="s", path="x"), "here:1")
    assert tuple(side.partial for side in sides) == want


def test_a_flag_that_is_neither_true_nor_false():
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "rejected_is_prefix": "yes!"}
    with pytest.raises(RequestError, match="here:1: rejected_is_prefix must be true or false, not 'yes!'"):
        to_pair(row, Source(name="s", path="x"), "here:1")


def test_a_prefix_reaches_the_table_without_an_end(tmp_path):
    """The cut side has one segment like the whole one, so that a pair stays a pair of segments."""
    row = {"prompt": "2+2?", "chosen": "It is 4.", "rejected": "It is 5.\n", "rejected_is_prefix": True}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    source = Source(name="s", path=str(tmp_path / "pairs.jsonl"))
    data = Data(sources=[source], template="chatml", cache_dir=str(tmp_path / "cache"), train_on="last")
    (table,) = prepare_sources([source], data, Loss(), BYTES, shape="pairs")
    assert [trained(side) for side in table[0]] == ["It is 4.<|im_end|>", "It is 5.\n"]
    assert [side.segment_ids.max() for side in table[0]] == [1, 1]


CALL = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
CALLED = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"content": "I call", "tool_calls": CALL}, f"I call\n{CALLED}"),
        ({"content": "f", "tool_calls": CALL}, f"f\n{CALLED}"),
        ({"content": "", "tool_calls": CALL}, CALLED),
        ({"content": "", "reasoning_content": "half a thought"}, "<think>\nhalf a thought"),
        ({"content": " \n", "reasoning_content": "half a thought"}, "<think>\nhalf a thought"),
        ({"content": "x", "reasoning_content": "x"}, "<think>\nx\n</think>\n\nx"),
    ],
)
def test_a_prefix_is_all_that_the_reply_says_and_no_more(reply, said):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", **reply}]
    row = row_of(Example(messages=messages, partial=True), "chatml")
    assert BYTES.decode(row.input_ids[row.labels >= 0].tolist()) == said
