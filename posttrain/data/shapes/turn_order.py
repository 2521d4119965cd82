"""The order of the turns of a conversation: what `source.roles` allows, joins or drops.

`strict`: system messages first, then user and assistant in turn, tools after a call; any other row is dropped
under a reason. A call and its answers belong together by their ids, where both have them. `join`: neighbours
of one role become one message first. `loose`: any order that the template renders. Left out: what the
template itself refuses (template.py).
"""

from __future__ import annotations

import json
import re
from itertools import takewhile
from typing import Any

from posttrain.data.shapes.messages import message, reasoning, says_nothing
from posttrain.data.shapes.names import REASONING
from posttrain.data.shapes.thoughts import CLOSE
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.types import Example, Message

OPENING = ("system", "developer")
BETWEEN = "\n\n"
"""Between the texts of two messages that are joined."""
IN_TEXT = ("<tool_call", "<function", "<|python_tag|>", "[TOOL_CALLS]")
"""What may open a call that is written into the text of a reply: a tool can answer it."""
OBJECTS = re.compile(
    r"<tool_call>((?:(?!<tool_call>).)*?)</tool_call>|\[TOOL_CALLS\](.*)|^\s*<\|python_tag\|>(.*)", re.DOTALL
)
"""Calls in text as JSON, of Hermes, Mistral and Llama 3.1. No pattern looks past the next mark, so that many
marks without an end take no time."""
GRAMMARS = re.compile(
    r"<function=[\w.-]+>(?:(?!<function=).)*?</function>"  # Llama 3.1, Qwen 3 Coder
    r"|<function_calls>\s*\w[\w.]*\((?:(?!<function_calls>).)*?</function_calls>"  # OLMo 3
    r"|\[TOOL_CALLS\]\s*[\w.-]+\s*(?:\[ARGS\]\s*)?\{(?:(?!\[TOOL_CALLS\]).)*\}"  # Mistral, later ones
    r"|^\s*<\|python_tag\|>\s*[a-z_][\w.]*\.call\(.*\)",  # Llama 3.1, built-in tools
    re.DOTALL,
)
"""Calls in text that are not JSON objects with a name."""
WRAPPED = re.compile(r"<tool_response>((?:(?!</?tool_response>).)*)</tool_response>\s*", re.DOTALL)
"""What a tool returned, as Hermes writes it; templates write the marks themselves."""
BEHIND = "turns behind the last reply"
UNANSWERED = "follows a call that no tool has answered"


def ordered(messages: list[Message], rule: str, tools: bool = False) -> list[Message]:
    """`messages` as `rule` has them; `tools`: the row declares some.

    Raises:
        RowError: no_prompt, empty_reply; if `rule` is not loose also late_system, assistant_first, two_users,
            two_replies, tool_order.
    """
    messages = [part for turn in messages for part in _unwrapped(turn)]
    turns = _joined(messages) if rule == "join" else messages
    asked = [*takewhile(lambda turn: turn["role"] != "assistant", turns)]
    if asked and all(map(says_nothing, asked)):
        raise RowError("no_prompt", "no message before the first reply says anything")
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant" and says_nothing(turn) and turn.get("trained", True):
            raise RowError("empty_reply", f"message {index} (assistant) says nothing")
    if rule == "loose":
        return turns
    answered = any(turn["role"] == "tool" for turn in turns)
    listing = (turn["role"] in OPENING and listed_tools(turn["content"]) for turn in turns)
    tools = tools or answered or any(listing)
    last = "start"
    for index, turn in enumerate(turns):
        problem = _after(last, turn, turns[index - 1] if index else None, tools)
        if problem:
            reason, detail = problem
            raise RowError(reason, f"message {index} ({turn['role']}) {detail}")
        last = "start" if turn["role"] in OPENING else turn["role"]
    if answered:
        _check_links(turns)
    return turns


