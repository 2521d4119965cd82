"""What a recipe should set where the columns of a row have no usual name, or almost one.

A guess by short names (`q`, `a`), by the words of a name, by likeness, or because there is no other column of
texts; and only of a column whose value can be what it is proposed for. It only words an error: a guess is
never read by itself. Left out: the usual names (columns.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from posttrain.data.shapes.columns import EXAMPLE, SAID, USUAL, column, usual_names
from posttrain.data.shapes.entries import as_list, key_of_rating
from posttrain.data.shapes.messages import ROLES, SPELLINGS, TRANSCRIPT, listed, speaker
from posttrain.data.shapes.names import CALLS, almost, filled
from posttrain.data.shapes.reply import may_be_calls
from posttrain.data.shapes.thoughts import is_label
from posttrain.data.shapes.turn_order import OPENING
from posttrain.errors import RequestError
from posttrain.recipe import schema

SHORT = {
    "prompt": ("q", "ques", "input", "source", "user", "human", "request", "ask"),
    "completion": ("a", "ans", "target", "assistant", "gpt", "reply", "reference", "gold", "content"),
}
"""Usual names that are too short or too common to be read without being asked."""
ALIKE = 0.75
"""Likeness of two names (difflib's ratio) from which one is proposed for the other."""
ABOUT = {
    *("id", "idx", "index", "uuid", "key", "hash", "name", "title", "url", "link", "repo", "path", "file"),
    *("date", "time", "timestamp", "language", "lang", "license", "model", "split", "type", "category"),
    *("topic", "metadata", "label", "rating", "score", "rank"),
}
"""Words of names of columns that are about a row, and are not trained."""


def refuse_misspelt(
    row: dict[str, Any], found: dict[str, str], meanings: Iterable[str], source: schema.Source, where: str
) -> None:
    """Raises `RequestError` where a column has almost the name of one that would be read as one of
    `meanings`; `found` has those that are."""
    meanings = (*meanings,)
    near = _misspelt(tuple(row), tuple(found.items()), meanings)
    if not near:  # as in most rows
        return
    own = vars(source.columns)
    never: tuple[str, ...] = ()
    if "text" in found and not found.keys() & {"messages", "prompt"}:
        never = ("system", "tools")  # plain text has none
    elif source.format == "prompt_completion":
        never = ("messages",)
    near = [
        (name, what, usual)
        for name, what, usual in near
        if what not in never
        if _can_be(what, row[name]) and name not in own.values() and own.get(what) is None
    ]
    if not near:
        return
    near.sort(key=lambda each: each[1] != "messages")  # beside which no other form is meant
    name, what, usual = near[0]
    named = {what: name for name, what, _ in reversed(near) if what in own}
    if "messages" in named:
        named = {key: each for key, each in named.items() if key not in ("prompt", "completion")}
    elif named.keys() & {"prompt", "completion"}:
        others = propose(row, found | named)
        if "messages" not in others:
            named = others | named
        if not {"prompt", "completion"} <= {*found, *named}:
            if "messages" in others:  # which `not_found` proposes
                return
            named = {}
    named = {what: named[what] for what in meanings if what in named}
    spare = _is_complete(row, found, what)
    if what not in own and what != "calls" and not spare:  # `not_found` says first what there has to be
        return
    remedy = f"Set {_written(named)} on the source (under data.sources)" if what in named else "Rename it"
    or_else = f", or {'' if what in named else 'set '}ignore: [{name}]" if spare else ""
    or_else += " on the source (under data.sources)" if spare and what not in named else ""
    raise RequestError(
        f"{where}: column {name!r} of source {source.name!r} is not read; did you mean {usual!r}? "
        f"{remedy}{or_else}"
    )


def _is_complete(row: dict[str, Any], found: dict[str, str], what: str) -> bool:
    """Whether the row is an example without a column that means `what`."""
    if what == "calls":
        return filled(row.get(found.get("completion")))
    if "messages" in found or {"prompt", "completion"} <= found.keys():
        return True
    return "text" in found and _can_be("text", row[found["text"]])


@lru_cache(maxsize=1024)
def _misspelt(
    names: tuple[str, ...], found: tuple[tuple[str, str], ...], meanings: tuple[str, ...]
) -> list[tuple[str, str, str]]:
    """Each of `names` that is almost one which would be read, with the meaning and the name of that one."""
    read = dict(found)
    missing: dict[str, str] = {}
    for what in meanings:
        for name in USUAL[what] if what not in read else ():
            missing.setdefault(name, what)
    known = {*usual_names(*EXAMPLE, *meanings), *read.values()}
    near = {name: almost(name, missing) for name in names if name not in known}
    return [(name, missing[usual], usual) for name, usual in near.items() if usual is not None]


def not_found(
    row: dict[str, Any],
    what: str,
    found: dict[str, str],
    source: schema.Source,
    where: str,
    trained: bool = True,
) -> str:
    """The sentence that the row of `source` has no column with the `what`; `found` as in `propose`.
    `trained`: the reply of the row would be trained."""
    has = ", ".join(map(str, row)) or "no column at all"
    if trained and (chosen := _of_pair(row, found, source)):
        return (
            f"{where}: source {source.name!r} has pairs, not single replies; the row has {has}. "
            f"Set stage: dpo, or {_written(chosen)} on the source to train the better reply alone"
        )
    if trained and (rated := next((n for n in USUAL["replies"] if _is_rated(row.get(n))), None)):
        return (
            f"{where}: source {source.name!r} has rated replies in column {rated!r}, not single ones; the "
            f"row has {has}. Set stage: dpo, which makes a pair of them"
        )
    if proposed := propose(row, found):
        return (
            f"{where}: it is not known which columns of source {source.name!r} are meant; it has {has}; did "
            f"you mean {_written(proposed)}?"
        )
    lists = [name for name in USUAL["replies"] if _is_list(row.get(name))]
    if trained and what == "completion" and lists:
        return (
            f"{where}: source {source.name!r} has lists of replies in column {lists[0]!r}, not single ones; "
            f"the row has {has}. Write the one to train as text into a column {USUAL[what][0]!r}"
        )
    if trained and what == "completion" and (calls := next((n for n in CALLS if filled(row.get(n))), None)):
        return (
            f"{where}: no column with the completion was found beside {calls!r}; the row has {has}. Where "
            f"the reply only calls, write a column {USUAL[what][0]!r} that is empty"
        )
    return (
        f"{where}: no column with the {what} was found; the row has {has}. "
        f"Name the column under columns.{what} of source {source.name!r}"
    )


def propose(row: dict[str, Any], found: dict[str, str]) -> dict[str, str]:
    """The columns to name, `{prompt: q, completion: a}`; empty where it is not known which.

    `found` has the columns of the keys that are known already.
    """
    read = usual_names(*EXAMPLE, *SAID, "trained", "label", "rating") | set(found.values())
    free = {str(name): value for name, value in row.items() if name not in read}
    talks = {name: talk for name, value in free.items() if (talk := _talk(value))}
    if whole := next((name for name, talk in talks.items() if _is_whole(talk)), None):
        return {"messages": whole}
    names = [name for name, value in free.items() if name not in talks and _is_text(value)]
    missing = [key for key in ("prompt", "completion") if key not in found]
    asked = [name for name in talks if _can_be("prompt", free[name])]
    proposed: dict[str, str] = {}
    if asked and "prompt" in missing:  # what is asked, as messages, whose reply is in a column of its own
        proposed["prompt"] = asked[0]
    elif len(missing) == 2 and len(names) == 1:
        return {"text": names[0]}
    for key in missing:
        left = [name for name in names if name not in proposed.values()]
        if key not in proposed and (name := _named_like(left, key)):
            proposed[key] = name
    rest = [name for name in names if name not in proposed.values() and not _words(name) & ABOUT]
    still = [key for key in missing if key not in proposed]
    if len(rest) == len(still):
        proposed |= dict(zip(still, rest, strict=True))
    return {key: proposed[key] for key in missing} if len(proposed) == len(missing) else {}


def _of_pair(row: dict[str, Any], found: dict[str, str], source: schema.Source) -> dict[str, str]:
    """The columns to name so that of a pair the chosen reply is trained; empty for other rows."""
    chosen, rejected = (column(row, source, side) for side in ("chosen", "rejected"))
    if chosen not in row or rejected not in row:
        return {}
    value = row[chosen]
    if (talk := _talk(value)) and not _replies(talk[0]):
        return {"messages": chosen} if _is_whole(talk) else {}
    if not _can_be("completion", value):
        return {}
    known = found | {"completion": chosen}
    asked = {} if "prompt" in found else propose(row, known | {"rejected": rejected})
    return asked | {"completion": chosen} if "prompt" in {*found, *asked} else {}


def _written(columns: dict[str, str]) -> str:
    return f"columns: {{{', '.join(f'{key}: {name}' for key, name in columns.items())}}}"


def _named_like(names: list[str], key: str) -> str | None:
    """The first of `names` that is a name of `key`, else the first with such a word, else the one like it."""
    wanted = {*SHORT[key], *USUAL[key]}
    free = [name for name in names if not _words(name) & ABOUT]
    exact = (name for name in names if name.lower() in wanted)
    word = (name for name in free if _words(name) & {each for each in wanted if len(each) > 1})
    near = (name for name in free if difflib.get_close_matches(name.lower(), USUAL[key], 1, ALIKE))
    return next(exact, None) or next(word, None) or next(near, None)


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}


