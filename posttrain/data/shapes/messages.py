"""The messages of a conversation, whichever way a data set spells them: OpenAI, ShareGPT, Hermes, HH-RLHF.

A message of a data set becomes a `Message`: `role`, `content`, and where they have a value reasoning,
`tool_calls` and `trained`. Keys that mean nothing here are kept under their names for the template, which
must render them (template.py). Left out: the order of turns (turn_order.py), columns (rows.py), images and
audio.
"""

from __future__ import annotations

import json
import re
from typing import Any

from posttrain.data.shapes.tools import read_calls
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
}
"""Usual spellings of a role."""
CALLING = ("function_call", "tool_call")
"""Roles whose content is a call, or a list of calls, as JSON text."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Usual keys of what an assistant thinks before it answers."""
FLAGS = ("weight", "train", "training", "loss")
"""Usual keys that say whether an assistant's turn is trained."""
CALLS = ("tool_calls", "function_call")
LINKS = ("tool_call_id", "name", "id")
"""Keys that tie a tool's answer to its call. Many templates say it by the order alone, so that none has to be
rendered."""
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
"""HH-RLHF has a whole dialogue in one string."""


def read_prompt(text: str, where: str) -> list[Message] | None:
    """The messages of a prompt that is an HH-RLHF transcript, without the bare `Assistant:` that it may end
    in; None for other texts."""
    if not TRANSCRIPT.match(text):
        return None
    turns = read_messages(text, where)
    return turns[:-1] if turns[-1] == message("assistant", "") else turns


def read_messages(value: Any, where: str, ignore: set[str] | None = None) -> list[Message]:
    """The messages in `value`: a list of objects with role/content or from/value, or an HH-RLHF transcript.

    Keys in `ignore` are left out.

    Raises:
        RequestError: it is neither, or a message has an unknown role or something other than text.
        RowError: bad_text, null_message, bad_call.
    """
    if isinstance(value, str) and TRANSCRIPT.match(value):
        parts = TRANSCRIPT.split(checked_text(value, where, "transcript"))[1:]
        roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
        return [message(role, part.strip()) for role, part in zip(roles, parts[1::2], strict=True)]
    if not isinstance(value, list):
        raise RequestError(f"{where} is {type(value).__name__}, not a list of messages")
    kept = ignore or set()
    return [_message(turn, f"{where}, message {index}", kept) for index, turn in enumerate(value)]


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def checked_text(value: Any, where: str, column: str) -> str:
    """`value`, which is text that can be encoded.

    Raises:
        RequestError: it is not text.
        RowError: bad_text.
    """
    if not isinstance(value, str):
        shown = repr(value)[:60]
        raise RequestError(f"{where}: {column!r} must be text, not {type(value).__name__} ({shown})")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("bad_text", f"{column!r} contains half a character (a lone surrogate)") from error
    return value


def says_nothing(turn: Message) -> bool:
    """Whether a turn has no text, no reasoning, no call, and no key that only the template may know."""
    others = turn.keys() - {"role", "content", "trained", *LINKS, *REASONING}
    return not (turn["content"].strip() or reasoning(turn) or any(turn[key] for key in others))


def reasoning(turn: Message) -> str:
    """What an assistant thinks in `turn` before it answers; empty where no key says it."""
    return next((turn[key] for key in REASONING if key in turn), "")


def _message(turn: Any, where: str, ignore: set[str]) -> Message:
    if turn is None:
        raise RowError("null_message", f"{where} is null")
    if not isinstance(turn, dict):
        raise RequestError(f"{where}: must be an object with role and content")
    names = ("from", "value") if "from" in turn else ("role", "content")
    given = {key: value for key, value in turn.items() if key not in ignore}
    role = _role(given, names[0], where)
    others = {
        key: value for key, value in given.items() if key not in names and value not in (None, "", [], {})
    }
    calls = next((others.pop(key) for key in CALLS if key in others), None)
    if names[1] not in given and calls is None:
        raise RequestError(f"{where}: {names[1]!r} is missing{did_you_mean(names[1], turn)}")
    value = given.get(names[1])
    if given[names[0]] in CALLING:
        calls, value = value, ""
    found = _content(value, role, where, names[1])
    if calls is not None:
        if role != "assistant":
            raise RequestError(f"{where}: a {role} message cannot call a tool")
        found["tool_calls"] = read_calls(calls, where)
    if value is None and role != "assistant":
        raise RowError("null_message", f"{where}: {names[1]!r} is null")
    thoughts = {key: others.pop(key) for key in REASONING if key in others}
    if len({str(each) for each in thoughts.values()}) > 1:
        raise RequestError(f"{where}: has different reasoning under {' and '.join(thoughts)}")
    for key, thought in list(thoughts.items())[:1]:
        found[key] = checked_text(thought, where, key)
    if not _trained(given, where):
        found["trained"] = False
    return found | {key: value for key, value in others.items() if key not in FLAGS}


def _role(turn: dict[str, Any], name: str, where: str) -> str:
    if name not in turn:
        raise RequestError(f"{where}: {name!r} is missing{did_you_mean(name, turn)}")
    role = turn[name]
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}: unknown role {role!r}{did_you_mean(role, ROLES)}")
    return ROLES[role]


def _content(value: Any, role: str, where: str, name: str) -> Message:
    """A message with the text of `value`: text, or a list of parts."""
    if value is None:
        return message(role, "")
    if role == "tool" and isinstance(value, dict | int | float):  # what a tool returned, as an object
        return message(role, json.dumps(value, ensure_ascii=False))
    if not isinstance(value, list):
        return message(role, checked_text(value, where, name))
    said, thought = [], []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "str":
            said.append(checked_text(part, where, name))
        elif kind == "text":
            said.append(checked_text(part.get("text"), where, "text"))
        elif kind == "thinking":
            inner = part.get("thinking")
            nested = inner if isinstance(inner, list) else [{"type": "text", "text": inner}]
            thought.append(_content(nested, role, where, "thinking")["content"])
        else:
            raise RequestError(f"{where}: has a part of type {kind!r}; only text can be trained")
    found = message(role, "".join(said))
    return found | {"thinking": "".join(thought)} if thought else found


def _trained(turn: dict[str, Any], where: str) -> bool:
    """Whether the flags of a message let it be trained."""
    said = {key: turn[key] for key in FLAGS if turn.get(key) is not None}
    for key, value in said.items():
        if value not in (0, 1):  # true and false are equal to them
            raise RequestError(
                f"{where}: {key!r} must be 0 or 1 (false or true), not {value!r}: "
                "the loss knows no other weight"
            )
    if len(set(map(bool, said.values()))) > 1:
        raise RequestError(f"{where}: {' and '.join(said)} contradict each other")
    return all(said.values())
