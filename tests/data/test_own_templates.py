"""The four built-in templates on tools and reasoning: the exact text, and which part of it is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from posttrain.data import template as module
from posttrain.data.cache import _key, tokenizer_fingerprint
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.rows import to_example
from posttrain.data.sources import open_rows
from posttrain.data.template import KNOWN_AS, known_as, load_template
from posttrain.errors import RequestError
from posttrain.recipe.schema import Data, Loss, Source
from tests.data.families import tokenizer_of
from tests.data.tokens import BYTES, STYLES, byte_tokenizer, check, ids_of, row_of, trained

EARLIER = Path(module.__file__).parent / "templates" / KNOWN_AS
T = '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}'
TOOLS = [json.loads(T)]


def call(**arguments):
    return {"type": "function", "function": {"name": "add", "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "It is 4."}
ROWS = {
    "plain": {"messages": [SYSTEM, USER, REPLY]},
    "tools": {
        "tools": TOOLS,
        "messages": [
            SYSTEM,
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call(a=2, b='"é"')]},
            {"role": "tool", "content": "4"},
            REPLY,
        ],
    },
    "reasoning": {"messages": [USER, REPLY | {"reasoning_content": "\nTwo and\ntwo.\n"}]},
    "both": {
        "tools": TOOLS,
        "messages": [
            USER,
            {
                "role": "assistant",
                "reasoning_content": "Hm.",
                "content": "Twice.",
                "tool_calls": [call(a=2), call(b=[True, None])],
            },
            {"role": "tool", "content": "4"},
            {"role": "tool", "content": "5"},
            REPLY | {"reasoning_content": "So."},
        ],
    },
    "turns": {
        "messages": [USER, REPLY | {"reasoning_content": "So."}, {"role": "user", "content": "Sure?"}, REPLY]
    },
}
"""The rows. In `turns` the thought is in an earlier reply."""
GOLDEN = {
    style: dict(
        part.removesuffix("\n").split("\n", 1)
        for part in (Path(__file__).parent / "golden" / f"{style}.txt").read_text("utf-8").split("== ")[1:]
    )
    for style in STYLES
}
"""Template -> case -> its text, written by hand; what is trained stands in ⟦ ⟧."""
EACH = pytest.mark.parametrize("style", STYLES)


def example(row):
    return to_example(row, Source(name="s", path="rows.jsonl"), "rows.jsonl:1")


@EACH
@pytest.mark.parametrize("case", ROWS)
def test_rendered_and_trained(style, case):
    told = example(ROWS[case])
    golden = GOLDEN[style][case]
    row = row_of(told, style)
    check(row, golden, marks="⟦⟧")
    text = golden.replace("⟦", "").replace("⟧", "")
    assert row.input_ids.tolist() == ids_of(text), "as the whole conversation is tokenised"
    template = load_template(style, BYTES)
    before, _, reply = golden.rpartition("⟦")
    prompt = template.render(told.messages[:-1], True, told.tools)
    assert prompt == before.replace("⟦", "").replace("⟧", ""), "what a reply is sampled behind"
    assert prompt + reply.replace("⟧", "") == template.render(told.messages, tools=told.tools)


@EACH
def test_a_saved_tokenizer_renders_the_same(style, tmp_path):
    tokenizer = byte_tokenizer()
    load_template(style, tokenizer).apply_to(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    told = example(ROWS["both"])
    stock = AutoTokenizer.from_pretrained(tmp_path)
    text = stock.apply_chat_template(told.messages, tools=told.tools, tokenize=False)
    assert text == GOLDEN[style]["both"].replace("⟦", "").replace("⟧", "")


TEXT = st.text(st.sampled_from("ab =\n\t{}<>é😀"), max_size=6)
SAYING = TEXT.filter(str.strip)
CALLS = st.lists(
    st.dictionaries(st.sampled_from("xyz"), st.none() | st.integers() | TEXT, max_size=2), max_size=2
)


@st.composite
def conversations(draw):
    """A user, one to three replies, and behind each call one or two answers, otherwise a user."""
    turns = [SYSTEM] * draw(st.integers(0, 1)) + [{"role": "user", "content": draw(TEXT)}]
    for _ in range(draw(st.integers(1, 3))):
        turn = {"role": "assistant", "content": draw(TEXT)}
        if thought := draw(st.just("") | SAYING):
            turn["reasoning_content"] = thought
        if calls := [call(**arguments) for arguments in draw(CALLS)]:
            turn["tool_calls"] = calls
        elif not thought:
            turn["content"] = draw(SAYING)
        answers = [{"role": "tool", "content": draw(TEXT)} for _ in calls]
        turns += [turn, *(answers or [{"role": "user", "content": draw(TEXT)}])]
    return turns


def said(style: str, turn: dict) -> str:
    """What the model says in a turn, without the end of turn."""
    text = turn["content"].strip() if style == "llama3" else turn["content"]
    thought = turn.get("reasoning_content", "")
    calls = [each["function"]["arguments"] for each in turn.get("tool_calls", ())]
    if style == "tulu":
        written = [
            f"add({', '.join(f'{k}={json.dumps(v, ensure_ascii=False)}' for k, v in some.items())})"
            for some in calls
        ]
        calls = "<function_calls>" + "\n".join(written) + "</function_calls>" if calls else ""
    else:
        form, between = {
            "chatml": ('<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>', "\n"),
            "llama3": ('{"name": "add", "parameters": %s}', "; "),
            "plain": ('Call: {"name": "add", "arguments": %s}', "\n"),
        }[style]
        calls = between.join(form % json.dumps(some, ensure_ascii=False) for some in calls)
        calls = "\n" * bool(calls and text) + calls
    return ("<think>\n" + thought.strip("\n") + "\n</think>\n\n" if thought else "") + text + calls


@EACH
@settings(deadline=None, max_examples=60)
@given(turns=conversations(), tools=st.sampled_from([[], TOOLS]))
def test_any_conversation_is_trained_as_it_is_said(style, turns, tools):
    """Earlier thoughts are kept, so that every earlier rendering is the beginning of the next one."""
    row = row_of(replace(example({"prompt": "p", "completion": "c"}), messages=turns, tools=tools), style)
    template = load_template(style, BYTES)
    assert BYTES.decode(row.input_ids) == template.render(turns, tools=tools)
    replies = [turn for turn in turns if turn["role"] == "assistant"]
    whole = "".join(said(style, turn) + template.end_of_turn for turn in replies)
    opens = turns[0]["role"] == "user" and not turns[0]["content"] and style == "plain" and not tools
    assert trained(row) == (whole.encode()[1:].decode(errors="replace") if opens else whole), (
        "the first token of a text has no label"
    )


def real(name: str, row: dict) -> str:
    """What the template of a published model trains, the line break behind an end of turn aside."""
    return trained(row_of(example(row), "tokenizer", tokenizer_of(name)), tokenizer_of(name))


def test_chatml_is_as_qwen_has_it():
    """What is trained, and what a tool returns, is Qwen 3's own text; the system message has other words."""
    for case in ("reasoning", "both"):
        told = example(ROWS[case])
        theirs = tokenizer_of("qwen3").apply_chat_template(told.messages, tools=told.tools, tokenize=False)
        ours = load_template("chatml", BYTES).render(told.messages, tools=told.tools)
        user = "<|im_start|>user\n2+2?"
        assert ours.partition(user)[2] == theirs.partition(user)[2] != ""
        assert real("qwen3", ROWS[case]) == trained(row_of(told, "chatml"))


