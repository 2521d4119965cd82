"""Messages to text by the source of a chat template, and what a template knows: keys, tools, variables.

Rendering is that of transformers (its sandbox, its extensions), so a saved checkpoint renders the same text
elsewhere. What a data set and a template spell differently is translated here: the key of the reasoning,
arguments of calls as an object or as JSON text, the role `developer`. Left out: which of the text is trained
(turns.py).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from posttrain.data.prefixes import Beginnings
from posttrain.data.shapes.messages import LINKS, REASONING, reasoning
from posttrain.data.tokens import RowError
from posttrain.data.variables import read_first
from posttrain.types import Message

log = logging.getLogger(__name__)
PROBE = "Zq7"
"""A text that no template contains."""
VARIABLES = {"messages", "tools", "documents", "add_generation_prompt"}
"""What every template is given."""
SWITCHES = ("enable_thinking", "thinking")
"""Usual variables that turn thinking off where they are false."""


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
    return _apply(source, _given(source, tokenizer, messages, add_generation_prompt, tools, options))


def renderer(
    source: str, tokenizer: Any, tools: list[dict[str, Any]] | None, options: dict[str, Any] | None
) -> Beginnings:
    """`render` of one conversation and its beginnings, as a function of (messages, add_generation_prompt)."""

    def given(messages: list[Message], asks: bool) -> dict[str, Any]:
        return _given(source, tokenizer, messages, asks, tools, options)

    return Beginnings(source, _compiled(source), lambda part, asks: _apply(source, given(part, asks)), given)


def _given(
    source, tokenizer, messages, asks=False, tools=None, options=None, as_text: bool | None = None
) -> dict[str, Any]:
    """The variables of the template; `as_text`: whether it wants arguments of calls as JSON text."""
    if as_text is None:
        called = any("tool_calls" in turn for turn in messages)
        as_text = called and arguments_as_text(source, tokenizer)
    return {
        **tokenizer.special_tokens_map,
        **(options or {}),
        "messages": _spelt(source, messages, as_text),
        "tools": tools or None,
        "documents": None,
        "add_generation_prompt": asks,
    }


def _apply(source: str, given: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    try:
        return _compiled(source).render(**given)
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        line = f" (line {error.lineno})" if getattr(error, "lineno", None) else ""
        raise RowError("template_error", f"the template fails: {error}{line}") from error


@cache
def _now() -> datetime:
    """When this process and those forked from it write a date: a table has one, also past midnight."""
    return datetime.now()


@lru_cache(maxsize=8)
def dates(source: str, tokenizer: Any) -> tuple[str, ...]:
    """What the template writes of today's date into a conversation; the first time with a warning."""
    if "strftime_now" not in source:
        return ()
    found: list[str] = []
    compiled = _compiled(source)
    strftime = compiled.globals["strftime_now"]

    def noted(form: str) -> str:
        found.append(strftime(form))
        return found[-1]

    compiled.globals["strftime_now"] = noted
    try:
        for tools in (None, [TOOL]):
            with suppress(RowError):
                render(source, tokenizer, CALL[:1], True, tools)
    finally:
        compiled.globals["strftime_now"] = strftime
    if found:
        remedy = (
            "; set data.template_options: {date_string: ...}" if "date_string" in variables(source) else ""
        )
        said = ", ".join(sorted(set(found)))
        log.warning("the template writes today's date (%s): tables of another day differ%s", said, remedy)
    return tuple(sorted(set(found)))


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """The template as `apply_chat_template` compiles it, which takes three times as long to render, because
    it copies what our messages never are."""
    from transformers.utils import chat_template_utils

    compiled = chat_template_utils._compile_jinja_template(source)
    # a copy, because the chain of mappings would be copied at every rendering
    compiled.globals = {**compiled.globals, "strftime_now": lambda form: _now().strftime(form)}
    return compiled


