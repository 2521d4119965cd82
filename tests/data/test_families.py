"""What of the chat templates of published models is trained: the page says it, and nothing is wrong."""

from __future__ import annotations

import re

import pytest
import trl

from tests.data.families import (
    CALL,
    CASES,
    MORE,
    NAMES,
    OURS,
    REPLY,
    STAND_IN,
    STAND_INS,
    SYSTEM,
    USER,
    family,
    verdict,
)
from tests.data.shapes_page import Shape, made
from tests.data.templates_page import PAGE, cells, page, rows, table, ways_round
from tests.data.ways import WAYS, Way, cell, judged, way_round

TURNS = {"messages": [SYSTEM, USER, REPLY, *MORE]}
TOOLS = CASES["tools"]
HERMES = {
    "messages": [
        USER,
        {"role": "assistant", "content": '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'},
        {"role": "tool", "content": "4"},
        REPLY,
    ]
}
"""The call is in the text, and what the tool returns is said by the reply, too."""
THINKS = {"messages": [USER, {"role": "assistant", "content": "<think>Two.</think>It is 4."}]}


def test_there_are_many_families():
    assert len(NAMES) >= 30
    assert len(STAND_INS) >= 8
    assert not {name.removeprefix(STAND_IN) for name in STAND_INS} & set(NAMES)


def test_the_page_is_true():
    """Every line of `posttrain/data/TEMPLATES.md`, for the TRL that it names; with another, the lines of the
    templates that both have."""
    text = PAGE.read_text(encoding="utf-8")
    if re.search(r"TRL ([\d.]+\d)", text)[1] == trl.__version__:
        assert text == page()
    shown = cells(text)
    assert len(shown) >= 40
    now = rows([*OURS, *NAMES, *STAND_INS])
    assert {name: now[name] for name in now.keys() & shown.keys()} == {
        name: shown[name] for name in now.keys() & shown.keys()
    }
    assert "wrong" not in table(now)
    assert len(text.splitlines()) <= 150


def test_of_a_stand_in_nothing_is_said_to_be_right():
    for name, row in rows(STAND_INS).items():
        assert set(row) <= {"as rendered", "each: as rendered", "thinking off: as rendered", "refused"}, name


def test_a_stand_in_names_its_documentation():
    for name in STAND_INS:
        assert family(name).url.startswith("https://"), name
        assert "{#" not in family(name).source, f"{name}: the rest has no comment"


@pytest.mark.parametrize(
    ("name", "case", "said"),
    [
        ("llama3_1", "tools", '{"name": "add", "parameters": {"a": 2}}<|eot_id|>It is 4.<|eot_id|>'),
        ("qwen2_5", "turns", "It is 4.<|im_end|>6.<|im_end|>"),
        ("qwen3", "reasoning", "<think>\nTwo and two.\n</think>\n\nIt is 4.<|im_end|>"),
        ("qwen3_5_think", "reasoning", "Two and two.\n</think>\n\nIt is 4.<|im_end|>"),
        ("deepseek_r1_distill", "thought", "Two and two.\n</think>\n\nIt is 4.<｜end▁of▁sentence｜>"),
        (
            "gptoss",
            "tools",
            ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}<|call|>'
            "<|channel|>final<|message|>It is 4.<|return|>",
        ),
    ],
)
def test_what_is_trained(name, case, said):
    assert verdict(name, case)[1] == said


