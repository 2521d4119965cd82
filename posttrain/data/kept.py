"""Proof that a rendered conversation says all that its messages say: texts, and every one of several calls.

What stands in the text is looked for as it is, white space aside, and as JSON and Python spell it. Calls, and
turns whose words may stand elsewhere, are looked for by a second rendering with a mark in each. Left out:
reasoning of turns that are not trained, which many templates drop on purpose; which keys a template renders
(rendering.py), of which only the refusal is here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from posttrain.data.rendering import PROBE
from posttrain.data.shapes.messages import reasoning, says_nothing
from posttrain.data.shapes.names import like_a_flag
from posttrain.data.shapes.thoughts import CLOSE, OPEN
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.types import Example, Message

THOUGHT = re.compile(r"</?think>")
SWITCH = re.compile(r"/(?:no_)?think\b|/system_override\b")
"""What SmolLM3's template reads in a system message, and does not write."""
OTHER_NAMES = {"tools": "functions", "tool_calls": "function_call"}
"""What is read under another name, too; which one a row has is not known here."""
JSON_ONCE = 3
"""Of `_spellings`, the first so many: as it is, and as JSON."""
TELLING = 16
"""From so many characters, what no other turn says stands in a text only if its turn does."""
Render = Callable[[list[Message], bool], str]
"""(messages, add_generation_prompt) -> text, by one template with its tools and options."""


def refuse_unrendered(example: Example, template: Any, messages: list[Message]) -> None:
    """Raises `RequestError` where `template`, a `Template`, leaves out a key of a message, the tools, or an
    option."""
    left_out = template.unrendered(example, messages)
    if left_out is None:
        return
    k, key = left_out
    where = example.where if k is None else f"{example.where}, message {k} ({messages[k]['role']})"
    raise RequestError(
        f"{where}: template {template.name!r} does not render {key!r}; choose another data.template"
        f"{_advice(example, template, messages)}"
    )


def _advice(example: Example, template: Any, messages: list[Message]) -> str:
    """What else can be done, as the end of a sentence; nothing where nothing can."""
    names = _to_ignore(example, template, messages)
    for name in names:
        if like_a_flag(name):  # the reply that it masks would be trained
            return f". Where {name!r} says whether a reply is trained, rename it to 'weight', with 0 or 1"
    if not names:
        return ""
    said = f", or set ignore: [{', '.join(names)}] on the source (under data.sources)"
    there = [name for name in names if any(name in turn for turn in messages)]
    if flags := [name for name in there if all(turn.get(name, 0) in (0, 1) for turn in messages)]:
        which = " or ".join(map(repr, flags))
        said += f"; but where {which} says whether a reply is trained, rename it to 'weight'"
    if others := [OTHER_NAMES[name] for name in names if name in OTHER_NAMES]:
        said += f"; what the file names otherwise ({', '.join(others)}) is ignored by its name there"
    if "thinking" in names:
        said += "; where a thought is a part of type 'thinking', remove the part instead"
    return said


def _to_ignore(example: Example, template: Any, messages: list[Message]) -> list[str]:
    """All that a source has to ignore, so that the template renders the row; nothing where that would drop
    it: a reply that only calls would say nothing, a tool would answer no call, and a prompt that opens a
    thought would get a reply without one."""
    names: list[str] = []
    given = messages
    try:
        while left_out := template.unrendered(example, messages):
            k, key = left_out
            if k is not None:
                messages = [{name: each for name, each in turn.items() if name != key} for turn in messages]
            elif key == "tools" and example.tools:
                example = replace(example, tools=[])
            else:
                key, example = "chat_template_kwargs", replace(example, template_options={})
            names.append(key)
        refuse_left_out(messages, template.render(messages, False, example.tools, example.template_options))
        for k, (turn, before) in enumerate(zip(messages, given, strict=True)):
            if reasoning(before) and not reasoning(turn) and not THOUGHT.search(turn["content"]):
                asked = template.render(messages[:k], True, example.tools, example.template_options)
                if turn.get("trained", True) and asked.rstrip().endswith(OPEN):
                    return []
    except RowError:
        return []
    for turn, before in zip(messages, given, strict=True):
        silent = turn["role"] == "assistant" and turn.get("trained", True) and says_nothing(turn)
        # a call in place of a text may be the content of a message, which cannot be ignored
        uncalled = "tool_calls" in before and "tool_calls" not in turn and not turn["content"].strip()
        if silent or uncalled or (turn["role"] == "tool" and "tool_calls" in names):
            return []
    return names


def says_all(messages: list[Message], text: str) -> bool:
    """Whether each of `messages`, which have nothing but a text, has a place of its own in `text`, in their
    order: then neither `refuse_lost` nor `refuse_left_out` finds anything, which render once more. False does
    not say that one is missing."""
    at = 0
    for turn in messages:
        said = turn["content"].strip()
        if len(turn) > 2 or len(said) < TELLING or (at := text.find(said, at)) < 0:
            return False
        at += len(said)
    return True


