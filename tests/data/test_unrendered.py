"""What to do where a template leaves out a key, the tools or an option: the advice is tried as given."""

from __future__ import annotations

import re

import pytest

from posttrain.recipe.schema import Source
from tests.data.families import ANSWER, CALL, MORE, REPLY, STAND_IN, TOOL, USER, tokenizer_of, verdict
from tests.data.tokens import HERMES

TEXT = CALL | {"content": "Let me add."}
IN_TEXT = {"role": "assistant", "content": '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'}
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
    assert " on the source (under data.sources)" in refusal
    trained = verdict(name, row, source=source(*ignore))[1]
    assert re.sub(r"<[^<>]*>$", "", trained) == said


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("deepseek_r1_distill", {"messages": [USER, REPLY | {"reasoning_content": "r"}]}, "no_thought"),
        ("deepseekv3", {"messages": [USER, REPLY | {"reasoning_content": "r"}, *MORE]}, "no_thought"),
        ("idefics3", {"messages": [USER, REPLY | {"reasoning_content": "r"}]}, "template_error"),
        ("llama3", {"messages": [USER, CALL, ANSWER, REPLY], **WITH}, "empty_reply"),
        ("llama3", {"messages": [USER, CALL], **WITH}, "empty_reply"),
        ("llama3", {"messages": [USER, TEXT, ANSWER, REPLY], **WITH}, "tool_order"),
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
    assert verdict("qwen2_5", row)[1].endswith(
        "set ignore: [tools] on the source (under data.sources); what the file names otherwise (functions) "
        "is ignored by its name there"
    )
    assert '"name": "add"' in verdict("qwen2_5", row, source=source("tools"))[1]
    row["functions"] = row.pop("tools")
    assert "does not render 'tools'" in verdict("qwen2_5", row, source=source("tools"))[1]
    assert '"name": "add"' in verdict("qwen2_5", row, source=source("functions"))[1]


@pytest.mark.parametrize("key", ["loss_mask", "Masked", "trainable", "is_trained"])
def test_what_may_mask_a_reply_is_not_to_be_ignored(key):
    """It would be trained then."""
    row = {"messages": [USER, REPLY | {key: 0}, *MORE]}
    assert verdict("llama3", row)[1].endswith(
        f"does not render {key!r}; {OTHER}. Where {key!r} says whether a reply is trained, rename it to "
        "'weight', with 0 or 1"
    )
    for misspelt in ("weigth", "wieght", "Weight"):
        row = {"messages": [USER, REPLY | {misspelt: 0}, *MORE]}
        assert verdict("llama3", row)[1].endswith("is not read; did you mean 'weight'? Rename it")
    renamed = {"messages": [USER, REPLY | {"weight": 0}, *MORE]}
    assert REPLY["content"] not in verdict("llama3", renamed)[1]


@pytest.mark.parametrize("key", ["rating", "index", "brains", "gloss"])
def test_what_is_0_or_1_may_mask_a_reply(key):
    row = {"messages": [USER, REPLY | {key: 0}, *MORE]}
    ignore = f"set ignore: [{key}] on the source (under data.sources)"
    but = f"; but where {key!r} says whether a reply is trained, rename it to 'weight'"
    assert verdict("llama3", row)[1].endswith(ignore + but)
    row = {"messages": [USER, REPLY | {key: 7}, *MORE]}
    assert verdict("llama3", row)[1].endswith(ignore)
    row = {"messages": [USER, REPLY | {key: 0, "mood": 1, "step": 2}, *MORE]}
    assert verdict("llama3", row)[1].endswith(
        f"set ignore: [{key}, mood, step] on the source (under data.sources); but where {key!r} or 'mood' "
        "says whether a reply is trained, rename it to 'weight'"
    )


def test_thoughts_in_parts_cannot_be_ignored():
    parts = [{"type": "thinking", "thinking": "Two."}, {"type": "text", "text": "It is 4."}]
    row = {"messages": [USER, {"role": "assistant", "content": parts}]}
    refusal = verdict("llama3", row)[1]
    assert refusal.endswith("; where a thought is a part of type 'thinking', remove the part instead")
    assert "does not render 'thinking'" in verdict("llama3", row, source=source("thinking"))[1]
    row = {"messages": [USER, REPLY | {"thinking": "Two."}]}
    assert verdict("llama3", row)[1] == refusal
    assert REPLY["content"] in verdict("llama3", row, source=source("thinking"))[1]


def test_a_call_that_is_the_content_of_a_message_cannot_be_ignored():
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {}}', "weight": 0}
    turns = [{"from": "human", "value": "2+2?"}, call, {"from": "gpt", "value": "4"}]
    row = {"conversations": turns}
    loose = Source(name="s", path="x", roles="loose")
    assert verdict("llama3", row, source=loose)[1].endswith(f"does not render 'tool_calls'; {OTHER}")
    xlam = {"query": "2+2?", "answers": '[{"name": "add", "arguments": {}}]', **WITH}
    assert verdict("llama3", xlam)[1].endswith(f"does not render 'tools'; {OTHER}")
    assert "tool_calls" in verdict("llama3", xlam, source=source("tools"))[1]
