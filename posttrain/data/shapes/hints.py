"""What a recipe should set where the columns of a row have no usual name, or almost one.

A guess by short names (`q`, `a`), by likeness, or because there is no other column of texts. It only words an
error: a guess is never read by itself. Left out: the usual names (columns.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from posttrain.data.shapes.columns import EXAMPLE, USUAL, column, usual_names
from posttrain.data.shapes.messages import ROLES, TRANSCRIPT, speaker
from posttrain.data.shapes.names import almost, filled
from posttrain.errors import RequestError
from posttrain.recipe import schema

SHORT = {
    "prompt": ("q", "ques", "input", "source", "user", "human", "request", "ask"),
    "completion": ("a", "ans", "target", "assistant", "gpt", "reply", "reference", "gold"),
}
"""Usual names that are too short or too common to be read without being asked."""
ALIKE = 0.6
"""Likeness of two names (difflib's ratio) from which one is proposed for the other."""


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
    near = [
        (name, what, usual)
        for name, what, usual in near
        if filled(row[name]) and name not in own.values() and own.get(what) is None
    ]
    if not near:
        return
    name, what, usual = near[0]
    named = {what: name for name, what, _ in reversed(near) if what in own}
    if named.keys() & {"prompt", "completion"}:
        named = propose(row, found | named) | named
        if not {"prompt", "completion"} <= {*found, *named}:
            named = {}
    named = {what: named[what] for what in meanings if what in named}
    remedy = f"Set {_written(named)}" if what in named else f"Rename it, or set ignore: [{name}]"
    or_else = f", or ignore: [{name}]" if what in named else ""
    raise RequestError(
        f"{where}: column {name!r} of source {source.name!r} is not read; did you mean {usual!r}? "
        f"{remedy} on the source (under data.sources){or_else}"
    )


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
    if proposed := propose(row, found):
        return (
            f"{where}: it is not known which columns of source {source.name!r} are meant; it has {has}; did "
            f"you mean {_written(proposed)}?"
        )
    return (
        f"{where}: no column with the {what} was found; the row has {has}. "
        f"Name the column under columns.{what} of source {source.name!r}"
    )


def propose(row: dict[str, Any], found: dict[str, str]) -> dict[str, str]:
    """The columns to name, `{prompt: q, completion: a}`; empty where it is not known which.

    `found` has the columns of the keys that are known already.
    """
    read = usual_names(*EXAMPLE) | set(found.values())
    free = {str(name): value for name, value in row.items() if name not in read}
    names = [name for name, value in free.items() if isinstance(value, str) and value.strip()]
    missing = [key for key in ("prompt", "completion") if key not in found]
    proposed: dict[str, str] = {}
    talks = {name: _is_whole(value) for name, value in free.items() if _is_talk(value)}
    if whole := next((name for name in talks if talks[name]), None):
        return {"messages": whole}
    if talks and "prompt" in missing:  # what is asked, as messages, whose reply is in a column of its own
        proposed["prompt"] = next(iter(talks))
    elif len(missing) == 2 and len(names) == 1:
        return {"text": names[0]}
    for key in missing:
        left = [name for name in names if name not in proposed.values()]
        if key not in proposed and (name := _named_like(left, {*SHORT[key], *USUAL[key]})):
            proposed[key] = name
    rest = [name for name in names if name not in proposed.values()]
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
    if (isinstance(value, str) and TRANSCRIPT.match(value)) or (_is_talk(value) and not _replies(value[0])):
        return {"messages": chosen}
    known = found | {"completion": chosen}
    asked = {} if "prompt" in found else propose(row, known | {"rejected": rejected})
    return asked | {"completion": chosen} if "prompt" in {*found, *asked} else {}


def _written(columns: dict[str, str]) -> str:
    return f"columns: {{{', '.join(f'{key}: {name}' for key, name in columns.items())}}}"


def _named_like(names: list[str], wanted: set[str]) -> str | None:
    """The first of `names` that is one of `wanted`, else the first that is like one."""
    near = (n for n in names if difflib.get_close_matches(n.lower(), wanted, 1, ALIKE))
    return next((n for n in names if n.lower() in wanted), None) or next(near, None)


def _is_talk(value: Any) -> bool:
    """Whether `value` is a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and bool({"role", "from"} & set(first))


def _is_whole(talk: list[Any]) -> bool:
    """Whether a list of messages does not end with a question."""
    return ROLES.get(str(speaker(talk[-1]))) != "user"


def _replies(turn: Any) -> bool:
    return ROLES.get(str(speaker(turn))) == "assistant"
