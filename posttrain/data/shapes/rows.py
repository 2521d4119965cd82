"""The shape `rows`: a row is one example, a prompt with its completion, a conversation or a text.

A row is a dict of columns as the source has it; an `Example` is what its columns mean. A row that lacks a
value is dropped and counted (`RowError`); a data set whose columns do not fit is a `RequestError`. Left out:
which column means what (columns.py), how messages and tools are spelt (messages.py, tools.py), several
reference completions.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

from posttrain.data.cells import Cell, refuse_garbled, with_messages
from posttrain.data.json_rows import type_name
from posttrain.data.shapes.columns import (
    MAY_MEAN,
    PARTS,
    SAID,
    column,
    find_columns,
    form_of,
    refuse_shared,
    usual_names,
    without_ignored,
)
from posttrain.data.shapes.hints import not_found, refuse_misspelt
from posttrain.data.shapes.messages import (
    TRANSCRIPT,
    listed,
    message,
    read_messages,
    read_prompt,
    says_nothing,
    speaker,
)
from posttrain.data.shapes.names import checked_text, filled, like_a_flag, says
from posttrain.data.shapes.reply import Said, completed, read_reply, refuse_untrained, said_columns
from posttrain.data.shapes.tools import Tool, read_calls, read_tools
from posttrain.data.shapes.turn_order import BETWEEN, OPENING, ordered, refuse_listed
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe import schema
from posttrain.types import Example, Message

BESIDE = ("tools", "template_options")
"""What a row says to the template beside its messages."""
OTHER_PARTS = {kind: {*chain(*PARTS.values())} - {*PARTS[kind]} for kind in PARTS}
"""Form of a row -> what rows of other forms consist of, which it does not use."""
CALCULATOR = re.compile(r"<<[^>\n]*>>")
"""GSM8K's calculator marks, `<<48/2=24>>`."""


def to_example(row: dict[str, Any], source: schema.Source, where: str, trained: bool = True) -> Example:
    """The example that `row` means.

    A prompt and a completion that are texts become `prompt` and `completion`; with a system message or tools
    beside them, as messages and as conversations they become `messages`; plain text becomes a `completion`
    with an empty prompt. An `answer` is kept as text. `trained`: the row is an example of its own, so columns
    may say something of its reply (reply.py).

    Raises:
        RequestError: a named column or a role does not exist, a value is not text, `p` is outside [0, 1], a
            column is named almost like one that is read, or is read twice, and those of `read_reply` and its
            neighbours.
        RowError: no_prompt, no_completion, no_messages, no_assistant_turn, empty, no_p, and those of
            `read_messages`, `read_tools` and `ordered`.
    """
    row, left_out = without_ignored(row, source)
    found = find_columns(row, source, where)
    kind = form_of(found, source) or "text"
    said = SAID if trained and kind == "prompt_completion" else ()
    refuse_misspelt(row, found, (*MAY_MEAN[kind], *said), source, where)
    system = _system(row, found, source, where)
    for what in PARTS[kind]:
        if what not in found:
            raise RequestError(not_found(with_messages(row, row), what, found, source, where))
    if kind != "text":
        for part in PARTS[kind]:
            refuse_garbled(row[found[part]], where, found[part])
        row = with_messages(row, [found[part] for part in PARTS[kind]])
    names = {what: found.get(what) for what in (*PARTS[kind], "system", "tools")}
    refuse_shared(names | {"reasoning": source.columns.reasoning if trained else None}, source, where)
    flags = refuse_untrained(row, source, where) if trained else {}
    given = said_columns(row, kind, source, where) if trained else {}
    example = Example(where=where, answer=_answer(row, found, where), p=probability(row, found, where))
    if "tools" in found:
        example.tools = tools_of(row, source, where)
    if "template_options" in found:
        example.template_options = options_of(row, source, where)
    if kind == "text" and (system or example.tools):
        what = "a system message" if system else "tools"
        raise RequestError(f"{where}: plain text cannot have {what}")
    messages = _messages_of(kind, row, found, read_reply(given, source, where), source, where)
    values = [row[found[part]] for part in PARTS[kind]] if kind != "text" else []
    ignored = {key for key in source.ignore if any(_in_messages(value, key) for value in values)}
    if source.options.get("strip_calculator"):
        for turn in messages:
            if turn["role"] == "assistant":
                turn["content"] = CALCULATOR.sub("", turn["content"])
    texts = kind == "text" or (kind == "prompt_completion" and _are_texts(values, messages))
    if not texts or system or example.tools:
        if not any(turn["role"] == "assistant" for turn in messages):
            raise RowError("no_assistant_turn", "the conversation has no assistant message")
        if system and messages[0]["role"] not in OPENING:
            messages.insert(0, message("system", system))
        if example.tools:
            refuse_listed(messages, example.tools, found["tools"], source, where)
        example.messages = ordered(messages, source.roles, bool(example.tools))
    else:
        example.prompt = messages[0]["content"] if kind == "prompt_completion" else ""
        example.completion = messages[-1]["content"]
    example.ignored = tuple(sorted(ignored | {*left_out}))
    used = {name for what, name in found.items() if what not in OTHER_PARTS[kind]} | {*flags, *given}
    if kind == "prompt_completion" and _is_alpaca(found, source):
        used.add("input")
    example.unused = tuple(key for key, value in row.items() if key not in used and says(value))
    return example