def end_in_reply(example: Example) -> None:
    """Cuts off what follows the last reply of `example`, which nothing that is trained sees; it is named in
    `ignored`."""
    turns = example.messages or []
    last = max((k for k, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is not None and last + 1 < len(turns):
        example.messages = turns[: last + 1]
        example.ignored = (*example.ignored, BEHIND)


def refuse_thoughts_alone(example: Example) -> None:
    """Raises `RowError` (empty_reply) where a reply of `example` thinks, under a key or in its text, and then
    says nothing: it would be trained to end there. A prefix of a reply may end in its thought."""
    turns = example.messages or []
    if example.prompt and example.completion:
        turns = [message("assistant", example.completion)]
    for index, turn in enumerate(turns):
        _, mark, behind = turn["content"].partition(CLOSE)
        thinks = mark or reasoning(turn)
        if turn["role"] != "assistant" or not thinks or not turn.get("trained", True):
            continue
        said = {key: each for key, each in turn.items() if key not in REASONING}
        cut = example.partial and index + 1 == len(turns)
        if not cut and says_nothing(said | {"content": behind} if mark else said):
            which = f"message {index} (assistant)" if example.messages else "the completion"
            raise RowError("empty_reply", f"{which} says nothing behind its thought")


def listed_tools(text: str) -> str:
    """What stands between `<tools>` and `</tools>` in a system message, as Hermes has its tools; empty where
    it has none."""
    return text.partition("<tools>")[2].rpartition("</tools>")[0].strip()


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


def _after(last: str, turn: Message, before: Message | None, tools: bool) -> tuple[str, str] | None:
    """What is wrong with `turn` behind the message `before`, whose role is `last` ("start": none has
    spoken); `tools`: the conversation has some."""
    role = turn["role"]
    replied = before if before is not None and last == "assistant" else None
    if role in OPENING:
        return None if last == "start" else ("late_system", "comes after the first turn")
    if role == "tool":
        may_call = replied and (_made(replied) or any(mark in replied["content"] for mark in IN_TEXT))
        return None if may_call or last == "tool" else ("tool_order", "answers no call")
    calls = replied and (_made(replied) or (tools and _calls(replied["content"])))
    if role == "user":
        if last == "user":
            return "two_users", "follows another user message"
        return ("tool_order", UNANSWERED) if calls else None
    if last == "start":
        return "assistant_first", "comes before any user message"
    if calls:
        return "tool_order", UNANSWERED
    return ("two_replies", "follows another assistant message") if last == "assistant" else None


def _made(turn: Message) -> Any:
    """The calls of a turn, also those that OLMo 3 has as text."""
    return turn.get("tool_calls") or turn.get("function_calls")


def _calls(text: str) -> bool:
    """Whether a reply is a call in one of the usual forms, and does not only speak of one."""
    if GRAMMARS.search(text):
        return True
    found = ("".join(filter(None, match.groups())) for match in OBJECTS.finditer(text))
    return any(map(_is_call, found))


def _is_call(text: str) -> bool:
    """Whether `text` is a JSON object with a name, or a list of them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    calls = value if isinstance(value, list) else [value]
    return bool(calls) and all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls)


def _unwrapped(turn: Message) -> list[Message]:
    """A tool's turn without the marks that the data set put around it, one turn for each answer in it; other
    turns, and those that say more than this, as they are."""
    if turn["role"] != "tool":
        return [turn]
    text = turn["content"].strip()
    if not text.startswith("<tool_response>") or WRAPPED.sub("", text):
        return [turn]
    found = WRAPPED.findall(text)
    if len(found) > 1 and turn.keys() - {"role", "content"}:
        return [turn]  # which of the answers its id belongs to is not known
    return [{**turn, "content": each.strip()} for each in found]


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


def refuse_listed(
    messages: list[Message], tools: list[dict[str, Any]], column: str, source, where: str
) -> None:
    """Raises `RequestError` where a system message lists the tools already, so that the template would write
    them once more: within `<tools>`, or as objects with name and description."""
    names = [re.escape(tool["function"]["name"]) for tool in tools]
    described = re.compile(rf"""["']name["']\s*:\s*["'](?:{"|".join(names)})["']\s*,\s*["']description["']""")
    within = re.compile(rf"\b(?:{'|'.join(names)})\b")
    for turn in messages:
        text = turn["content"]
        if turn["role"] in OPENING and (within.search(listed_tools(text)) or described.search(text)):
            raise RequestError(
                f"{where}: the system message lists the tools of column {column!r} already, and the template "
                f"would write them once more; set ignore: [{column}] on source {source.name!r}, or remove "
                "them from the system message"
            )