def _can_be(what: str, value: Any) -> bool:
    """Whether a column with `value` could mean `what`, so that the row is read where the source names it."""
    if what == "messages":
        return _is_whole(_talk(value))
    talk = _talk(value)
    if what == "prompt" and talk:  # JSON text of messages is a text, where it stands for one
        return not _replies(talk[-1]) and (isinstance(value, list) or bool(TRANSCRIPT.match(value)))
    if what == "completion" and (talk or _is_rated(value)):
        return bool(talk) and _replies(talk[0]) and isinstance(value, list)
    if what in ("prompt", "completion", "text", "system"):
        return _is_text(value)
    if what == "reasoning":
        return _is_text(value) and not is_label(value)
    if what == "calls":
        return filled(value) and may_be_calls(value)
    if what == "tools":
        tools = as_list(value)
        tools = tools if isinstance(tools, list) else [tools]
        return bool(tools) and all(
            isinstance(each, dict) and {"name", "function"} & each.keys() for each in tools
        )
    if what == "template_options":
        return filled(value) and isinstance(value, dict)
    return filled(value) and not isinstance(value, list | dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _talk(value: Any) -> list[dict[str, Any]]:
    """The messages in `value`, in any form of a conversation; empty where it is none."""
    if isinstance(value, str) and TRANSCRIPT.match(value):
        roles = {"Human": "user", "Assistant": "assistant"}
        return [{"role": roles[name]} for name in TRANSCRIPT.findall(value)]
    turns = listed(value)
    is_talk = isinstance(turns, list) and all(
        ROLES.get(str(speaker(turn))) and _has_said(turn) for turn in turns
    )
    return turns if is_talk else []


def _has_said(turn: dict[str, Any]) -> bool:
    """Whether a message has a content, which may be empty, or a call."""
    return any(what in turn for _, what in SPELLINGS) or any(filled(turn.get(key)) for key in CALLS)


def _is_whole(talk: list[dict[str, Any]]) -> bool:
    """Whether a conversation begins with a question and ends with a reply."""
    roles = [role for turn in talk if (role := ROLES[str(speaker(turn))]) not in OPENING]
    return len(roles) > 1 and roles[0] == "user" and roles[-1] == "assistant"


def _replies(turn: dict[str, Any]) -> bool:
    return ROLES.get(str(speaker(turn))) == "assistant"


def _is_list(value: Any) -> bool:
    """Whether a column has a list that is no reply itself, as one of messages is."""
    return isinstance(as_list(value), list) and not _can_be("completion", value)


def _is_rated(value: Any) -> bool:
    """Whether a column lists rated replies."""
    entries = as_list(value)
    objects = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return bool(objects) and key_of_rating(objects, None) is not None
