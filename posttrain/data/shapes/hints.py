"""Which `columns` a recipe should name where a row has no column of a usual name.

A guess by short names (`q`, `a`), by likeness, or because there is no other column of texts. It only words an
error: a guess is never read by itself. Left out: the usual names (columns.py).
"""

from __future__ import annotations

import difflib
from typing import Any

from posttrain.data.shapes.columns import EXAMPLE, USUAL, usual_names

SHORT = {
    "prompt": ("q", "ques", "input", "source", "user", "human", "request", "ask"),
    "completion": ("a", "ans", "target", "assistant", "gpt", "reply", "reference", "gold"),
}
"""Usual names that are too short or too common to be read without being asked."""
ALIKE = 0.6
"""Likeness of two names (difflib's ratio) from which one is proposed for the other."""


def not_found(row: dict[str, Any], what: str, found: dict[str, str], source: str, where: str) -> str:
    """The sentence that the row of `source` has no column with the `what`; `found` as in `columns_hint`."""
    has = ", ".join(map(str, row)) or "no column at all"
    if hint := columns_hint(row, found):
        return f"{where}: it is not known which columns of source {source!r} are meant; it has {has}{hint}"
    return (
        f"{where}: no column with the {what} was found; the row has {has}. "
        f"Name the column under columns.{what} of source {source!r}"
    )


def columns_hint(row: dict[str, Any], found: dict[str, str]) -> str:
    """`; did you mean columns: {prompt: q, completion: a}?`, or nothing where no column fits.

    `found` has the columns of the keys that are known already.
    """
    read = usual_names(*EXAMPLE) | set(found.values())
    free = {str(name): value for name, value in row.items() if name not in read}
    names = [name for name, value in free.items() if isinstance(value, str) and value.strip()]
    missing = [key for key in ("prompt", "completion") if key not in found]
    proposed: dict[str, str] = {}
    if talk := next((name for name, value in free.items() if _is_talk(value)), None):
        proposed = {"messages": talk}
    elif len(missing) == 2 and len(names) == 1:
        proposed = {"text": names[0]}
    else:
        for key in missing:
            left = [name for name in names if name not in proposed.values()]
            if name := _named_like(left, {*SHORT[key], *USUAL[key]}):
                proposed[key] = name
        rest = [name for name in names if name not in proposed.values()]
        still = [key for key in missing if key not in proposed]
        if len(rest) == len(still):
            proposed |= dict(zip(still, rest, strict=True))
        if len(proposed) < len(missing):
            return ""
        proposed = {key: proposed[key] for key in missing}
    written = ", ".join(f"{key}: {name}" for key, name in proposed.items())
    return f"; did you mean columns: {{{written}}}?" if written else ""


def _named_like(names: list[str], wanted: set[str]) -> str | None:
    """The first of `names` that is one of `wanted`, else the first that is like one."""
    near = (n for n in names if difflib.get_close_matches(n.lower(), wanted, 1, ALIKE))
    return next((n for n in names if n.lower() in wanted), None) or next(near, None)


def _is_talk(value: Any) -> bool:
    """Whether `value` is a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and bool({"role", "from"} & set(first))
