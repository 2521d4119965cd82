"""Conversations with tools, reasoning and flags: what is read, rendered and trained."""

from __future__ import annotations

import json

import pytest
from tokenizers import normalizers

from posttrain.data.shapes.rows import to_example
from posttrain.data.template import load_template
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source
from tests.data.tokens import BYTES, HERMES, bpe_tokenizer, byte_tokenizer, row_of, trained

USER = {"role": "user", "content": "2+2?"}
ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
OPENAI = {
    "tools": [{"type": "function", "function": ADD}],
    "messages": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ],
}
SHAREGPT = {
    "tools": json.dumps([ADD]),
    "conversations": [
        {"from": "human", "value": "2+2?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "It is 4."},
    ],
}
XLAM = {
    "query": "2+2?",
    "tools": json.dumps([ADD]),
    "answers": '[{"name": "add", "arguments": {"a": 2}}]',
}
BARE = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""Renders neither tools nor reasoning."""


def example(row, **source):
    return to_example(row, Source(name="s", path="rows.jsonl", **source), "rows.jsonl:7")


@pytest.fixture
def hermes():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = HERMES
    return tokenizer


def said(row, tokenizer, **data) -> str:
    return trained(row_of(example(row), "tokenizer", tokenizer, **data), tokenizer)


@pytest.mark.parametrize("row", [OPENAI, SHAREGPT])
def test_a_call_and_the_answer_to_it(row, hermes):
    call = '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>'
    assert said(row, hermes) == f"{call}<|im_end|>It is 4.<|im_end|>", "never what the tool says"
    text = hermes.decode(row_of(example(row), "tokenizer", hermes).input_ids)
    assert text.startswith('<tools>[{"type": "function", "function": {"name": "add"')
    assert "<|im_start|>tool\n4<|im_end|>" in text


def test_xlam(hermes):
    found = example(XLAM)
    assert [m["role"] for m in found.messages] == ["user", "assistant"]
    assert said(XLAM, hermes) == '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call><|im_end|>'


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_reaches_the_template_under_its_own_key(key, hermes):
    row = {"messages": [USER, {"role": "assistant", "content": "4", key: "two and two"}]}
    assert said(row, hermes) == "<think>two and two</think>4<|im_end|>"
    hermes.chat_template = BARE
    where = r"rows.jsonl:7, message 1 .assistant.: template 'tokenizer'"
    with pytest.raises(RequestError, match=f"{where} does not render '{key}'"):
        said(row, hermes)
    quiet = example(row, ignore=[key])
    assert quiet.ignored == (key,)
    assert trained(row_of(quiet, "tokenizer", hermes), hermes) == "4<|im_end|>"


@pytest.mark.parametrize(
    ("key", "value"), [("function_calls", "f(a=2)"), ("refusal", "No."), ("audio", {"id": 1})]
)
def test_a_reply_that_says_it_under_another_key_is_not_empty(key, value):
    row = {"messages": [USER, {"role": "assistant", "content": "", key: value}]}
    with pytest.raises(
        RequestError, match=rf"message 1 .assistant.: template 'chatml' does not render '{key}'"
    ):
        row_of(example(row), "chatml")
    for source in ({"ignore": [key]}, {}):
        more = {} if source else {"id": "msg_1", "name": "bot", key: None}
        empty = {"messages": [USER, row["messages"][1] | more]}
        with pytest.raises(RowError, match="empty_reply: message 1"):
            example(empty, **source)


def test_what_a_template_leaves_out_is_an_error(hermes):
    hermes.chat_template = BARE
    with pytest.raises(RequestError, match="rows.jsonl:7: template 'tokenizer' does not render 'tools'"):
        said(OPENAI, hermes)
    row = {"messages": [{**USER, "name": "Ann"}, {"role": "assistant", "content": "4"}]}
    with pytest.raises(RequestError, match=r"message 0 .user.: template 'chatml' does not render 'name'"):
        row_of(example(row), "chatml")
    row = {"prompt": "p", "completion": "c", "chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(RequestError, match="does not render 'enable_thinking'"):
        row_of(example(row), "chatml")


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"training": 0}, {"loss": False}])
def test_a_turn_that_is_not_to_be_trained_is_context(flag):
    bad = {"role": "assistant", "content": "bad", **flag}
    talk = [USER, bad, {"role": "user", "content": "c"}, {"role": "assistant", "content": "good"}]
    row = row_of(example({"messages": talk}))
    assert trained(row) == "good<|im_end|>" and "bad" in BYTES.decode(row.input_ids)
    with pytest.raises(RowError, match="empty"):
        row_of(example({"messages": talk[:2]}))


def test_each_turn_in_a_row_of_its_own():
    from posttrain.data.tokenize import each_turn

    talk = [USER, {"role": "assistant", "content": "a"}, USER, {"role": "assistant", "content": "b"}]
    parts = each_turn(example({"messages": talk}))
    assert [trained(row_of(part, train_on="each")) for part in parts] == ["a<|im_end|>", "b<|im_end|>"]


def test_options_of_the_recipe_and_of_the_row(hermes):
    plain = {"messages": [USER, {"role": "assistant", "content": "<think></think>4"}]}
    off = {"enable_thinking": False}
    assert said(plain, hermes) == "<think></think>4<|im_end|>"
    assert said(plain, hermes, template_options=off) == "4<|im_end|>"
    own = plain | {"chat_template_kwargs": {"enable_thinking": True}}
    assert said(own, hermes, template_options=off) == "<think></think>4<|im_end|>"
    load_template("tokenizer", hermes, off).apply_to(hermes)
    saved = hermes.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert saved.endswith("<think></think>"), "a checkpoint renders the prompts that it was trained on"
    with pytest.raises(RequestError, match="no variable 'enable_thinkin' .did you mean 'enable_thinking'"):
        load_template("tokenizer", hermes, {"enable_thinkin": False})


def test_a_prompt_that_opens_a_thought(hermes):
    hermes.chat_template = HERMES.replace("{%- if enable_thinking", "{{- '<think>' }}{%- if enable_thinking")
    row = {"messages": [USER, {"role": "assistant", "content": "4", "reasoning_content": "so"}]}
    assert said(row, hermes) == "so</think>4<|im_end|>"
    row = {"messages": [USER, {"role": "assistant", "content": "<think>so</think>4"}]}
    assert said(row, hermes) == "so</think>4<|im_end|>"
    for blank in ({}, {"reasoning_content": " \n"}):
        reply = {"role": "assistant", "content": "4"}
        for row in ({"messages": [USER, reply | blank]}, {"messages": [USER, reply]} | blank):
            with pytest.raises(RowError, match="no_thought"):
                said(row, hermes)


@pytest.mark.parametrize("form", [normalizers.NFC(), normalizers.NFKC()])
def test_a_tokenizer_that_normalises(form):
    tokenizer = bpe_tokenizer()
    tokenizer.backend_tokenizer.normalizer = form
    row = row_of([USER, {"role": "assistant", "content": "cafe\u0301"}], "chatml", tokenizer)
    assert trained(row, tokenizer) == "café<|im_end|>"


def test_arguments_as_the_template_wants_them(hermes):
    """Some concatenate the arguments, which fails with an object, and some write it as Python does."""
    for wanted in ("call.function.arguments", "(call.function.arguments ~ '')"):
        hermes.chat_template = HERMES.replace("(call.function | tojson)", f"call.function.name + {wanted}")
        assert said(XLAM, hermes) == '<tool_call>add{"a": 2}</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER, {"role": "function_call", "content": "{"}], "bad_call"),
        ([USER, {"role": "tool_call", "content": '{"arguments": {}}'}], "bad_call"),
        ([USER, OPENAI["messages"][1], USER, {"role": "assistant", "content": "x"}], "tool_order"),
        ([USER, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "x"}], "tool_order"),
    ],
)
def test_calls_that_do_not_fit(turns, reason):
    with pytest.raises(RowError) as caught:
        example({"messages": turns})
    assert caught.value.reason == reason


def test_turns_that_are_joined_or_kept():
    twice = [USER, {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "4"}]
    with pytest.raises(RowError, match="two_users: message 1"):
        example({"messages": twice})
    joined = example({"messages": twice}, roles="join").messages
    assert [m["content"] for m in joined] == ["2+2?\n\nWell?", "4"]
    assert example({"messages": twice}, roles="loose").messages == twice


LISTS = [
    f"You can call:\n<tools> {json.dumps([ADD])} </tools>",  # Hermes
    f"Use these if required -\n{json.dumps(ADD, indent=4)}",  # Glaive
]


@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize("role", ["system", "developer"])
def test_tools_that_the_system_message_lists_are_not_written_twice(text, role, hermes):
    talk = {"tools": [ADD], "messages": [{"role": role, "content": text}, *OPENAI["messages"]]}
    words = (
        "^rows.jsonl:7: the system message lists the tools of column 'tools' already, .* ignore: .tools. on"
    )
    with pytest.raises(RequestError, match=words):
        example(talk)
    with pytest.raises(RequestError, match=words):
        example({"tools": [ADD], "prompt": "p", "completion": "c"}, system=text)
    once = row_of(example(talk, ignore=["tools"]), "tokenizer", hermes)
    assert hermes.decode(once.input_ids).count("Adds.") == 1


@pytest.mark.parametrize(
    "text",
    [
        "Call what stands in <tools></tools>.",
        'Write <tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>.',
        f"<tools>{json.dumps(ADD | {'name': 'subtract'})}</tools>",
        "You add numbers.",
    ],
)
def test_a_system_message_may_speak_of_tools(text):
    talk = {"tools": [ADD], "messages": [{"role": "system", "content": text}, *OPENAI["messages"]]}
    assert example(talk).tools and example(talk).messages[0]["content"] == text


@pytest.mark.parametrize("roles", ["strict", "join", "loose"])
def test_what_a_tool_returned_is_unwrapped(roles):
    """Templates such as Qwen 2.5's write the marks around it themselves."""

    def kept(*turns):
        found = example({"messages": [USER, OPENAI["messages"][1], *turns]}, roles=roles).messages[2:]
        return [turn["content"] for turn in found]

    def tool(content, **more):
        return {"role": "tool", "content": content, **more}

    one, two = "<tool_response>\n4\n</tool_response>", "<tool_response>{}</tool_response>"
    assert kept(tool(one)) == ["4"]
    assert kept(tool(f"\n{one}\n{two}\n")) == ["4", "{}"]
    assert kept(tool(one, tool_call_id="1")) == ["4"]
    for text in (f"{one} and", f"{one}{two[:-1]}", f"say {one}", "<tool_response>", f"<tool_response>{one}"):
        assert kept(tool(text)) == [text]
    assert kept(tool(one + two, tool_call_id="1")) == [one + two]
    assert kept(tool("4"), {"role": "assistant", "content": one}) == ["4", one]


def test_parts_and_a_developer():
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    talk = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "4"},
    ]
    text = BYTES.decode(row_of(example({"messages": talk})).input_ids)
    assert "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>" in text