@pytest.mark.parametrize(
    ("name", "row", "text"),
    [
        (
            "llama2",
            TURNS,
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n2+2? [/INST]⟦ It is 4. </s>⟧"
            "<s>[INST] And 3+3? [/INST]⟦ 6. </s>⟧",
        ),
        (
            "llama4",
            TOOLS,
            "<|header_start|>user<|header_end|>\n\n2+2?<|eot|>"
            "<|header_start|>assistant<|header_end|>\n\n⟦[add(a=2)]<|eot|>⟧"
            "<|header_start|>ipython<|header_end|>\n\n4<|eom|>"
            "<|header_start|>assistant<|header_end|>\n\n⟦It is 4.<|eot|>⟧",
        ),
        (
            "mistral_v3_tekken",
            TOOLS,
            '[/AVAILABLE_TOOLS][INST]2+2?[/INST]⟦[TOOL_CALLS][{"name": "add", "arguments": {"a": 2}, '
            '"id": "abcdefgh1"}]</s>⟧[TOOL_RESULTS]{"content": 4, "call_id": "abcdefgh1"}[/TOOL_RESULTS]'
            "⟦It is 4.</s>⟧",
        ),
        (
            "magistral",
            {
                "messages": [
                    SYSTEM,
                    USER,
                    {"role": "assistant", "content": "[THINK]Two and two.[/THINK]It is 4."},
                ]
            },
            "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]2+2?[/INST]"
            "⟦[THINK]Two and two.[/THINK]It is 4.</s>⟧",
        ),
        (
            "phi4",
            TURNS,
            "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>2+2?<|im_end|>"
            "<|im_start|>assistant<|im_sep|>⟦It is 4.<|im_end|>⟧<|im_start|>user<|im_sep|>And 3+3?<|im_end|>"
            "<|im_start|>assistant<|im_sep|>⟦6.<|im_end|>⟧",
        ),
        (
            "olmo2",
            TURNS,
            "<|endoftext|><|system|>\nBe brief.\n<|user|>\n2+2?\n<|assistant|>\n⟦It is 4.<|endoftext|>⟧\n"
            "<|user|>\nAnd 3+3?\n<|assistant|>\n⟦6.<|endoftext|>⟧",
        ),
        (
            "tulu3",
            TURNS,
            "<|system|>\nBe brief.\n<|user|>\n2+2?\n<|assistant|>\n⟦It is 4.<|end_of_text|>⟧\n"
            "<|user|>\nAnd 3+3?\n<|assistant|>\n⟦6.<|end_of_text|>⟧",
        ),
        (
            "smollm3",
            {"messages": [{"role": "system", "content": "Be brief. /no_think"}, USER, REPLY]},
            "Reasoning Mode: /no_think\n\n## Custom Instructions\n\nBe brief.\n\n<|im_end|>\n"
            "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n"
            "⟦It is 4.<|im_end|>⟧\n",
        ),
        (
            "granite3",
            TOOLS,
            "]<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>2+2?<|end_of_text|>\n"
            '<|start_of_role|>assistant<|end_of_role|>⟦<|tool_call|>[{"name": "add", "arguments": {"a": 2}}]'
            "<|end_of_text|>⟧\n<|start_of_role|>tool_response<|end_of_role|>4<|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>⟦It is 4.<|end_of_text|>⟧\n",
        ),
        (
            "deepseek_v3_1",
            TOOLS,
            "<｜User｜>2+2?<｜Assistant｜></think>⟦<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
            '{"a": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>⟧'
            "<｜tool▁output▁begin｜>4<｜tool▁output▁end｜>⟦It is 4.<｜end▁of▁sentence｜>⟧",
        ),
        (
            "command_r_plus",
            TOOLS,
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦Action: ```json\n[\n    {\n"
            '        "tool_name": "add",\n        "parameters": {"a": 2}\n    }\n]```<|END_OF_TURN_TOKEN|>⟧'
            "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>\nDocument: 0\n4\n</results>"
            "<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦It is 4.<|END_OF_TURN_TOKEN|>⟧",
        ),
        (
            "chatml_default_system",
            CASES["chat"],
            "<|im_start|>system\nHelp the user.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
            "<|im_start|>assistant\n⟦It is 4.<|im_end|>⟧\n",
        ),
    ],
)
def test_a_stand_in_has_the_documented_form(name, row, text):
    """What is trained stands in ⟦ ⟧; the end of the text, written by hand, or all of it."""
    assert made(Shape(row, f"{STAND_IN}{name}", []))[0].endswith(text)


def test_every_stand_in_is_written_out():
    marks = test_a_stand_in_has_the_documented_form.pytestmark
    assert {name for name, _, _ in marks[0].args[1]} == {name.removeprefix(STAND_IN) for name in STAND_INS}


@pytest.mark.parametrize("name", ["mistral_v3_tekken", "command_r_plus"])
def test_what_moves_with_the_last_user_message_needs_each(name):
    """Tools or the line behind them stand at another user message in the next turn's prompt."""
    row = {**TOOLS, "messages": [*TOOLS["messages"], *MORE]}
    found, said = verdict(f"{STAND_IN}{name}", row)
    assert found == "refused"
    assert "set data.train_on: each or last" in said
    found, said = verdict(f"{STAND_IN}{name}", row, "each")
    assert found == "as rendered"
    assert len(said.split(" | ")) == 3