def _spelt(source: str, messages: list[Message], as_text: bool) -> list[dict[str, Any]]:
    """The messages as the template names things."""
    thoughts = [key for key in REASONING if _mentions(source, key)]
    found = []
    for turn in messages:
        if len(turn) == 2 and turn["content"] is not None and turn["role"] != "developer":
            found.append({**turn})  # most are
            continue
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
        text = _apply(source, _given(source, tokenizer, CALL, as_text=False))
    except RowError:
        return True
    return f"'x': '{PROBE}'" in text


@lru_cache(maxsize=8)
def variables(source: str) -> frozenset[str]:
    """Names that the template reads besides messages and tools, and does not set before; empty where it
    cannot be parsed."""
    from jinja2 import TemplateSyntaxError

    try:
        return read_first(source, _compiled(source).environment) - VARIABLES
    except TemplateSyntaxError:
        return frozenset()


def thinking_switch(source: str, chosen: Collection[str]) -> str | None:
    """The variable by which the template is told not to think; None if it has none or it is `chosen`
    already."""
    return next((name for name in SWITCHES if name in variables(source) and name not in chosen), None)


TOOL = {
    "type": "function",
    "function": {
        "name": PROBE,
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


def unrendered(
    source: str,
    tokenizer: Any,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    options: dict[str, Any],
) -> tuple[int | None, str] | None:
    """(message or None, key) of the first key with content that the template leaves out; None where it
    renders all. What it says of a conversation does not depend on those before it.

    Raises:
        RowError: template_error, where the template refuses the conversation.
    """
    for name in options:
        if name not in variables(source):
            return None, name
    written = json.dumps(options, sort_keys=True, default=str) if options else "{}"

    def rendered(part: list[Message], tools: list[dict[str, Any]] | None) -> str | None:
        try:
            return render(source, tokenizer, part, False, tools, options)
        except RowError:
            return None

    def changes(upto: int, without: Callable[[list[Message]], str | None]) -> bool:
        """Whether the conversation up to a message, or all of it, is another one `without` something."""
        # a thought may be left out for the turns behind it, but is written where it comes last
        parts = [part for part in (messages, messages[:upto]) if rendered(part, tools) is not None]
        if not parts:
            render(source, tokenizer, messages, False, tools, options)  # raises
        return any(rendered(part, tools) != without(part) for part in parts)

    if tools:
        # some templates write the tools into the first user message
        upto = next((k for k, turn in enumerate(messages) if turn["role"] == "user"), 0) + 1
        roles = tuple(turn["role"] for turn in messages[:upto])
        if not _writes_tools(source, tokenizer, roles, written) and not changes(
            upto, lambda part: rendered(part, None)
        ):
            return None, "tools"
    for k, turn in enumerate(messages):
        for key in turn:
            if key in ("role", "content", "trained") or (turn["role"] == "tool" and key in LINKS):
                continue
            if turn["role"] == "assistant" and _writes(source, tokenizer, key, written):
                continue
            less = {name: value for name, value in turn.items() if name != key}
            if not changes(
                k + 1, lambda part, k=k, less=less: rendered([*part[:k], less, *part[k + 1 :]], tools)
            ):
                return k, key
    return None


@lru_cache(maxsize=64)
def _writes(source: str, tokenizer: Any, key: str, options: str) -> bool:
    """Whether the template writes a call, or a thought under `key`, of a last turn."""
    if key == "tool_calls":
        asked = CALL
    elif key in REASONING:
        asked = [CALL[0], {"role": "assistant", "content": "Hi", key: PROBE}]
    else:
        return False
    try:
        return PROBE in render(source, tokenizer, asked, options=json.loads(options))
    except RowError:
        return False


@lru_cache(maxsize=64)
def _writes_tools(source: str, tokenizer: Any, roles: tuple[str, ...], options: str) -> bool:
    """Whether the template writes the tools of a conversation that begins with these roles."""
    messages: list[Message] = [{"role": role, "content": "Hi"} for role in roles]
    try:
        return PROBE in render(source, tokenizer, messages, False, [TOOL], json.loads(options))
    except RowError:
        return False
