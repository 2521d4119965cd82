"""What columns beside a prompt and its completion say of the reply: its reasoning, its calls, whether the row
is trained.

They mean what the same keys of an assistant's message mean. Their names are common words, and a data set may
have a rating, a loss or a setting (`on`, `high`) under them: a value that is no flag, thought or call is
refused by name. Beside a conversation a thought is that of its only reply. Left out: thoughts and calls
beside a pair, because it is not known which reply is meant.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from posttrain.data.shapes.columns import SAID, USUAL, find_columns
from posttrain.data.shapes.messages import read_message, reasoning
from posttrain.data.shapes.names import FLAGS, almost, as_flag, checked_text, like_a_flag, says
from posttrain.data.shapes.thoughts import OPEN, is_label, own_thought, read_thought
from posttrain.data.shapes.tools import as_json
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe import schema
from posttrain.types import Message


def may_be_calls(value: Any) -> bool:
    """Whether a value may be calls: JSON may, be it broken, and a word (`auto`) may not."""
    if isinstance(value, str):
        return value.strip()[:1] in ("[", "{") or value.strip() in ("", "null")
    return value is None or isinstance(value, list | dict)


KINDS = {
    "reasoning": (lambda value: isinstance(value, str), "text"),
    "calls": (may_be_calls, "calls of tools"),
}
"""Meaning of a column -> whether a value may be that, and what it has to be."""


class Said(dict[str, Any]):
    """Keys of a message that columns say, with their values; `columns`: key -> the column that says it."""

    columns: dict[str, str]


def given_columns(row: dict[str, Any], source: schema.Source, *meanings: str) -> dict[str, Any]:
    """The columns of `row` with content that have one of `meanings`. One that the source names for something
    else is that, and one that it ignores is none."""
    names = _there(tuple(row), meanings, source.columns.reasoning)
    if not names:  # as in most rows
        return {}
    others = _taken(source, meanings)
    return {name: row[name] for name in names if name not in others and says(row[name])}


def said_columns(row: dict[str, Any], form: str, source: schema.Source, where: str) -> dict[str, Any]:
    """The columns of `row`, which has that form, that say something of its reply, for `read_reply`. Beside a
    conversation it is a thought alone, and settings under the usual names are none.

    Raises RequestError where `columns.reasoning` is not in the row, or there is no reply.
    """
    own = source.columns.reasoning
    if own is not None:
        find_columns(row, source, where, ["reasoning"])
        if form == "text":
            raise RequestError(f"{where}: plain text cannot have reasoning (columns.reasoning: {own})")
    if form == "prompt_completion":
        return given_columns(row, source, *SAID)
    given = given_columns(row, source, "reasoning") if form == "messages" else {}
    return given if own is not None else {name: value for name, value in given.items() if _is_thought(value)}


def refuse_untrained(row: dict[str, Any], source: schema.Source, where: str) -> dict[str, Any]:
    """The flags of `row`, which say that it is trained.

    Raises:
        RequestError: a flag is neither 0 nor 1, two contradict each other, the name of one is misspelt, or
            another column may be a mask.
        RowError: empty, where they say that the row is not trained.
    """
    for name, near in _like_flags(tuple(row)):
        if not says(row[name]) or name in _taken(
            source, ()
        ):  # no value decides: one row may say 0.5, another 1
            continue
        remedy = f"or set ignore: [{name}] on the source (under data.sources)"
        if near is not None and as_flag(row[name]) in (0, 1):
            raise RequestError(
                f"{where}: column {name!r} of source {source.name!r} is not read; did you mean {near!r}? "
                "Rename it"
            )
        raise RequestError(
            f"{where}: column {name!r} of source {source.name!r} may say what is trained, and is not read; "
            f"write it as 'weight', 0 or 1, of the row or of its messages, {remedy}"
        )
    given = given_columns(row, source, "trained")
    if not given:
        return given
    said = {}
    for name, value in given.items():
        if as_flag(value) not in (0, 1):  # true and false are equal to them
            raise _not_meant(name, "0 or 1 (false or true)", value, source, where)
        said[name] = bool(as_flag(value))
    if len({*said.values()}) > 1:
        raise RequestError(
            f"{where}: columns {' and '.join(map(repr, said))} contradict each other; keep one, or set "
            f"ignore: [{[*said][-1]}] on source {source.name!r}"
        )
    if not all(said.values()):
        raise RowError("empty", f"column {[*said][0]!r} says that the row is not trained")
    return given


def read_reply(given: dict[str, Any], source: schema.Source, where: str) -> Said:
    """The reasoning and the calls in `given`, columns from `said_columns`, as keys of a message.

    Raises:
        RequestError: a column is neither text nor calls, its text is a setting and no thought, or two differ.
        RowError: bad_text, bad_call.
    """
    if not given:
        return Said()
    turn, columns = {"role": "assistant", "content": ""}, {}
    for what, (is_one, must) in KINDS.items():
        for name in _names(what, source):
            if name not in given:
                continue
            if not is_one(given[name]):
                raise _not_meant(name, must, given[name], source, where)
            value = given[name]
            if what == "reasoning":
                remedy = f"{_without(name, source)} on source {source.name!r}"
                text = checked_text(value, where, name)
                value = read_thought(text, f"{where}: column {name!r}", remedy)
            key = name if name in USUAL[what] else USUAL[what][0]
            turn[key], columns[key] = value, name
    thoughts = {key: turn[key].strip() for key in columns if key in USUAL["reasoning"] and turn[key].strip()}
    if len({*thoughts.values()}) > 1:
        first, *others = (columns[key] for key in thoughts)
        raise RequestError(
            f"{where}: columns {' and '.join(map(repr, (first, *others)))} have different reasoning; keep "
            f"one, or set ignore: [{', '.join(others)}] on source {source.name!r}"
        )
    found = read_message(turn, where, set())
    said = Said({key: value for key, value in found.items() if value and key not in ("role", "content")})
    calls = next((name for key, name in columns.items() if key in USUAL["calls"]), "")
    said.columns = {key: calls if key == "tool_calls" else columns[key] for key in said}
    return said


def completed(turns: list[Message], added: Said, source: schema.Source, where: str) -> list[Message]:
    """`turns` with what is `added`, from `read_reply`, to the reply in them that is trained. A reply whose
    text ends the same thought without the mark that opens it has the thought so, too.

    Raises RequestError where there are several such replies, or the reply says something else itself.
    """
    if not added:
        return turns
    turns = [_cut(turn, added) if _is_trained(turn) else turn for turn in turns]
    replies = [turn for turn in turns if _is_trained(turn)]
    if not replies or any(_differing(reply, added) == [] for reply in replies):
        return turns
    if len(replies) > 1:
        name = added.columns[[*added][0]]
        raise RequestError(
            f"{where}: column {name!r} stands beside {len(replies)} replies; write it into the message that "
            f"it belongs to, or {_without(name, source)}"
        )
    (reply,) = replies
    new = _differing(reply, added)
    for key in new:
        # an empty thought that opens the text is one, too: another would stand before it
        if _own(reply, key) or (key in USUAL["reasoning"] and own_thought(reply["content"], ()) is not None):
            name = added.columns[key]
            raise RequestError(
                f"{where}: column {name!r} and the reply itself differ; keep one, or {_without(name, source)}"
            )
    return [turn | {key: added[key] for key in new} if turn is reply else turn for turn in turns]


@lru_cache(maxsize=1024)
def _there(names: tuple[str, ...], meanings: tuple[str, ...], thought: str | None) -> list[str]:
    """Those of a row's `names` with one of `meanings`, in the order of `USUAL`; `thought`: the name of the
    column of reasoning, if the source says it."""
    known = (USUAL[what] if what != "reasoning" or thought is None else (thought,) for what in meanings)
    return [name for each in known for name in each if name in names]


def _names(what: str, source: schema.Source) -> tuple[str, ...]:
    """The names of columns that mean `what`: the one that the source names, or the usual ones."""
    own = getattr(source.columns, what, None)
    return USUAL[what] if own is None else (own,)


def _taken(source: schema.Source, meanings: tuple[str, ...]) -> set[str | None]:
    """The columns that the source ignores, or names for something else than `meanings`."""
    return {*source.ignore, *(name for what, name in vars(source.columns).items() if what not in meanings)}


@lru_cache(maxsize=1024)
def _like_flags(names: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """Each of `names` that may be a flag by another name, with the flag that it almost is."""
    return [(name, almost(name, FLAGS)) for name in names if like_a_flag(name)]


def _is_thought(value: Any) -> bool:
    return isinstance(value, str) and not is_label(value)


def _differing(reply: Message, added: Said) -> list[str]:
    """The keys of `added` that `reply` does not say itself, or says otherwise."""
    said = {key: value.strip() if isinstance(value, str) else value for key, value in added.items()}
    return [key for key, value in said.items() if as_json(value) != as_json(_own(reply, key))]


def _own(reply: Message, key: str) -> Any:
    """What `reply` has itself of what the column `key` says: calls, or a thought, which may open its text."""
    if key in USUAL["calls"]:
        return reply.get(key)
    return reasoning(reply).strip() or (own_thought(reply["content"], ()) or ("",))[0]


def _cut(turn: Message, added: Said) -> Message:
    """A reply with the thought that is `added` under its key, and the text behind it, where the text ends
    this thought and the prompt would open it; any other as it is."""
    key = next((key for key in added if key in USUAL["reasoning"]), None)
    text = turn["content"]
    if key is None or reasoning(turn) or text.lstrip().startswith(OPEN):
        return turn
    found = own_thought(text, {added[key].strip()})
    if found is None or found[0] != added[key].strip():
        return turn
    return turn | {key: added[key], "content": found[1]}


def _is_trained(turn: Message) -> bool:
    return turn["role"] == "assistant" and turn.get("trained", True)


def _not_meant(name: str, must: str, value: Any, source: schema.Source, where: str) -> RequestError:
    return RequestError(
        f"{where}: column {name!r} must be {must}, not {repr(value)[:60]}; {_without(name, source)} on "
        f"source {source.name!r} if it means something else"
    )


def _without(name: str, source: schema.Source) -> str:
    """What to do so that the column is not read."""
    return "leave out columns.reasoning" if name == source.columns.reasoning else f"set ignore: [{name}]"