def test_a_stand_in_refuses_what_its_model_does():
    without = {"messages": [USER, {**CALL, "tool_calls": [CALL["tool_calls"][0] | {"id": "short"}]}]}
    without["tools"] = TOOLS["tools"]
    assert "nine characters" in verdict(f"{STAND_IN}mistral_v3_tekken", without)[1]
    for name in ("llama2", "mistral_v3_tekken", "magistral"):
        assert "a turn of user was expected" in verdict(f"{STAND_IN}{name}", HERMES)[1], name


def test_which_stand_ins_write_the_date():
    found = {name.removeprefix(STAND_IN) for name in STAND_INS if "strftime_now" in family(name).source}
    assert found == {"granite3", "smollm3"}


def test_a_tools_turn_is_not_lost_where_the_reply_says_its_words():
    """Phi-4, OLMo 2 and Tülu 3 write no turn of a tool: its 4 stood in the text, in the reply."""
    for name in (f"{STAND_IN}phi4", f"{STAND_IN}olmo2", f"{STAND_IN}tulu3", "phi3"):
        said = verdict(name, HERMES, "each")[1]
        assert "the template leaves out message 2 (tool)" in said, name
    assert verdict(f"{STAND_IN}granite3", HERMES)[0] == "as rendered"
    assert verdict("qwen2_5", HERMES)[0] == "within"


def test_a_long_turn_is_not_lost_where_another_repeats_it():
    words = "The sum of two and two is four."
    turns = [*HERMES["messages"][:2], {"role": "tool", "content": words}, REPLY | {"content": words}]
    assert "leaves out message 2 (tool)" in verdict(f"{STAND_IN}phi4", {"messages": turns})[1]


@pytest.mark.parametrize("name", [f"{STAND_IN}smollm3", "qwen3_8"])
def test_no_thought_behind_a_closed_one(name):
    """With thinking off the prompt ends with an empty thought; a model thinks no second one behind it."""
    assert verdict(name, "chat", enable_thinking=False)[0] != "refused"
    assert "the prompt has closed the thought of message 1" in verdict(name, THINKS, enable_thinking=False)[1]


def test_the_switch_of_a_system_message_is_read_not_written():
    row = {"messages": [{"role": "system", "content": "Be brief. /no_think"}, USER, REPLY]}
    assert verdict(f"{STAND_IN}smollm3", row) == ("as rendered", "It is 4.<|im_end|>")
    assert "/no_think" in made(Shape(row, "qwen3", []))[0]


@pytest.mark.parametrize(
    ("name", "case", "said"),
    [
        ("phi3", "turns", "`data.train_on: each`"),
        ("qwen3_8", "chat", "`data.template_options: {enable_thinking: false}`"),
        ("gemma", "system", "the system message's text before that of the first user message"),
        ("llama3", "reasoning", "the thought in the text, as `<think>...</think>`"),
        (f"{STAND_IN}magistral", "reasoning", "the thought in the text, as `[THINK]...[/THINK]`"),
        ("qwen3_8", "thought", "the thought as `reasoning_content`"),
        (f"{STAND_IN}deepseek_v3_1", "thought", "`data.template_options: {thinking: true}`"),
        (
            "qwen3_5_nothink",
            "reasoning",
            "`ignore: [reasoning_content]` on the source: without the thought",
        ),
        ("gemma3", "tools", "none but another template, such as `data.template: chatml`"),
    ],
)
def test_the_way_round(name, case, said):
    """The first way that trains the case; those before it, and the case as it is, do not."""
    assert way_round(name, case) == said
    at = [way.said for way in WAYS].index(said)
    assert all(judged(name, case, way.said)[0] == "refused" for way in WAYS[:at])
    assert verdict(name, case)[0] == "refused"
    assert f"| {said} |" in ways_round()


def test_a_way_that_loses_a_part_of_the_row_is_none(monkeypatch):
    """A way is proved by what is trained, not by there being no refusal."""
    lost = {"messages": [USER, {**REPLY, "content": "Four."}]}
    monkeypatch.setattr("tests.data.ways.WAYS", (Way("lossy", lambda row: lost),))
    judged.cache_clear()
    with pytest.raises(AssertionError, match="It is 4"):
        way_round("llama3", "reasoning")
    judged.cache_clear()


def test_a_refusal_says_the_way_round():
    assert "set data.train_on: each or last" in verdict("qwen3", "turns")[1]
    assert "enable_thinking: false" in verdict("nemotron_3_nano", "chat")[1]
    assert "does not render 'tools'" in verdict("gemma3", "tools")[1]
    assert cell("qwen3", "turns")[0] == "each: right"
