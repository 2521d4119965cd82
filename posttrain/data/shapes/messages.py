"""The messages of a conversation, whichever way a data set spells them: OpenAI, ShareGPT, Hermes, HH-RLHF.

A message of a data set becomes a `Message`: `role`, `content`, and where they have a value reasoning,
`tool_calls` and `trained`. Keys that mean nothing here are kept under their names for the template, which
must render them (rendering.py); one that is almost a key of these is refused. Left out: the order of turns
(turn_order.py), columns (rows.py), images and audio.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from posttrain.data.json_rows import type_name
from posttrain.data.shapes.names import CALLS, FLAGS, LINKS, REASONING, almost, checked_text, filled, unzipped
from posttrain.data.shapes.thoughts import one_thought, unmarked
from posttrain.data.shapes.tools import as_json, from_json, parsed, refuse_unread, same_calls
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean
from posttrain.types import Message

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "environment": "tool",  # OLMo 3
}
"""Usual spellings of a role."""
SPELLINGS = (("role", "content"), ("from", "value"))
"""Keys of who speaks and what, of OpenAI and of ShareGPT."""
CALLING = ("function_call", "tool_call")
"""Roles whose content is a call, or a list of calls, as JSON text."""
RENDERED = ("function_calls", "functions")
"""Calls and tools as the text that templates of OLMo 3 render."""
SIGNED = ("signature", "closed")
"""Keys of a thinking part that say nothing which could be trained."""
KNOWN = (*SPELLINGS[0], *SPELLINGS[1], *REASONING, *FLAGS, *CALLS, *LINKS, *RENDERED)
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
"""HH-RLHF has a whole dialogue in one string."""


def read_prompt(text: str, where: str) -> list[Message] | None:
    """The messages of a prompt that is an HH-RLHF transcript, without the bare `Assistant:` that it may end
    in; None for other texts. Raises as `read_messages`, and RowError (no_prompt) where nobody says anything.
    """
    if not TRANSCRIPT.match(text):
        return None
    turns = read_messages(text, where)
    if not any(turn["content"] for turn in turns):
        raise RowError("no_prompt", "the transcript has no text")
    return turns[:-1] if turns[-1] == message("assistant", "") else turns


def read_messages(value: Any, where: str, ignore: set[str] | None = None) -> list[Message]:
    """The messages in `value`: a list of objects with role/content or from/value, the forms that `listed`
    knows, or an HH-RLHF transcript.

    Keys in `ignore` are left out. Calls that follow each other as messages of their own are one turn.

    Raises:
        RequestError: it is neither, or a message has an unknown role, something other than text, or a key
            that is not read.
        RowError: bad_text, null_message, bad_call.
    """
    if isinstance(value, str) and TRANSCRIPT.match(value):
        parts = TRANSCRIPT.split(checked_text(value, where, "transcript"))[1:]
        roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
        return [message(role, part.strip()) for role, part in zip(roles, parts[1::2], strict=True)]
    turns = listed(value)
    if not isinstance(turns, list):
        raise RequestError(f"{where} is {type_name(turns)}, not a list of messages{_why_not(turns)}")
    kept = ignore or set()
    found: list[Message] = []
    calling = False
    for index, turn in enumerate(turns):
        made = read_message(turn, f"{where}, message {index}", kept)
        called, calling = calling, "tool_calls" in made and speaker(turn) in CALLING
        if called and calling and _one_turn(found[-1], made):
            found[-1]["tool_calls"] += made["tool_calls"]
        else:
            found.append(made)
    return found


def listed(value: Any) -> Any:
    """A conversation as a list of messages, where it is JSON text, one message, or an object of lists of one
    length, as `datasets` reads a Sequence of objects; anything else as it is."""
    value = from_json(value)
    if not isinstance(value, dict) or not {"role", "from"} & value.keys():
        return value
    turns = [value] if is_message(value) else unzipped(value)
    return value if turns is None else turns


def is_message(turn: Any) -> bool:
    """Whether a value says who speaks, and what."""
    if speaker(turn) is None:
        return False
    return any(who in turn and what in turn for who, what in SPELLINGS) or any(key in turn for key in CALLS)


def _why_not(value: Any) -> str:
    """Why `listed` found no list in `value`, behind a sentence that says so."""
    if isinstance(value, dict):
        return "; an object needs lists of one length, role among them"
    try:
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            parsed(value, "as JSON")
    except RowError as error:
        return f"; {error.detail}"
    return ""


def speaker(turn: Any) -> str | None:
    """Who speaks in a message of a data set, as it spells it; None where it does not say."""
    if not isinstance(turn, dict):
        return None
    return next((turn[who] for who, _ in SPELLINGS if isinstance(turn.get(who), str)), None)


def _one_turn(first: Message, second: Message) -> bool:
    """Whether two calls that follow each other are of one turn: the second adds nothing but calls."""
    said = {key: value for key, value in second.items() if key not in ("content", "tool_calls", "trained")}
    alike = first.get("trained", True) == second.get("trained", True)
    return alike and as_json({key: first.get(key) for key in said}) == as_json(said)


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def says_nothing(turn: Message) -> bool:
    """Whether a turn has no text, no reasoning, no call, and no key that only the template may know."""
    if turn["content"].strip() or reasoning(turn):
        return False
    return not any(turn[key] for key in turn.keys() - {"role", "content", "trained", *LINKS, *REASONING})


def reasoning(turn: Message) -> str:
    """What an assistant thinks in `turn` before it answers; empty where no key says it."""
    return next((turn[key] for key in REASONING if key in turn), "")


def read_message(turn: Any, where: str, ignore: set[str]) -> Message:
    """One message, as of `read_messages`."""
    if turn is None:
        raise RowError("null_message", f"{where} is null")
    if not isinstance(turn, dict):
        raise RequestError(f"{where}: must be an object with role and content")
    role, said = turn.get("role"), turn.get("content")
    plain = len(turn) == 2 and role in ("user", "assistant") and isinstance(said, str)
    if plain and said.isascii() and ignore.isdisjoint(turn):  # most are: be quick
        return message(role, said)
    given = {key: value for key, value in turn.items() if key not in ignore}
    who, what = _one_spelling(given, where)
    role = _role(given, who, where)
    others = {key: value for key, value in given.items() if key not in (who, what) and filled(value)}
    called = {key: others.pop(key) for key in CALLS if key in others}
    if what not in given and not called:
        raise RequestError(f"{where}: {what!r} is missing{did_you_mean(what, given)}")
    for key in others:
        if near := _near(key):
            ignore = "" if near in FLAGS else f", or set ignore: [{key}]"  # which would train the reply
            raise RequestError(f"{where}: key {key!r} is not read; did you mean {near!r}? Rename it{ignore}")
    value = given.get(what)
    if given[who] in CALLING and filled(value):
        if called:
            raise RequestError(f"{where}: has calls under {what!r} and under another key; keep one")
        called, value = {what: value}, ""
    found = _content(value, role, where, what, ignore)
    if called:
        if role != "assistant":
            raise RequestError(f"{where}: a {role} message cannot call a tool")
        if calls := same_calls(called, where, ignore):  # templates may ask whether there is the key
            found["tool_calls"] = calls
    if value is None and role != "assistant":
        raise RowError("null_message", f"{where}: {what!r} is null")
    thoughts = {key: others.pop(key) for key in REASONING if key in others}
    replied = found["content"] if role == "assistant" else ""
    found |= one_thought(thoughts, found.pop("thinking", ""), where, what, replied)
    if not _trained(given, where):
        found["trained"] = False
    return found | {key: value for key, value in others.items() if key not in FLAGS}


def _one_spelling(given: dict[str, Any], where: str) -> tuple[str, str]:
    """The keys of `SPELLINGS` that a message has, and `given` without those of the other one.

    Raises RequestError where it has both with different values.
    """
    openai, sharegpt = SPELLINGS
    theirs = "from" in given and ("role" not in given or filled(given["from"]))
    names, others = (sharegpt, openai) if theirs else (openai, sharegpt)
    for name, other in zip(names, others, strict=True):
        second = given.pop(other, None)
        if not filled(second):
            continue
        if given.get(name) is None:
            given[name] = second
            continue
        both = [given[name], second]
        if name == names[0]:
            both = [ROLES.get(str(each), each) for each in both]
        if as_json(both[0]) != as_json(both[1]):
            raise RequestError(f"{where}: {name!r} and {other!r} differ; keep one, or set ignore: [{other}]")
    return names


@lru_cache(maxsize=256)
def _near(key: str) -> str | None:
    """The key of a message that `key` is almost, if it is none itself."""
    return None if key in KNOWN else almost(key, KNOWN)


def _role(turn: dict[str, Any], name: str, where: str) -> str:
    if name not in turn:
        raise RequestError(f"{where}: {name!r} is missing{did_you_mean(name, turn)}")
    role = turn[name]
    if not isinstance(role, str) or role not in ROLES:
        known = did_you_mean(role, ROLES) or did_you_mean("", set(ROLES.values()))
        raise RequestError(f"{where}: unknown role {role!r}{known}")
    return ROLES[role]


def _content(value: Any, role: str, where: str, name: str, ignore: Collection[str]) -> Message:
    """A message with the text of `value`: text, or a list of parts. What parts think is under `thinking`."""
    if value is None:
        return message(role, "")
    if role == "tool" and isinstance(value, dict | int | float):  # what a tool returned, as an object
        return message(role, json.dumps(value, ensure_ascii=False))
    if not isinstance(value, list):
        return message(role, checked_text(value, where, name))
    said, thought = [], []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else type_name(part)
        if isinstance(part, str):
            if role == "tool":
                raise RequestError(
                    f"{where}: {name!r} is a list of texts; write what the tool returned as one text"
                )
            said.append(checked_text(part, where, name))
        elif kind == "text":
            refuse_unread("part of type 'text'", part, ("text",), where, ignore)
            said.append(checked_text(part.get("text"), where, "text"))
        elif kind == "thinking":
            refuse_unread("part of type 'thinking'", part, ("thinking", *SIGNED), where, ignore)
            inner = part.get("thinking")
            nested = inner if isinstance(inner, list) else [{"type": "text", "text": inner}]
            thought.append(unmarked(_content(nested, role, where, "thinking", ignore)["content"]))
        else:
            kind = f"of type {kind!r}" if isinstance(part, dict) else f"that is {kind}"
            raise RequestError(f"{where}: has a part {kind}; only text can be trained")
    found = message(role, "".join(said))
    return found | {"thinking": "".join(thought)} if thought else found


def _trained(turn: dict[str, Any], where: str) -> bool:
    """Whether the flags of a message let it be trained."""
    said = {key: turn[key] for key in FLAGS if filled(turn.get(key))}
    for key, value in said.items():
        if value not in (0, 1):  # true and false are equal to them
            raise RequestError(
                f"{where}: {key!r} must be 0 or 1 (false or true), not {value!r}: the loss knows no other "
                f"weight; set ignore: [{key}] if it means something else"
            )
    if len(set(map(bool, said.values()))) > 1:
        raise RequestError(f"{where}: {' and '.join(said)} contradict each other; keep one of them")
    return all(said.values())
