"""When replies and prompts say the same, however they are spelt: of a pair, and of rated replies.

Messages are compared as they are read. A thought is the same in the text and under a key, and a call and its
answer belong together by an id, by the id of a message, or by their order. Left out: reading them
(messages.py), what is done with replies that are the same (pairs.py, rated.py).
"""

from __future__ import annotations

from typing import Any

from posttrain.data.shapes.messages import reasoning, says_nothing
from posttrain.data.shapes.names import REASONING
from posttrain.data.shapes.thoughts import split_thought
from posttrain.data.shapes.tools import as_json
from posttrain.types import Message

TIES = ("tool_call_id", "id")
"""Keys of a tool's message that name the call which it answers."""


def meaning(turns: list[Message]) -> str:
    """What each of `turns` says, wherever it says it: role, thought, text, calls, other keys. Two lists of
    messages that mean the same have the same text here.

    An answer has the number of its call in place of an id; a name that its call has says nothing new.
    """
    made = 0
    waiting: list[tuple[int, dict[str, Any]]] = []
    found = []
    for turn in turns:
        others = {k: v for k, v in turn.items() if k not in ("role", "content", "tool_calls", *REASONING)}
        calls = turn.get("tool_calls", ())
        if turn["role"] == "tool":
            others = _tied(others, waiting)
        else:
            waiting = [*enumerate(calls, made)]
            made += len(calls)
        found.append([turn["role"], *_parts(turn), [call["function"] for call in calls], others])
    return as_json(found)


def is_silent(turn: Message) -> bool:
    """Whether a reply says nothing, or nothing behind its thought."""
    bare = {key: value for key, value in turn.items() if key not in REASONING}
    return says_nothing(bare | {"content": split_thought(turn["content"])[1]})


def _parts(turn: Message) -> tuple[str, str]:
    """(what a turn thinks, what it says)."""
    thought, said = reasoning(turn).strip(), turn["content"].strip()
    if thought or turn["role"] != "assistant":
        return thought, said
    return split_thought(said)


def _tied(others: dict[str, Any], waiting: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """The other keys of a tool's message with the number of the call that it answers, which waits no longer:
    the first of that id, or the first of all where one of them has no id. Ids may be used again."""
    named = next((others[key] for key in TIES if isinstance(others.get(key), str)), None)
    of_id = (k for k, (_, call) in enumerate(waiting) if named is None or call.get("id", named) == named)
    place = next(of_id, None)
    if place is None:
        return others
    number, call = waiting.pop(place)
    kept = {key: value for key, value in others.items() if key not in TIES or value != named}
    if kept.get("name") == call["function"].get("name"):
        kept.pop("name", None)
    return kept | {"answers": number}