def tools_of(row: dict[str, Any], source: schema.Source, where: str) -> list[Tool]:
    """The tools that `row` declares. Raises RequestError, RowError (bad_tools)."""
    name = find_columns(row, source, where, ["tools"]).get("tools")
    return [] if name is None else read_tools(row[name], f"{where}: column {name!r}", source.ignore)


def options_of(row: dict[str, Any], source: schema.Source, where: str) -> dict[str, Any]:
    """What `row` hands to the template besides messages and tools. Raises RequestError."""
    name = column(row, source, "template_options")
    value = None if name is None else row[name]
    if not filled(value):
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"{where}: column {name!r} must be an object, not {type_name(value)}")
    return {key: each for key, each in value.items() if each is not None}  # parquet fills up what is missing


def is_conversation(row: dict[str, Any]) -> bool:
    """Whether a row has messages, or what was meant so, tools or options of the template, rated replies, or
    columns that say something of its reply, or may do so: what is read by rules that have changed."""
    beside = usual_names(*BESIDE, *SAID, "trained", "replies")
    for name, value in row.items():
        turns = listed(value)
        first = turns[0] if isinstance(turns, list) and turns else None
        spoken = isinstance(first, dict) if turns is value else speaker(first) is not None
        told = isinstance(value, Cell) or (isinstance(value, str) and TRANSCRIPT.match(value))
        told = told or name in beside or (name == "answer" and not says(value))
        if spoken or told or like_a_flag(str(name)):
            return True
    return False


def _messages_of(
    kind: str, row: dict[str, Any], found: dict[str, str], added: Said, source: schema.Source, where: str
) -> list[Message]:
    """The messages of a row of the form `kind`. `added`: what other columns say of the reply."""
    if kind == "text":
        return [message("assistant", _filled(row, found["text"], where, "empty"))]
    if kind == "prompt_completion":
        return _turns(row, found, added, source, where)
    value = row[found["messages"]]
    if value != [] and not says(value):  # a list of none has no reply
        raise RowError("no_messages", f"column {found['messages']!r} is empty")
    turns = read_messages(value, f"{where}: column {found['messages']!r}", set(source.ignore))
    return completed(turns, added, source, where)