def refuse_left_out(messages: list[Message], text: str) -> None:
    """Raises `RowError` (template_error) where `text` lacks what a message says, be it trained or not."""
    squeezed, at = "", 0
    for k, turn in enumerate(messages):
        said = turn["role"] == "assistant"
        content = _behind_thought(turn["content"]) if said else turn["content"].strip()
        found = text.find(content, at)  # behind the turn before, so that a long text is not searched for each
        if found >= 0 or content in text:
            at = max(at, found)
            continue
        if turn["role"] in ("system", "developer"):
            content = SWITCH.sub("", content)
        squeezed = squeezed or _squeezed(text)
        # a reply is trained as it is; what is asked or returned may be written as JSON
        spellings = [content] if said else _spellings(content)[:JSON_ONCE]
        if not any(_squeezed(each) in squeezed for each in spellings):
            raise RowError("template_error", f"the template leaves out message {k} ({turn['role']})")


def refuse_lost(render: Render, messages: list[Message], asks: bool = False) -> None:
    """Raises `RowError` (template_error) where not every call of a turn, trained or not, or not the text
    beside its calls is rendered, with `asks` in a prompt for a reply, or a turn is lost whose words stand
    elsewhere."""
    _refuse_hidden(render, messages, asks)
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


def _refuse_hidden(render: Render, messages: list[Message], asks: bool) -> None:
    """Raises `RowError` where the template drops a turn, also one whose text stands elsewhere: the answer `4`
    of a tool is found in the reply `It is 4.` even if the tool's own turn is gone."""
    unsure = dict(_unsure(messages))
    if not unsure:
        return
    try:
        shown = render([unsure.get(k, turn) for k, turn in enumerate(messages)], asks)
    except RowError:  # the template reads the text
        shown = ""
    for k, other in unsure.items():
        if _mark(k, "text") not in shown and _same_without(render, messages, k, other, asks):
            raise RowError("template_error", f"the template leaves out message {k} ({messages[k]['role']})")


def _unsure(messages: list[Message]) -> Iterator[tuple[int, Message]]:
    """The turns, by number, that might not be missed in a text, with a mark in place of what they say. A last
    reply that is trained is proved by `refuse_changed`, the text beside calls by `refuse_lost`."""
    for k, turn in enumerate(messages):
        content, reply = turn["content"].strip(), turn["role"] == "assistant"
        if reply:
            content = _behind_thought(content)
            if turn.get("tool_calls") or (k + 1 == len(messages) and turn.get("trained", True)):
                continue
        if content:
            yield k, turn | {"content": _with_mark(k, turn["content"]) if reply else _mark(k, "text")}


def _same_without(render: Render, messages: list[Message], k: int, other: Message, asks: bool) -> bool:
    """Whether the text is the same with another message `k`, also where the template writes it in its own
    way (in capitals, cut, as a number)."""
    changed = [*messages[:k], other, *messages[k + 1 :]]
    try:
        return render(changed, asks) == render(messages, asks)
    except RowError:  # the template reads the text
        return False


def _marked(k: int, turn: Message) -> Message:
    """A turn with a mark in place of the arguments of each call, and of the text beside them."""
    if not turn.get("tool_calls"):
        return turn
    calls = [
        call | {"function": call["function"] | {"arguments": {"x": _mark(k, i)}}}
        for i, call in enumerate(turn["tool_calls"])
    ]
    return turn | {"content": _with_mark(k, turn["content"]), "tool_calls": calls}


def _mark(k: int, what: int | str) -> str:
    return f"{PROBE}n{k}n{what}n"


def _with_mark(k: int, content: str) -> str:
    """The content of a reply with a mark in place of what it says behind a thought, if it says anything."""
    said = _behind_thought(content)
    return content[: content.rindex(said)] + _mark(k, "text") if said else content


def _behind_thought(content: str) -> str:
    return THOUGHT.split(content)[-1].strip()


def refuse_changed(turn: Message, said: str, k: int) -> None:
    """Raises `RowError` where the text of a turn lacks what its message says; white space may differ."""
    if len(turn) == 2 and turn["content"].strip() in said:  # as most do
        return
    squeezed = ""
    wanted: list[list[str]] = [[each] for each in (*THOUGHT.split(turn["content"]), reasoning(turn))]
    for call in turn.get("tool_calls", ()):
        inner = call["function"]
        wanted += [[inner["name"]], *map(_spellings, _leaves(inner["arguments"]))]
    for spellings in wanted:
        if spellings[0].strip() in said:
            continue
        squeezed = squeezed or _squeezed(said)
        if not any(_squeezed(each) in squeezed for each in spellings):
            raise RowError("template_error", f"the template changes the text of message {k}")


def refuse_twice(prompt: str, said: str, k: int) -> None:
    """Raises `RowError` where the turn opens a thought that `prompt` opens, or has closed, before it."""
    if OPEN not in said:
        return
    if prompt.rstrip().endswith(CLOSE):
        raise RowError(
            "template_error",
            f"the prompt has closed the thought of message {k}, which opens one behind it; leave out the "
            "thought, or the option that turns thinking off",
        )
    if prompt.rstrip().endswith(OPEN):
        raise RowError(
            "template_error",
            f"the template opens the thought of message {k} twice; write it under 'reasoning_content', "
            f"without {OPEN}",
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
