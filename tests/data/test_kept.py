"""What a template leaves out of a conversation is found, in any turn and whatever came before."""

from __future__ import annotations

import itertools
import json
from copy import deepcopy
from datetime import datetime

import pytest

from posttrain.data import rendering
from posttrain.data.rendering import dates
from posttrain.data.shapes.prompts import to_prompt, tokenize_prompt
from posttrain.data.shapes.rows import to_example
from posttrain.data.template import load_template
from posttrain.data.tokenize import tokenize_example
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Data, Loss, Source
from tests.data.families import rows_of, tokenizer_of
from tests.data.tokens import HERMES, byte_tokenizer, prepare_source

USER = {"role": "user", "content": "2+2?"}
SAID = {"role": "assistant", "content": "It is 4."}
MORE = [{"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "6."}]
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}


def called(*arguments, name="add", **more):
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": each}}
        for i, each in enumerate(arguments)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def answers(count):
    return [{"role": "tool", "tool_call_id": f"c{i}", "content": "4"} for i in range(count)]


def own(source):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    return tokenizer


# ---- several calls -----------------------------------------------------------------------------------------

TWICE = called({"a": 2}, {"a": 3})
ONE_CALL = HERMES.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
SWALLOWS = HERMES.replace("{{- m.content }}", "{{- m.content if not m.tool_calls }}")


@pytest.mark.parametrize("train_on", ["assistant", "last", "each", "all"])
@pytest.mark.parametrize("weight", [0, 1])
@pytest.mark.parametrize("name", ["add", "i"])
def test_a_second_call_is_not_lost(train_on, weight, name, monkeypatch):
    """Under a template that renders the first only; the name `i` stands elsewhere in the text, too."""
    call = called({"a": 2}, {"a": 2}, name=name)
    row = {"messages": [USER, call | {"weight": weight}, *answers(2), SAID], "tools": [TOOL]}
    said = r"^template_error: the template renders 1 of 2 calls of message 1$"
    monkeypatch.setitem(tokenizer_of("qwen2_5").__dict__, "chat_template", ONE_CALL)
    with pytest.raises(RowError, match=said):
        rows_of("qwen2_5", row, train_on)
    monkeypatch.setitem(tokenizer_of("qwen2_5").__dict__, "chat_template", HERMES)
    assert rows_of("qwen2_5", row, train_on)


def test_a_second_call_under_gpt_oss():
    row = {"messages": [USER, TWICE, *answers(2), SAID], "tools": [TOOL]}
    for train_on in ("assistant", "last", "each"):
        with pytest.raises(RowError, match="renders 1 of 2 calls of message 1"):
            rows_of("gptoss", row, train_on)


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3_8", "lfm2_2_5", "gemma4", "nemotron_3_nano", "muse_glimmer"]
)
def test_two_calls_are_kept_by_templates_that_render_them(name):
    row = {"messages": [USER, TWICE, *answers(2), SAID], "tools": [TOOL]}
    thinks = name in ("qwen3_8", "nemotron_3_nano")
    assert rows_of(name, row, "last", options={"enable_thinking": False} if thinks else None)


def test_the_second_call_of_a_prompt_is_not_lost():
    row = {"messages": [USER, TWICE, *answers(2), SAID], "tools": [TOOL]}
    asked = to_prompt(row, Source(name="s", path="x"), "x:1")
    data = Data([], template="tokenizer")
    assert len(tokenize_prompt(asked, own(HERMES), data).input_ids)
    with pytest.raises(RowError, match="renders 1 of 2 calls of message 1"):
        tokenize_prompt(asked, own(ONE_CALL), data)


@pytest.mark.parametrize("train_on", ["assistant", "last"])
def test_text_beside_a_call_is_not_lost(train_on, monkeypatch):
    """`It` stands in another turn, too."""
    call = called({"a": 2}, content="It", weight=0)
    row = {"messages": [USER, call, *answers(1), SAID], "tools": [TOOL]}
    monkeypatch.setitem(tokenizer_of("qwen2_5").__dict__, "chat_template", SWALLOWS)
    with pytest.raises(
        RowError, match="template_error: the template leaves out the text of message 1, which"
    ):
        rows_of("qwen2_5", row, train_on)


def test_thoughts_of_earlier_turns_may_be_left_out():
    thought = SAID | {"reasoning_content": "Two and two."}
    inside = SAID | {"content": "<think>\nTwo and two.\n</think>\n\nIt is 4."}
    for first in (thought, inside):
        [(_, row)] = rows_of("qwen3", {"messages": [USER, first, *MORE]}, "last")
        text = tokenizer_of("qwen3").decode(row.input_ids)
        assert "Two and two." not in text and "It is 4." in text


