"""What to do where a template leaves out a key, the tools or an option: the advice is tried as given."""

from __future__ import annotations

import re

import pytest

from posttrain.recipe.schema import Source
from tests.data.families import ANSWER, CALL, REPLY, STAND_IN, TOOL, USER, tokenizer_of, verdict
from tests.data.tokens import HERMES

TEXT = CALL | {"content": "Let me add."}
IN_TEXT = {"role": "assistant", "content": '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'}
THOUGHT = {"role": "assistant", "content": "", "reasoning_content": "Two and two."}
WITH = {"tools": [TOOL]}
OTHER = "choose another data.template"


def source(*ignore) -> Source:
    return Source(name="s", path="x", ignore=[*ignore])


@pytest.mark.parametrize(
    ("name", "row", "missing", "ignore", "said"),
    [
        ("llama3", {"messages": [USER, REPLY], **WITH}, "tools", ["tools"], "It is 4."),
        ("llama3", {"messages": [USER, TEXT], **WITH}, "tools", ["tools", "tool_calls"], "Let me add."),
        (
            "llama3",
            {"messages": [USER, IN_TEXT, {"role": "tool", "content": "4"}, REPLY], **WITH},
            "tools",
            ["tools"],
            f"{IN_TEXT['content']}<|eot_id|>It is 4.",
        ),
        (
            "llama3",
            {"messages": [USER, REPLY | {"reasoning_content": "r", "mood": "m"}]},
            "reasoning_content",
            ["reasoning_content", "mood"],
            "It is 4.",
        ),
        (
            f"{STAND_IN}granite3",
            {"messages": [USER, REPLY], "chat_template_kwargs": {"mood": "m"}},
            "mood",
            ["chat_template_kwargs"],
            "It is 4.",
        ),
        (
            "llama3",
            {"messages": [USER, REPLY], **WITH, "chat_template_kwargs": {"tools": "m"}},
            "tools",
            ["tools", "chat_template_kwargs"],
            "It is 4.",
        ),
    ],
)
def test_what_to_ignore_leads_away(name, row, missing, ignore, said):
    refusal = verdict(name, row)[1]
    found = re.search(rf"does not render '{missing}'; {OTHER}, or set ignore: \[(.*?)\]", refusal)
    assert found, refusal
    assert found[1].split(", ") == ignore
    assert refusal.endswith(" on the source (under data.sources)")
    trained = verdict(name, row, source=source(*ignore))[1]
    assert re.sub(r"<[^<>]*>$", "", trained) == said


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("llama3", {"messages": [USER, CALL, ANSWER, REPLY], **WITH}, "empty_reply"),
        ("llama3", {"messages": [USER, CALL], **WITH}, "empty_reply"),
        ("llama3", {"messages": [USER, TEXT, ANSWER, REPLY], **WITH}, "tool_order"),
        ("llama3", {"messages": [USER, THOUGHT]}, "empty_reply"),
        (
            "gemma3",
            {"messages": [USER, IN_TEXT, {"role": "tool", "content": "4"}, REPLY], **WITH},
            "template_error",
        ),
    ],
)
def test_what_leads_nowhere_is_not_proposed(name, row, reason):
    assert verdict(name, row)[1].endswith(f"; {OTHER}")
    ignored = source("tools", "tool_calls", "reasoning_content")
    assert verdict(name, row, source=ignored)[1].startswith(f"{reason}: ")


def test_calls_stay_where_only_the_tools_are_left_out(monkeypatch):
    source_of = tokenizer_of("qwen2_5").__dict__
    monkeypatch.setitem(source_of, "chat_template", re.sub(r"{%-? if tools.*?endif -?%}", "", HERMES))
    row = {"messages": [USER, CALL, ANSWER, REPLY], **WITH}
    assert "set ignore: [tools] (or what the file calls it) on the source" in verdict("qwen2_5", row)[1]
    assert '"name": "add"' in verdict("qwen2_5", row, source=source("tools"))[1]