def _turns(
    row: dict[str, Any], found: dict[str, str], added: Said, source: schema.Source, where: str
) -> list[Message]:
    """The turns of a prompt/completion row; either may be a list of messages, as TRL has them."""
    values = row[found["prompt"]], row[found["completion"]]
    prompt, completion = (listed(value) if isinstance(value, dict) else value for value in values)
    ignore = set(source.ignore)
    if isinstance(prompt, list):
        asked = read_messages(prompt, f"{where}: prompt", ignore)
    else:
        text = _filled(row, found["prompt"], where, "no_prompt")
        asked = read_prompt(text, f"{where}: prompt") or [message("user", text)]
    if _is_alpaca(found, source) and filled(row.get("input")):
        asked = _with_input(asked, checked_text(row["input"], where, "input"), where)
    if found["completion"] == "answers" and not source.columns.completion:  # xLAM: the calls as JSON
        replies = [message("assistant", "") | {"tool_calls": read_calls(completion, where, ignore)}]
    elif added.get("tool_calls") and not filled(completion):
        replies = [message("assistant", "")]
    elif isinstance(completion, list):
        replies = read_messages(completion, f"{where}: completion", ignore)
    else:
        text = _filled(row, found["completion"], where, "no_completion")
        whole = isinstance(prompt, str) and TRANSCRIPT.match(prompt)  # which is stripped, turn by turn
        replies = [message("assistant", text.strip() if whole else text)]
    return asked + completed(replies, added, source, where)


def _with_input(asked: list[Message], text: str, where: str) -> list[Message]:
    """`asked` with Alpaca's `input` behind what the user says last. Raises RequestError where that is not the
    end."""
    if not asked or asked[-1]["role"] != "user":
        raise RequestError(
            f"{where}: column 'input' stands beside an 'instruction' that does not end with a user's "
            "message; write it into the message that it belongs to, or set ignore: [input] on the source "
            "(under data.sources)"
        )
    return [*asked[:-1], asked[-1] | {"content": f"{asked[-1]['content']}{BETWEEN}{text}"}]


def _are_texts(values: list[Any], messages: list[Message]) -> bool:
    """Whether a row of a prompt and a completion, whose `values` became `messages`, is one question and its
    reply, both texts with content: of these there is no order of turns to check."""
    return (
        all(isinstance(value, str) for value in values)
        and [turn["role"] for turn in messages] == ["user", "assistant"]
        and messages[1].keys() == {"role", "content"}
        and not says_nothing(messages[1])
    )


def _is_alpaca(found: dict[str, str], source: schema.Source) -> bool:
    """Whether `input` is a part of the prompt: beside an `instruction` that is found by its usual name."""
    return found["prompt"] == "instruction" and not source.columns.prompt


def _filled(row: dict[str, Any], column: str, where: str, reason: str) -> str:
    """The text of a column; one that is blank, null or NaN drops the row."""
    value = row[column]
    if not says(value):
        raise RowError(reason, f"column {column!r} is empty")
    return checked_text(value, where, column)


def _system(row: dict[str, Any], found: dict[str, str], source: schema.Source, where: str) -> str | None:
    """The system message of the row, otherwise that of the source."""
    value = row[found["system"]] if "system" in found else None
    return checked_text(value, where, found["system"]) if filled(value) else source.system


def _in_messages(value: Any, key: str) -> bool:
    turns = listed(value)
    turns = turns if isinstance(turns, list) else ()
    return any(isinstance(turn, dict) and filled(turn.get(key)) for turn in turns)


def _answer(row: dict[str, Any], found: dict[str, str], where: str) -> str | None:
    value = row[found["answer"]] if "answer" in found else None
    if value is None or isinstance(value, str):
        return value
    return str(value)


def probability(row: dict[str, Any], found: dict[str, str], where: str) -> float | None:
    """The value of the column `found["p"]`, if there is one. Raises RequestError, RowError (no_p)."""
    if "p" not in found:
        return None
    value = row[found["p"]]
    if value is None or value == "":
        raise RowError("no_p", f"column {found['p']!r} is empty")
    try:
        p = float(value)
    except (TypeError, ValueError, OverflowError):
        p = -1.0
    if isinstance(value, bool) or not 0.0 <= p <= 1.0:  # NaN fails the comparison as well
        raise RequestError(
            f"{where}: column {found['p']!r} must be a probability in [0, 1], not {repr(value)[:60]}"
        )
    return p
