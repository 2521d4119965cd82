"""Masks: a wrong one cannot leave; right ones for any conversation and for real rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import encode as module
from posttrain.data.shapes.rows import to_example
from posttrain.data.sources import open_rows
from posttrain.data.template import Turn, load_template
from posttrain.data.tokenize import tokenize_example
from posttrain.data.tokens import RowError
from posttrain.recipe.schema import Columns, Data, Loss, Source
from tests.data.tokens import BPE, BYTES, STYLES, ids_of, pair, row_of, trained


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_wrong_span_cannot_leave(monkeypatch, shift):
    """Tokens moved by one character against the spans, as a faulty offset would: the proof sees it."""
    encode_all = module.encode_all

    def moved(texts, tokenizer):
        found = encode_all(texts, tokenizer)
        return [replace(each, starts=each.starts + shift, ends=each.ends + shift) for each in found]

    monkeypatch.setattr(module, "encode_all", moved)
    with pytest.raises(RowError, match="mask_mismatch: the trained tokens end with .*, not with 'Hello"):
        row_of([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])


def test_ids_that_are_not_the_text_cannot_leave(monkeypatch):
    encode_all = module.encode_all

    def wrong(texts, tokenizer):
        (found,) = encode_all(texts, tokenizer)
        ids = found.ids.copy()
        ids[-2] = 65  # the end of turn becomes an `A`
        return [replace(found, ids=ids)]

    monkeypatch.setattr(module, "encode_all", wrong)
    with pytest.raises(
        RowError, match=r"mask_mismatch: the trained tokens end with 'HelloA', not with 'Hello<\|im_end"
    ):
        row_of(pair("Hi", "Hello"))


CONTENT = st.text(
    st.one_of(st.sampled_from("Hello 08=\n\t é😀"), st.characters(exclude_categories=["Cs"])), max_size=12
)
CHATS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(chat=CHATS, style=st.sampled_from(STYLES), segment=st.sampled_from(["token", "step", "completion"]))
def test_masks_of_any_conversation(chat, style, segment):
    """Rendered text and trained text, read back from the tokens, are what was said."""
    messages = [
        {"role": role, "content": text}
        for turns in chat
        for role, text in zip(("user", "assistant"), turns, strict=True)
    ]
    said = [reply.strip() if style == "llama3" else reply for _, reply in chat]
    end = load_template(style, BYTES).end_of_turn
    expected = ids_of("".join(reply + end for reply in said))
    if style == "plain" and not chat[0][0]:  # the reply opens the row: its first token has no label
        expected = expected[1:]
    if not expected:
        with pytest.raises(RowError, match="empty"):
            row_of(messages, style)
        return
    row = row_of(messages, style, loss=Loss(segment=segment))
    assert BYTES.decode(row.input_ids.tolist()) == load_template(style, BYTES).render(messages)
    assert row.labels[row.labels >= 0].tolist() == expected
    numbers = row.segment_ids[row.segment_ids > 0].tolist()
    assert sorted(set(numbers)) == list(range(1, max(numbers, default=0) + 1))
    assert numbers == sorted(numbers) and len(numbers) == (row.labels >= 0).sum()


@settings(deadline=None, max_examples=40)
@given(chat=CHATS, style=st.sampled_from(["chatml", "tulu", "plain"]))
def test_merges_never_train_a_character_of_the_prompt(chat, style):
    messages = [
        {"role": role, "content": text}
        for turns in chat
        for role, text in zip(("user", "assistant"), turns, strict=True)
    ]
    try:
        row = row_of(messages, style, BPE)
    except RowError as error:
        # half a character on either side of a border, or every trained token merged away
        assert error.reason in ("mask_mismatch", "empty")
        return
    template = load_template(style, BPE)
    ids = row.input_ids.tolist()
    assert BPE.decode(ids) == template.render(messages)
    last = chat[-1][1] + template.end_of_turn
    assert trained(row, BPE).endswith(last) or not messages[0]["content"]


def all_rows(path, template, tokenizer=BYTES, loss=None, **source):
    source = Source(name="s", path=str(path), **source)
    data = Data(sources=[source], template=template, max_length=100_000)
    for where, row in open_rows(source):
        try:
            example = to_example(row, source, where)
        except RowError:
            continue
        yield example, tokenize_example(example, tokenizer, data, loss or Loss())


def test_gsm8k_through_chatml(data_dir):
    loss = Loss(segment="answer", answer_marker="#### ")
    count = 0
    for example, row in all_rows(data_dir / "gsm8k/train.jsonl", "chatml", loss=loss):
        count += 1
        assert trained(row) == example.completion + "<|im_end|>"
        answer = BYTES.decode(row.input_ids[row.segment_ids == 1].tolist())
        assert answer == example.completion.rpartition("#### ")[2] + "<|im_end|>"
    assert count == 7473


def test_instructions_through_tulu(data_dir):
    rows = list(all_rows(data_dir / "instruct_small", "tulu", BPE))
    assert len(rows) == 1100
    assert all(trained(row, BPE) == e.completion + "<eos>" for e, row in rows)


def test_dialogues_through_chatml(data_dir):
    """Multi-turn, every turn trained, all rows but those with two replies in turn or an empty one."""
    columns = Columns(messages="chosen")
    count = 0
    for example, row in all_rows(data_dir / "hh_rlhf_harmless", "chatml", columns=columns):
        replies = [m["content"] for m in example.messages if m["role"] == "assistant"]
        assert trained(row) == "".join(f"{reply}<|im_end|>" for reply in replies)
        assert row.segment_ids.max() == len(replies)
        count += 1
    assert count == 2300


def test_a_turn_is_what_the_template_says():
    assert load_template("plain", BYTES).turns([{"role": "assistant", "content": "ab"}]) == (
        "ab<eos>",
        [Turn(0, 2, 7)],
    )
