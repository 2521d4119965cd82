"""What an assistant thinks, as the text that a template writes between its marks.

A data set may have a setting under such a key (`on`, `high`), or the marks themselves: the first is refused,
and marks around the whole thought are taken off, because the template writes them. Left out: a thought that
is written into the text of a reply, which is text like any other.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from posttrain.data.json_rows import described
from posttrain.data.shapes.names import SPELT, checked_text
from posttrain.errors import RequestError

LABELS = {
    *SPELT,
    *("on", "off", "yes", "no", "none", "null", "nan", "n/a", "{}", "[]", "-"),
    *("minimal", "low", "medium", "high", "xhigh", "max", "concise", "detailed", "auto"),
    *("enable", "enabled", "disable", "disabled", "think", "no_think", "/think", "/no_think"),
}
"""Texts that say whether or how much is thought, and are no thought."""
OPEN, CLOSE = "<think>", "</think>"
IN_TEXT = "in the text"
REMEDY = "or on_error: skip where only a few rows have it"


def is_label(text: str) -> bool:
    return text.strip().lower() in LABELS


def read_thought(text: str, place: str, ignore: str) -> str:
    """The thought in `text`, without marks around it.

    `ignore`: what to do where it means something else. Raises RequestError where it is a label, or has a mark
    that would end the thought before its end.
    """
    thought = unmarked(text)
    if is_label(thought):
        raise RequestError(
            f"{place} must be a thought, not {text!r}; {ignore} if it means something else, {REMEDY}"
        )
    if CLOSE in thought or thought.lstrip().startswith(OPEN):
        mark = CLOSE if CLOSE in thought else OPEN
        raise RequestError(
            f"{place} has {mark} in the thought, a mark that the template writes: {text[:60]!r}. Write the "
            f"thought alone, or {ignore}, {REMEDY}"
        )
    return thought


def unmarked(text: str) -> str:
    """A thought without marks around the whole of it."""
    bare = text.strip()
    if bare.startswith(OPEN) and bare.endswith(CLOSE):
        return bare[len(OPEN) : -len(CLOSE)].strip("\n")
    return text


def split_thought(text: str) -> tuple[str, str]:
    """(the thought that a reply begins with, without its marks, what it says then), each without space around
    it."""
    said = text.strip()
    if said.startswith(OPEN) and CLOSE in said:
        thought, _, rest = said.removeprefix(OPEN).partition(CLOSE)
        return thought.strip(), rest.strip()
    return "", said


def own_thought(text: str, given: Collection[str]) -> tuple[str, str] | None:
    """(the thought that a reply begins with, what it says then), the first without space around it; None
    where it begins with none.

    The mark that opens the thought may be in the prompt. A text with the other mark alone may speak of it:
    that is a thought where the mark ends its line, or what is before it is one of `given`.
    """
    said, mark, rest = text.partition(CLOSE)
    opened, thought = said.lstrip().startswith(OPEN), said.strip().removeprefix(OPEN).strip()
    ends_line = mark and rest.lstrip(" \t\r")[:1] in ("", "\n")
    return (thought, rest.lstrip()) if opened or ends_line or (mark and thought in given) else None


def one_thought(given: dict[str, Any], in_parts: str, where: str, content: str, text: str) -> dict[str, str]:
    """What a message thinks, under the key that says it; empty where it does not think, or its text says the
    same itself. Of a text with the mark alone that ends the same thought, also its `content` behind that:
    where the prompt opens no thought it would be a reply. White space is no thought: with marks around it a
    template would train a thought that is empty.

    `given`: its keys of `REASONING`; `in_parts`: what parts of its `content` think, which is under `thinking`
    where no key says the same; `text`: what it replies, which may begin with a thought. Raises RequestError
    as `read_thought`, and where two differ; RowError (bad_text).
    """
    if not given and not in_parts:  # as in most messages
        return {}
    thoughts = {}
    for key, value in given.items():
        if not isinstance(value, str):
            raise RequestError(
                f"{where}: {key!r} must be text, not {described(value)}; set ignore: [{key}] if it means "
                "something else"
            )
        thought = checked_text(value, where, key)
        thoughts[key] = read_thought(thought, f"{where}: {key!r}", f"set ignore: [{key}]")
    if in_parts:
        place = f"parts of {content}"
        thoughts[place] = read_thought(in_parts, f"{where}: {place}", "leave the part out")
    thoughts = {key: thought for key, thought in thoughts.items() if thought.strip()}
    itself = own_thought(text, {thought.strip() for thought in thoughts.values()}) if thoughts else None
    if itself is not None:
        thoughts[IN_TEXT] = itself[0]
    if len({thought.strip() for thought in thoughts.values()}) > 1:
        raise RequestError(
            f"{where}: has different reasoning under {' and '.join(thoughts)}; keep one"
            f"{_ignored(thoughts, given)}"
        )
    if itself is not None and text.lstrip().startswith(OPEN):
        return {}
    found = {key if key in given else "thinking": each for key, each in [*thoughts.items()][:1]}
    return found if itself is None else found | {"content": itself[1]}


def _ignored(thoughts: dict[str, str], given: Collection[str]) -> str:
    """Which keys to ignore so that one of `thoughts` is left, as the end of a sentence; nothing where those
    differ that are no keys."""
    fixed = {thought.strip() for key, thought in thoughts.items() if key not in given}
    keys = [key for key in thoughts if key in given][0 if fixed else 1 :]
    return f", or set ignore: [{', '.join(keys)}]" if keys and len(fixed) < 2 else ""
