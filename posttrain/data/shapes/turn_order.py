"""The order of the turns of a conversation: what `source.roles` allows, joins or drops.

`strict`: system messages first, then user and assistant in turn, tools after a call; any other row is dropped
under a reason. A call and its answers belong together by their ids, where both have them. `join`: neighbours
of one role become one message first. `loose`: any order that the template renders. Left out: what the
template itself refuses (template.py).
"""

from __future__ import annotations

from posttrain.data.shapes.messages import says_nothing
from posttrain.data.tokens import RowError
from posttrain.types import Message

OPENING = ("system", "developer")
BETWEEN = "\n\n"
"""Between the texts of two messages that are joined."""
IN_TEXT = ("<tool_call", "<function", "<|python_tag|>", "[TOOL_CALLS]")
"""What opens a call that is written into the text of a reply."""
UNANSWERED = "follows a call that no tool has answered"


def ordered(messages: list[Message], rule: str) -> list[Message]:
    """`messages` as `rule` has them.

    Raises:
        RowError: empty_reply; if `rule` is not loose also late_system, assistant_first, two_users,
            two_replies, tool_order.
    """
    turns = _joined(messages) if rule == "join" else messages
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant" and says_nothing(turn) and turn.get("trained", True):
            raise RowError("empty_reply", f"message {index} (assistant) says nothing")
    if rule == "loose":
        return turns
    last = "start"
    for index, turn in enumerate(turns):
        problem = _after(last, turn, turns[index - 1] if index else None)
        if problem:
            reason, detail = problem
            raise RowError(reason, f"message {index} ({turn['role']}) {detail}")
        last = "start" if turn["role"] in OPENING else turn["role"]
    _check_links(turns)
    return turns


def _check_links(turns: list[Message]) -> None:
    """Raises `RowError` where an answer names no call of the turn before, or the conversation goes on without
    one of the answers. Calls or answers without an id are not looked at: they are tied by their order."""
    made: set[str] = set()
    left: set[str] = set()
    for index, turn in enumerate(turns):
        answered = turn.get("tool_call_id")
        if turn["role"] != "tool":
            if left and turns[index - 1]["role"] == "tool":
                detail = f"follows call {min(left)!r}, which no tool has answered"
                raise RowError("tool_order", f"message {index} ({turn['role']}) {detail}")
            calls = turn.get("tool_calls") or []
            made = {call["id"] for call in calls if "id" in call}
            left = set(made) if len(made) == len(calls) else set()
        elif not isinstance(answered, str):
            left = set()
        elif made and answered not in made:
            raise RowError(
                "tool_order", f"message {index} (tool) answers call {answered!r}, which was not made"
            )
        else:
            left.discard(answered)


def _after(last: str, turn: Message, before: Message | None) -> tuple[str, str] | None:
    """What is wrong with `turn` behind the message `before`, whose role is `last` ("start": none has
    spoken)."""
    role = turn["role"]
    calls = before is not None and last == "assistant" and _calls(before)
    if role in OPENING:
        return None if last == "start" else ("late_system", "comes after the first turn")
    if role == "tool":
        return None if calls or last == "tool" else ("tool_order", "answers no call")
    if role == "user":
        if last == "user":
            return "two_users", "follows another user message"
        return ("tool_order", UNANSWERED) if calls else None
    if last == "start":
        return "assistant_first", "comes before any user message"
    if calls:
        return "tool_order", UNANSWERED
    return ("two_replies", "follows another assistant message") if last == "assistant" else None


def _calls(turn: Message) -> bool:
    """Whether a turn calls a tool, also in its text, as Hermes has it."""
    made = turn.get("tool_calls") or turn.get("function_calls")
    return bool(made) or any(mark in turn["content"] for mark in IN_TEXT)


def _joined(messages: list[Message]) -> list[Message]:
    """Neighbouring user messages, and replies that call no tool, as one."""
    found: list[Message] = []
    for turn in messages:
        last = found[-1] if found else None
        alike = last is not None and last["role"] == turn["role"] in ("user", "assistant", "system")
        plain = alike and not {*last, *turn} - {"role", "content"}
        if plain:
            found[-1] = {**last, "content": last["content"] + BETWEEN + turn["content"]}
        else:
            found.append(turn)
    return found
