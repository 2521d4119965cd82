"""One line of JSON, or a whole array, as rows. A key that an object has twice is refused: Python would keep
the last of its values and say nothing.

Left out: where lines come from (readers.py), and JSON in columns and calls (nested.py, shapes/tools.py).
"""

from __future__ import annotations

import json
from typing import Any


class Broken(dict):
    """A line or entry that is no row, in place of its row. `error` is the sentence that says why, with its
    place."""

    def __init__(self, error: str) -> None:
        super().__init__()
        self.error = error


class _Twice(ValueError):
    """An object has a key twice."""


class _Marked(dict):
    """An object that had `key` twice."""

    key: str


def parse_line(line: bytes, where: str) -> dict[str, Any] | Broken:
    """The row of one line, which has no white space at its ends."""
    try:
        return row_of(_loads(line.decode()), where)
    except UnicodeDecodeError as error:
        return Broken(f"{where}: not UTF-8 (byte {error.start + 1} of the line); convert the file to UTF-8")
    except json.JSONDecodeError as error:
        return Broken(f"{where}: broken JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except _Twice as error:
        return _twice(where, error.args[0])
    except (ValueError, RecursionError) as error:
        return Broken(f"{where}: broken JSON: {error}")


def parse_array(text: str) -> tuple[Any, bool]:
    """(the value of a whole file, whether an object in it has a key twice). Of those `entry` tells the row.

    Raises ValueError and RecursionError as `json.loads`.
    """
    try:
        return _loads(text), False
    except _Twice:
        return json.loads(text, object_pairs_hook=_marked), True


def entry(value: Any, where: str) -> dict[str, Any] | Broken:
    """As `row_of`, of an entry of an array in which keys are there twice."""
    inside = [value]
    while inside:
        each = inside.pop()
        if isinstance(each, _Marked):
            return _twice(where, each.key)
        inside += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
    return row_of(value, where)


def row_of(value: Any, where: str) -> dict[str, Any] | Broken:
    """`value` if it is an object with content."""
    if isinstance(value, dict):
        return value or Broken(f"{where}: the row is an empty object")
    return Broken(f"{where}: a row must be a JSON object, not {type_name(value)}")


NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def as_text(value: Any) -> str | None:
    """An answer in a row as text: numbers as Python writes them, `True` and `False`, a list as its items,
    joined by commas. None of null, an object, an empty or nested list."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list) and value and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(str(item) for item in value)
    return None


def type_name(value: Any) -> str:
    """What JSON calls the type of `value`; of other types, which Parquet and generators may have, its own
    name."""
    kind = str if isinstance(value, str) else type(value)  # cells of CSV are a kind of text
    return NAMES.get(kind, f"a value of type {kind.__name__}")


def described(value: Any) -> str:
    """The type of a value and how it begins: `a number (3)`."""
    return type_name(value) if value is None else f"{type_name(value)} ({repr(value)[:60]})"


def _twice(where: str, key: str) -> Broken:
    return Broken(f"{where}: one object has the key {key!r} twice; keep one of them")


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice(_repeated(pairs))
    return found


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found = _Marked(found)
        found.key = _repeated(pairs)
    return found


def _repeated(pairs: list[tuple[str, Any]]) -> str:
    """The first key that is there again."""
    seen: set[str] = set()
    return next(key for key, _ in pairs if key in seen or seen.add(key))


DECODER = json.JSONDecoder(object_pairs_hook=_checked)
"""Made once: `json.loads` makes one for each call with a hook, which takes longer than a row of GSM8K."""


def _loads(text: str) -> Any:
    """As `json.loads`, but for keys that are there twice. It does not look for white space at the ends, which
    is quicker."""
    try:
        value, end = DECODER.raw_decode(text)
        if end == len(text):
            return value
    except json.JSONDecodeError:
        pass
    return json.loads(text, object_pairs_hook=_checked)  # white space, or an error in its words