@pytest.mark.parametrize("value", ['say "é\n"', 12345678, 0.125, {"b": ["x", {"c": "y z"}]}])
def test_an_argument_that_is_lost(value):
    row = {"messages": [USER, called({"long_key": value})]}
    part = "call.function.arguments | tojson"
    written = own(HERMES.replace("(call.function | tojson)", f"call.function.name + ({part})"))
    lost = own(
        HERMES.replace("(call.function | tojson)", 'call.function.name + (\'{"long_key": "Zq7n1n0n"}\')')
    )
    example, data = to_example(row, Source(name="s", path="x"), "x:1"), Data([], template="tokenizer")
    assert tokenize_example(example, written, data, Loss())
    with pytest.raises(RowError, match="template_error: the template changes the text of message 1"):
        tokenize_example(example, lost, data, Loss())


# ---- what a template knows ---------------------------------------------------------------------------------

ONLY_BESIDE_CALLS = HERMES.replace("m.reasoning_content %}", "m.reasoning_content and m.tool_calls %}")
THINKING = SAID | {"reasoning_content": "Two and two."}
BY_VALUE = HERMES.replace("{{- m.content }}", "{{- m.content }}{% if m.mood == 'so' %}SO{% endif %}")


def outcome(row, tokenizer, path, num_proc):
    path.write_text("".join(json.dumps(each) + "\n" for each in row))
    data = Data(
        [],
        template="tokenizer",
        cache_dir=str(path.parent / str(num_proc)),
        num_proc=num_proc,
        max_drop_share=1,
    )
    try:
        table = prepare_source(Source(name="s", path=str(path)), data, Loss(), tokenizer)
    except RequestError as error:
        return str(error).replace(str(path.parent), "").partition(", message")[2]
    return table.stats["rows_kept"], table.stats["dropped"]


@pytest.mark.parametrize("num_proc", [1, 3])
def test_no_row_decides_for_another(tmp_path, num_proc):
    """A key that is rendered for one value, or beside a call only, in any order of rows."""
    rows = [
        *[{"messages": [USER, SAID]}] * 64,
        {"messages": [USER | {"mood": "so"}, SAID]},
        {"messages": [USER | {"mood": "no"}, SAID]},
    ]
    found = set()
    for i, order in enumerate([rows, rows[::-1], [rows[-1], *rows[:-1]], [rows[-2], rows[-1], *rows[:64]]]):
        found.add(outcome(order, own(BY_VALUE), tmp_path / f"{i}.jsonl", num_proc))
    assert len(found) == 1 and "does not render 'mood'" in found.pop()


@pytest.mark.parametrize("num_proc", [1, 3])
def test_a_thought_that_is_rendered_beside_a_call_only(tmp_path, num_proc):
    beside = {"messages": [USER, called({"a": 2}, reasoning_content="So I call.")]}
    alone = {"messages": [USER, THINKING]}
    for i, order in enumerate(itertools.permutations([beside, alone, {"messages": [USER, SAID]}])):
        said = outcome(order, own(ONLY_BESIDE_CALLS), tmp_path / f"{i}.jsonl", num_proc)
        assert "does not render 'reasoning_content'" in said
    many = outcome([beside] * 70, own(ONLY_BESIDE_CALLS), tmp_path / "many.jsonl", num_proc)
    assert many == (70, {})


