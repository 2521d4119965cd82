"""What columns beside a prompt and its completion say of the reply: its reasoning, its calls, whether the row
is trained.

They mean what the same keys of an assistant's message mean. Their names are common words, and a data set may
have a rating or a loss under them: a value that is no flag, thought or call is refused by name. Left out:
columns beside a conversation or a pair but for the flags, because it is not known which reply is meant.
"""

from __future__ import annotations

from typing import Any

from posttrain.data.shapes.columns import USUAL, filled
from posttrain.data.shapes.messages import read_message, reasoning
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe import schema
from posttrain.types import Message

FLAGS = {"0": 0, "1": 1, "false": False, "true": True}
"""How texts spell a flag; CSV has nothing else."""
KINDS = {"reasoning": (str, "text"), "calls": ((str, list, dict), "calls of tools")}
"""Meaning of a column -> its types, and what it has to be."""


class Said(dict[str, Any]):
    """Keys of a message that columns say, with their values; `columns`: key -> the column that says it."""

    columns: dict[str, str]


def given_columns(row: dict[str, Any], source: schema.Source, *meanings: str) -> dict[str, Any]:
    """The columns of `row` with content that have one of `meanings`. One that the source names is what it is
    named, and one that it ignores is none."""
    others = {*vars(source.columns).values(), *source.ignore}
    names = [name for what in meanings for name in USUAL[what] if name in row and name not in others]
    return {name: row[name] for name in names if filled(row[name]) and str(row[name]).strip()}


def refuse_untrained(given: dict[str, Any], source: schema.Source, where: str) -> None:
    """Checks the flags in `given`, columns from `given_columns`.

    Raises:
        RequestError: a flag is neither 0 nor 1, or two contradict each other.
        RowError: empty, where they say that the row is not trained.
    """
    said = {}
    for name in USUAL["trained"]:
        if name not in given:
            continue
        value = given[name]
        value = FLAGS.get(value.strip().lower(), value) if isinstance(value, str) else value
        if value not in (0, 1):  # true and false are equal to them
            raise _not_meant(name, "0 or 1 (false or true)", value, source, where)
        said[name] = bool(value)
    if len({*said.values()}) > 1:
        raise RequestError(
            f"{where}: columns {' and '.join(map(repr, said))} contradict each other; keep one, or set "
            f"ignore: [{[*said][-1]}] on source {source.name!r}"
        )
    if not all(said.values()):
        raise RowError("empty", f"column {[*said][0]!r} says that the row is not trained")


def read_reply(given: dict[str, Any], source: schema.Source, where: str) -> Said:
    """The reasoning and the calls in `given`, columns from `given_columns`, as keys of a message.

    Raises:
        RequestError: a column is neither text nor calls, or two differ.
        RowError: bad_text, bad_call.
    """
    turn = {"role": "assistant", "content": ""}
    for what, (types, must) in KINDS.items():
        for name in USUAL[what]:
            if name in given and not isinstance(given[name], types):
                raise _not_meant(name, must, given[name], source, where)
            turn |= {name: given[name]} if name in given else {}
    found = read_message(turn, where, set())
    said = Said({key: value for key, value in found.items() if value and key not in ("role", "content")})
    calls = next((name for name in USUAL["calls"] if name in given), "")
    said.columns = {key: calls if key == "tool_calls" else key for key in said}
    return said


def completed(turns: list[Message], added: Said, where: str) -> list[Message]:
    """`turns`, the messages of a completion, with what is `added`, from `read_reply`, to the reply in them.

    Raises RequestError where there are several replies, or the reply says something else itself.
    """
    replies = [turn for turn in turns if turn["role"] == "assistant"]
    if len(replies) > 1 and added:
        name = added.columns[[*added][0]]
        raise RequestError(
            f"{where}: column {name!r} stands beside a completion of {len(replies)} replies; write it "
            f"into the message that it belongs to, or set ignore: [{name}]"
        )
    for reply in replies:
        own = {key: _own(reply, key) for key in added}
        for key, value in added.items():
            if own[key] and own[key] != (value.strip() if isinstance(value, str) else value):
                name = added.columns[key]
                raise RequestError(
                    f"{where}: column {name!r} and the reply itself differ; keep one, or set ignore: [{name}]"
                )
        new = {key: value for key, value in added.items() if not own[key]}
        turns = [turn | new if turn is reply else turn for turn in turns]
    return turns


def _own(reply: Message, key: str) -> Any:
    """What `reply` has itself of what the column `key` says: calls, or a thought, also one in its text."""
    if key in USUAL["calls"]:
        return reply.get(key)
    text, mark, _ = reply["content"].partition("</think>")
    return (reasoning(reply) or (text.replace("<think>", "") if mark else "")).strip()


def _not_meant(name: str, must: str, value: Any, source: schema.Source, where: str) -> RequestError:
    return RequestError(
        f"{where}: column {name!r} must be {must}, not {repr(value)[:60]}; set ignore: [{name}] on source "
        f"{source.name!r} if it means something else"
    )