def test_llama3_calls_as_llama_3_1_does():
    ours = trained(row_of(example(ROWS["tools"]), "llama3"))
    assert real("llama3_1", ROWS["tools"]) == ours


def test_what_hermes_puts_around_an_answer_is_not_put_twice():
    answer = "<tool_response>\n4\n</tool_response>\n"
    row = {"messages": [*ROWS["tools"]["messages"][:3], {"role": "tool", "content": answer}, REPLY]}
    text = BYTES.decode(row_of(example(row)).input_ids)
    assert "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>" in text


@pytest.mark.parametrize("answer", ["<tool_response>\n4", "<tool_response> is a tag ", " 4</tool_response>"])
def test_what_only_begins_as_a_tool_response_is_put_between_the_tags(answer):
    row = {"messages": [*ROWS["tools"]["messages"][:3], {"role": "tool", "content": answer}, REPLY]}
    text = BYTES.decode(row_of(example(row)).input_ids)
    assert f"<|im_start|>user\n<tool_response>\n{answer}\n</tool_response><|im_end|>" in text


@EACH
@pytest.mark.parametrize("key", ["reasoning_content", "mood"])
def test_what_they_do_not_render_is_refused(style, key):
    """Among it a thought that is not the assistant's."""
    row = {"messages": [USER | {key: "so"}, REPLY]}
    with pytest.raises(RequestError, match=f"message 0 .user.: template '{style}' does not render '{key}'"):
        row_of(example(row), style)


# ---- names of tables and scores ----------------------------------------------------------------------------

ROLES = st.sampled_from(["system", "user", "assistant"])


@EACH
@settings(deadline=None, max_examples=80)
@given(
    turns=st.lists(st.tuples(ROLES, TEXT), max_size=5), asks=st.booleans(), begin=st.sampled_from(["", "<s>"])
)
def test_plain_conversations_are_rendered_as_before(style, turns, asks, begin):
    messages = [{"role": role, "content": text} for role, text in turns]
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": begin or "<s>"})
    now, before = (load_template(name, tokenizer) for name in (style, str(EARLIER / f"{style}.jinja")))
    assert now.source != before.source and now.end_of_turn == before.end_of_turn
    assert now.tokens == before.tokens and now.end_of_call == before.end_of_call
    assert now.render(messages, asks) == before.render(messages, asks)


def name_of(path, template: str) -> str:
    """The name of the table of the rows in `path`."""
    tokenizer = byte_tokenizer()
    load_template(template, tokenizer).apply_to(tokenizer)
    source = Source(name="s", path=str(path))
    data = Data(sources=[source], template=template)
    print_of = tokenizer_fingerprint(tokenizer)
    return _key(open_rows(source), source, data, Loss(), tokenizer, print_of, SHAPES["rows"])


@EACH
def test_tables_of_prompts_and_completions_keep_their_names(style, tmp_path):
    path = tmp_path / "rows.jsonl"
    before = str(EARLIER / f"{style}.jinja")
    path.write_text('{"prompt": "2+2?", "completion": "4"}\n')
    assert name_of(path, style) == name_of(path, before)
    path.write_text(json.dumps(ROWS["tools"]) + "\n")
    assert name_of(path, style) != name_of(path, before)


@EACH
def test_a_source_is_known_with_and_without_a_begin_token(style):
    before = load_template(str(EARLIER / f"{style}.jinja"), BYTES).source
    now = load_template(style, BYTES).source
    assert known_as(now) == before == known_as(before)
    assert known_as(module.BEGIN + now) == module.BEGIN + before
    assert known_as("{{ x }}" + now) == "{{ x }}" + now and known_as(None) is None
