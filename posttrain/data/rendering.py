"""Messages to text by the source of a chat template, and what a template knows: keys, tools, variables.

Rendering is that of transformers (its sandbox, its extensions), so a saved checkpoint renders the same text
elsewhere. What a data set and a template spell differently is translated here: the key of the reasoning,
arguments of calls as an object or as JSON text, the role `developer`. Left out: which of the text is trained
(turns.py).
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from posttrain.data.shapes.messages import LINKS, REASONING, reasoning
from posttrain.data.tokens import RowError
from posttrain.types import Message

PROBE = "Zq7"
"""A text that no template contains."""
VARIABLES = {"messages", "tools", "documents", "add_generation_prompt"}
"""What every template is given."""


def render(
    source: str,
    tokenizer: Any,
    messages: list[Message],
    add_generation_prompt: bool = False,
    tools: list[dict[str, Any]] | None = None,
    options: dict[str, Any] | None = None,
) -> str:
    """The text of a conversation, or of a prompt for the assistant's next turn.

    Raises:
        RowError: template_error, where the template refuses the conversation (for example because its roles
            do not alternate) or does what the sandbox forbids.
    """
    called = any("tool_calls" in turn for turn in messages)
    as_text = called and arguments_as_text(source, tokenizer)
    return _apply(source, tokenizer, _spelt(source, messages, as_text), add_generation_prompt, tools, options)


def _apply(source, tokenizer, messages, add_generation_prompt, tools=None, options=None) -> str:
    from jinja2 import TemplateError

    given = {
        **tokenizer.special_tokens_map,
        **(options or {}),
        "tools": tools or None,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return _compiled(source).render(messages=messages, documents=None, **given)
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        line = f" (line {error.lineno})" if getattr(error, "lineno", None) else ""
        raise RowError("template_error", f"the template fails: {error}{line}") from error


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """The template as `apply_chat_template` compiles it, which takes three times as long to render, because
    it copies what our messages never are."""
    from transformers.utils import chat_template_utils

    compiled = chat_template_utils._compile_jinja_template(source)
    compiled.globals = dict(compiled.globals)  # a chain of mappings, which is copied at every rendering
    return compiled


def _spelt(source: str, messages: list[Message], as_text: bool) -> list[dict[str, Any]]:
    """The messages as the template names things."""
    thoughts = [key for key in REASONING if _mentions(source, key)]
    found = []
    for turn in messages:
        made = {
            key: value
            for key, value in turn.items()
            if value is not None and key not in REASONING and key != "trained"
        }
        if turn["role"] == "developer" and not _mentions(source, "developer"):
            made["role"] = "system"
        if thought := reasoning(turn):
            made |= dict.fromkeys(thoughts, thought)
        if as_text and "tool_calls" in turn:
            made["tool_calls"] = [_text_call(call) for call in turn["tool_calls"]]
        found.append(made)
    return found


def _text_call(call: dict[str, Any]) -> dict[str, Any]:
    inner = call["function"]
    return call | {"function": inner | {"arguments": json.dumps(inner["arguments"], ensure_ascii=False)}}


@lru_cache(maxsize=64)
def _mentions(source: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", source) is not None


CALL: list[Message] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "aaaaaaaa1", "type": "function", "function": {"name": "f", "arguments": {"x": PROBE}}}
        ],
    },
]
"""A conversation that ends in a call."""


@lru_cache(maxsize=8)
def arguments_as_text(source: str, tokenizer: Any) -> bool:
    """Whether the template wants the arguments of a call as JSON text: given an object it fails, or writes it
    as Python does."""
    try:
        text = _apply(source, tokenizer, _spelt(source, CALL, False), False)
    except RowError:
        return True
    return f"'x': '{PROBE}'" in text


@lru_cache(maxsize=8)
def variables(source: str) -> frozenset[str]:
    """Names that the template reads besides messages and tools; empty where it cannot be parsed."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        found = meta.find_undeclared_variables(
            Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
        )
    except TemplateSyntaxError:  # `{% generation %}` is transformers' own
        found = set(re.findall(r"\b[a-z_]\w*\b", source))
    return frozenset(found) - VARIABLES


@lru_cache(maxsize=256)
def _known(source: str, tokenizer: Any) -> dict[tuple[str, str], bool]:
    """(role, key) -> whether the template renders it, as found so far."""
    return {}


def unrendered(
    source: str,
    tokenizer: Any,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    options: dict[str, Any],
) -> tuple[int | None, str] | None:
    """(message or None, key) of the first key with content that the template leaves out; None where it
    renders all."""
    for name in options:
        if name not in variables(source):
            return None, name
    known = _known(source, tokenizer)
    if tools:
        if ("", "tools") not in known:
            # some templates write the tools into the first user message
            upto = next((k for k, turn in enumerate(messages) if turn["role"] == "user"), 0) + 1
            plain = render(source, tokenizer, messages[:upto], options=options)
            known["", "tools"] = render(source, tokenizer, messages[:upto], False, tools, options) != plain
        if not known["", "tools"]:
            return None, "tools"
    for k, turn in enumerate(messages):
        for key in turn:
            at = (turn["role"], key)
            if key in ("role", "content", "trained") or (turn["role"] == "tool" and key in LINKS):
                continue
            if at not in known:
                without = {name: value for name, value in turn.items() if name != key}
                texts = [
                    render(source, tokenizer, [*messages[:k], each], False, tools, options)
                    for each in (turn, without)
                ]
                known[at] = texts[0] != texts[1]
            if not known[at]:
                return k, key
    return None
