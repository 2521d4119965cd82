"""Proof that a rendered conversation says all that its messages say: texts, and every one of several calls.

What stands in the text is looked for as it is, white space aside, and as JSON and Python spell it. Calls are
looked for by a second rendering with a mark in each, because names and arguments repeat. Left out: reasoning
of turns that are not trained, which many templates drop on purpose; keys (rendering.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from posttrain.data.rendering import PROBE
from posttrain.data.shapes.messages import reasoning
from posttrain.data.tokens import RowError
from posttrain.types import Message

OPENED = "<think>"
THOUGHT = re.compile(r"</?think>")
Render = Callable[[list[Message], bool], str]
"""(messages, add_generation_prompt) -> text, by one template with its tools and options."""


def refuse_left_out(messages: list[Message], text: str) -> None:
    """Raises `RowError` (template_error) where `text` lacks what a message says, be it trained or not."""
    got = None
    for k, turn in enumerate(messages):
        said = turn["role"] == "assistant"
        content = _behind_thought(turn["content"]) if said else turn["content"].strip()
        if content in text:
            continue
        got = _squeezed(text) if got is None else got
        if not any(_squeezed(each) in got for each in _spellings(content)[: 1 if said else 3]):
            raise RowError("template_error", f"the template leaves out message {k} ({turn['role']})")


def refuse_lost_calls(render: Render, messages: list[Message], asks: bool = False) -> None:
    """Raises `RowError` (template_error) where not every call of a turn, trained or not, or not the text
    beside its calls is rendered, with `asks` in a prompt for a reply."""
    if not any(turn.get("tool_calls") for turn in messages):
        return
    try:
        text = render([_marked(k, turn) for k, turn in enumerate(messages)], asks)
    except RowError:  # the template reads the arguments; `refuse_changed` proves trained turns nevertheless
        return
    for k, turn in enumerate(messages):
        calls = turn.get("tool_calls", ())
        shown = sum(_mark(k, i) in text for i in range(len(calls)))
        if shown < len(calls):
            raise RowError(
                "template_error", f"the template renders {shown} of {len(calls)} calls of message {k}"
            )
        if calls and _behind_thought(turn["content"]) and _mark(k, "text") not in text:
            raise RowError("template_error", f"the template leaves out the text of message {k}, which calls")


def _marked(k: int, turn: Message) -> Message:
    """A turn with a mark in place of the arguments of each call, and of the text beside them."""
    if not turn.get("tool_calls"):
        return turn
    calls = [
        call | {"function": call["function"] | {"arguments": {"x": _mark(k, i)}}}
        for i, call in enumerate(turn["tool_calls"])
    ]
    content = turn["content"]
    if said := _behind_thought(content):
        content = content[: content.rindex(said)] + _mark(k, "text")
    return turn | {"content": content, "tool_calls": calls}


def _mark(k: int, what: int | str) -> str:
    return f"{PROBE}n{k}n{what}n"


def _behind_thought(content: str) -> str:
    return THOUGHT.split(content)[-1].strip()


def refuse_changed(turn: Message, said: str, k: int) -> None:
    """Raises `RowError` where the text of a turn lacks what its message says; white space may differ."""
    got = ""
    wanted: list[list[str]] = [[each] for each in (*THOUGHT.split(turn["content"]), reasoning(turn))]
    for call in turn.get("tool_calls", ()):
        inner = call["function"]
        wanted += [[inner["name"]], *map(_spellings, _leaves(inner["arguments"]))]
    for spellings in wanted:
        if spellings[0].strip() in said:
            continue
        got = got or _squeezed(said)
        if not any(_squeezed(each) in got for each in spellings):
            raise RowError("template_error", f"the template changes the text of message {k}")


def refuse_twice(prompt: str, said: str, k: int) -> None:
    """Raises `RowError` where `prompt` opens a thought and the turn opens it once more."""
    if prompt.rstrip().endswith(OPENED) and OPENED in said:
        raise RowError(
            "template_error",
            f"the template opens the thought of message {k} twice; write it under 'reasoning_content', "
            f"without {OPENED}",
        )


def _leaves(value: Any) -> Iterator[str]:
    """The texts, numbers and keys in the arguments of a call; templates spell true, false and null freely."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield str(key)
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _spellings(text: str) -> list[str]:
    """`text` as it is, as JSON writes it, as JSON in JSON, and as Python does."""
    found = [text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]]
    return [
        *found,
        json.dumps(found[1], ensure_ascii=False)[1:-1],
        json.dumps(found[2])[1:-1],
        repr(text)[1:-1],
    ]


def _squeezed(text: str) -> str:
    return "".join(text.split())
