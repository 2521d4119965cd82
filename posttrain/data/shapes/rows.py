"""The shape `rows`: a row is one example. Finds which column is the prompt, the completion, the conversation.

A row is a dict of columns as the source has it; an `Example` is what its columns mean. Columns named in
`source.columns` come first; the others are found by their usual names below. A row that lacks a value is
dropped and counted (`RowError`); a data set whose columns do not fit is a `RequestError`. Left out: tool
calls, images, several reference completions.
"""

from __future__ import annotations

import re
from typing import Any

from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema
from posttrain.types import Example, Message

SPELLINGS = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "question", "problem", "query"),
    "completion": ("completion", "output", "response", "solution", "answer"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "answer": ("answer",),
    "p": ("p",),
}
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
"""HH-RLHF has a whole dialogue in one string."""
CALCULATOR = re.compile(r"<<[^>\n]*>>")
"""GSM8K's calculator marks, `<<48/2=24>>`."""


def to_example(row: dict[str, Any], source: schema.Source, where: str) -> Example:
    """The example that `row` means.

    Conversations, and prompts with a system message, become `messages`; other prompts become `prompt` and
    `completion`; plain text becomes a `completion` with an empty prompt. An `answer` is kept as text.

    Raises:
        RequestError: a named column or a role does not exist, a value is not text, `p` is outside [0, 1].
        RowError: no_prompt, no_completion, no_assistant_turn, empty, no_p, bad_text.
    """
    found = _columns(row, source, where)
    system = _system(row, found, source, where)
    kind = _kind(row, found, source, where)
    example = Example(where=where, answer=_answer(row, found, where), p=_p(row, found, where))
    if kind == "messages":
        messages = _messages(row[found["messages"]], f"{where}: column {found['messages']!r}")
    elif kind == "prompt_completion":
        messages = _turns(row, found, source, where)
    else:
        if system:
            raise RequestError(f"{where}: plain text cannot have a system message")
        messages = [_message("assistant", _filled(row, found["text"], where, "empty"))]
    if source.options.get("strip_calculator"):
        for message in messages:
            if message["role"] == "assistant":
                message["content"] = CALCULATOR.sub("", message["content"])
    lists = kind == "prompt_completion" and isinstance(row[found["prompt"]], list)
    if kind == "messages" or lists or system:
        if not any(message["role"] == "assistant" for message in messages):
            raise RowError("no_assistant_turn", "the conversation has no assistant message")
        if system and messages[0]["role"] != "system":
            messages.insert(0, _message("system", system))
        example.messages = messages
    else:
        example.prompt = messages[0]["content"] if kind == "prompt_completion" else ""
        example.completion = messages[-1]["content"]
    return example


def _columns(row: dict[str, Any], source: schema.Source, where: str) -> dict[str, str]:
    """The column for each key of `SPELLINGS` that the row has."""
    found = {}
    for what, spellings in SPELLINGS.items():
        named = getattr(source.columns, what)
        if named is not None and named not in row:
            raise RequestError(
                f"{where}: source {source.name!r} has no column {named!r} "
                f"(columns.{what}){did_you_mean(named, row)}"
            )
        column = named or next((spelling for spelling in spellings if spelling in row), None)
        if column is not None:
            found[what] = column
    return found


def _kind(row: dict[str, Any], found: dict[str, str], source: schema.Source, where: str) -> str:
    named = source.columns
    if source.format != "auto":
        kind = source.format
    elif named.messages:
        kind = "messages"
    elif named.prompt or named.completion:
        kind = "prompt_completion"
    elif named.text:
        kind = "text"
    elif "messages" in found:
        kind = "messages"
    elif "prompt" in found:
        kind = "prompt_completion"
    elif "text" in found or not {"prompt", "completion"} & set(found):
        kind = "text"
    else:
        kind = "prompt_completion"
    needs = {"messages": ["messages"], "prompt_completion": ["prompt", "completion"]}
    for what in needs.get(kind, ["text"]):
        if what not in found:
            has = ", ".join(map(str, row)) or "no column at all"
            raise RequestError(
                f"{where}: no column with the {what} was found; the row has {has}. "
                f"Name the column under columns.{what} of source {source.name!r}"
            )
    return kind


def _turns(row: dict[str, Any], found: dict[str, str], source: schema.Source, where: str) -> list[Message]:
    """The turns of a prompt/completion row; both may be lists of messages, as TRL has them."""
    prompt, completion = row[found["prompt"]], row[found["completion"]]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _messages(prompt, f"{where}: prompt") + _messages(completion, f"{where}: completion")
    text = _filled(row, found["prompt"], where, "no_prompt")
    alpaca = found["prompt"] == "instruction" and not source.columns.prompt
    if alpaca and row.get("input"):
        text = f"{text}\n\n{_text(row['input'], where, 'input')}"
    reply = _filled(row, found["completion"], where, "no_completion")
    return [_message("user", text), _message("assistant", reply)]


def _messages(value: Any, where: str) -> list[Message]:
    """OpenAI's role/content, ShareGPT's from/value, or an HH-RLHF transcript."""
    if isinstance(value, str) and TRANSCRIPT.match(value):
        parts = TRANSCRIPT.split(_text(value, where, "transcript"))[1:]
        roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
        return [_message(r, part.strip()) for r, part in zip(roles, parts[1::2], strict=True)]
    if not isinstance(value, list):
        raise RequestError(f"{where} is {type(value).__name__}, not a list of messages")
    return [_checked(turn, f"{where}, message {index}") for index, turn in enumerate(value)]


def _checked(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise RequestError(f"{where}: must be an object with role and content")
    names = ("from", "value") if "from" in turn else ("role", "content")
    for name in names:
        if name not in turn:
            raise RequestError(f"{where}: {name!r} is missing{did_you_mean(name, turn)}")
    role, content = turn[names[0]], turn[names[1]]
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}: unknown role {role!r}{did_you_mean(role, ROLES)}")
    return _message(ROLES[role], _text(content, where, names[1]))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(value: Any, where: str, column: str) -> str:
    if not isinstance(value, str):
        shown = repr(value)[:60]
        raise RequestError(f"{where}: {column!r} must be text, not {type(value).__name__} ({shown})")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("bad_text", f"{column!r} contains half a character (a lone surrogate)") from error
    return value


def _filled(row: dict[str, Any], column: str, where: str, reason: str) -> str:
    """The text of a column; a null or blank one drops the row."""
    value = row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(reason, f"column {column!r} is empty")
    return _text(value, where, column)


def _system(row: dict[str, Any], found: dict[str, str], source: schema.Source, where: str) -> str | None:
    """The system message of the row, otherwise that of the source."""
    value = row[found["system"]] if "system" in found else None
    return _text(value, where, found["system"]) if value else source.system


def _answer(row: dict[str, Any], found: dict[str, str], where: str) -> str | None:
    value = row[found["answer"]] if "answer" in found else None
    if value is None or isinstance(value, str):
        return value
    return str(value)


def _p(row: dict[str, Any], found: dict[str, str], where: str) -> float | None:
    if "p" not in found:
        return None
    value = row[found["p"]]
    if value is None or value == "":
        raise RowError("no_p", f"column {found['p']!r} is empty")
    try:
        p = float(value)
    except (TypeError, ValueError):
        p = -1.0
    if isinstance(value, bool) or not 0.0 <= p <= 1.0:  # NaN fails the comparison as well
        raise RequestError(f"{where}: column {found['p']!r} must be a probability in [0, 1], not {value!r}")
    return p