def test_a_template_that_wants_a_user(tmp_path):
    """A key of a system message is looked for in the whole conversation."""
    users = "messages | selectattr('role', 'equalto', 'user') | list"
    wants = f"{{%- if not {users} %}}{{{{ raise_exception('No user') }}}}{{%- endif %}}"
    tokenizer = own(wants + HERMES)
    row = {"messages": [{"role": "system", "content": "Be brief.", "mood": "so"}, USER, SAID]}
    said = outcome([row], tokenizer, tmp_path / "rows.jsonl", 1)
    assert said.startswith(" 0 (system): template 'tokenizer' does not render 'mood'")
    row = {"messages": [{"role": "system", "content": "Be brief.", "mood": "so"}, *MORE[1:]]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(RequestError, match="template_error: the template fails: No user"):
        source = Source(name="s", path=str(path), roles="loose")
        prepare_source(source, Data([], template="tokenizer", cache_dir=str(tmp_path)), Loss(), tokenizer)


# ---- a prompt that opens a thought -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        *dict.fromkeys(["qwen3_5_think", "qwen3_6", "qwen3_8", "nemotron_3_nano"], "enable_thinking").items(),
        *dict.fromkeys(["deepseek_r1_distill", "deepseekv3"]).items(),  # which always think
    ],
)
def test_a_reply_without_a_thought_behind_a_prompt_that_opens_one(name, switch):
    """A switch is proposed where the template has one that is not set, and it helps."""
    row = {"messages": [USER, SAID]}
    with pytest.raises(RowError) as caught:
        rows_of(name, row)
    proposed = f"set data.template_options: {{{switch}: false}}, " if switch else ""
    said = str(caught.value)
    assert said.startswith("no_thought: ")
    assert said.endswith(f"Write the thought into the reply, {proposed}or choose another data.template")
    if switch:
        assert rows_of(name, row, **{"options": {switch: False}})
        with pytest.raises(RowError, match=r"Write the thought into the reply, or choose another"):
            rows_of(name, row | {"chat_template_kwargs": {switch: True}})


def test_a_prompt_that_the_user_ends_with_a_thought():
    """It is not the template that opens it."""
    row = {"messages": [USER | {"content": "Go on: <think>"}, SAID]}
    assert rows_of("posttrain: plain", row)


def test_a_refusal_names_the_row():
    with pytest.raises(
        RequestError, match=r"^x:1: template 'tokenizer' drops or changes earlier turns .*train_on"
    ):
        rows_of("qwen3", {"messages": [USER, THINKING, *MORE]})


# ---- dates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), [("gptoss", "%Y-%m-%d"), ("llama3_2", "%d %b %Y")])
def test_a_date_that_a_template_writes_names_the_table(name, form, tmp_path, monkeypatch, caplog):
    tokenizer = deepcopy(tokenizer_of(name))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [USER, SAID]}))
    texts, found = set(), set()
    days = [datetime(2026, 1, 31), datetime(2026, 1, 31, 23), datetime(2026, 2, 1)]
    for day in days:
        dates.cache_clear()
        monkeypatch.setattr(rendering, "_now", lambda day=day: day)
        data = Data([], template="tokenizer", cache_dir=str(tmp_path))
        for _ in range(2):
            table = prepare_source(Source(name="s", path=str(path)), data, Loss(), tokenizer)
        found.add(table.fingerprint)
        text = tokenizer.decode(table[0].input_ids)
        assert day.strftime(form) in text
        texts.add(text)
    assert len(texts) == len(found) == 2
    assert caplog.text.count("writes today's date (") == len(days) and days[0].strftime(form) in caplog.text


def test_a_date_that_is_set_is_no_date():
    tokenizer = tokenizer_of("llama3_2")
    told = load_template("tokenizer", tokenizer, {"date_string": "26 Jul 2024"})
    assert (
        dates(told.source, tokenizer) == () != dates(load_template("tokenizer", tokenizer).source, tokenizer)
    )


def test_argument_keys_that_the_tokenizer_makes_one():
    """`é` in one and in two characters, of which a dictionary would keep the last."""
    from tokenizers import normalizers

    tokenizer = own(HERMES)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    row = {"messages": [USER, called({"\u00e9": 1, "e\u0301": 2})]}
    example = to_example(row, Source(name="s", path="x"), "x:1")
    with pytest.raises(RowError, match="bad_call: two keys are the same in NFC"):
        tokenize_example(example, tokenizer, Data([], template="tokenizer"), Loss())
    assert tokenize_example(example, own(HERMES), Data([], template="tokenizer"), Loss())


QUIET = HERMES.replace("{%- for m in messages %}", "{%- for m in messages if m.role != 'system' %}")


@pytest.mark.parametrize("quote", [json.dumps, str])
def test_a_turn_that_another_quotes_is_not_lost(quote):
    """As JSON, which is taken for the turn itself where that is written so."""
    system = {"role": "system", "content": 'Say "hello there my friend", always.'}
    reply = {"role": "assistant", "content": quote(system["content"])}
    row = {"messages": [system, USER, reply]}
    example, data = to_example(row, Source(name="s", path="x"), "x:1"), Data([], template="tokenizer")
    assert tokenize_example(example, own(HERMES), data, Loss())
    with pytest.raises(RowError, match=r"leaves out message 0 \(system\)"):
        tokenize_example(example, own(QUIET), data, Loss())
