"""Values of Arrow columns as the rows had them before they were made columns.

A column has one type, so each of its structs has the keys of all rows: keys that a row did not have come
back as null, in the arguments of a call as in the parameters of a tool. Inside structs a null is taken for
such a key and left out. Not so for a column itself, for the content of a message and the keys of a rated
reply, whose readers know what null means, and for what is written as map or JSON text. A struct of only nulls
is left out, too, but where an empty object is usual (`EMPTY`). Maps, which Arrow gives as pairs, are objects.
Left out: reading the files (columnar.py, hub.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from posttrain.data.shapes.rated import TEXTS

EMPTY = ("arguments", "parameters", "properties")
CALLED = {*EMPTY, "tools", "tool_calls", "tool_call", "function_call", "function"}
"""Keys below which no object is a message."""
Reader = Callable[[Any], Any]


def row_reader(schema: Any, parse: bool = True) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What turns a row of `to_pylist` into what was written. `parse`: text of the type JSON is parsed."""
    found = {each.name: read for each in schema if (read := _reader(each.type, each.name, parse, True))}
    if not found:
        return lambda row: row
    return lambda row: row | {name: read(row[name]) for name, read in found.items()}


def has_structs(kind: Any) -> bool:
    """Whether the values of an Arrow type have structs or maps inside."""
    from pyarrow import types

    if types.is_struct(kind) or types.is_map(kind):
        return True
    return _is_list(kind) and has_structs(kind.value_type)


def has_nulls(column: Any) -> bool:
    """Whether an Arrow array has a struct with a null inside, or a map."""
    from pyarrow import types

    kind = column.type
    if types.is_map(kind):
        return True
    if types.is_struct(kind):
        fields = [column.field(i) for i in range(kind.num_fields)]
        return any(each.null_count or has_nulls(each) for each in fields)
    return _is_list(kind) and has_nulls(column.values)


def _is_json(kind: Any) -> bool:
    return getattr(kind, "extension_name", None) == "arrow.json"


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _reader(kind: Any, name: str, parse: bool, top: bool, called: bool = False) -> Reader | None:
    """For the values of an Arrow type under the key `name`; None where they stay as they are. `top`: in a
    column or an entry of it."""
    from pyarrow import types

    called = called or name in CALLED
    if _is_json(kind):
        return (lambda value: None if value is None else json.loads(value)) if parse else None
    if _is_list(kind):
        inner = _reader(kind.value_type, "", parse, top, called)
        return inner and (lambda value: None if value is None else [inner(each) for each in value])
    if types.is_map(kind):
        inner = _reader(kind.item_type, "", parse, False, called) or (lambda value: value)
        return lambda value: None if value is None else {key: inner(each) for key, each in value}
    if not types.is_struct(kind) or not kind.num_fields:
        return None
    parts = {each.name: _reader(each.type, each.name, parse, False, called) for each in kind}
    kept = set() if called else _kept(set(parts), top and not name)
    kept |= {each.name for each in kind if _is_json(each.type)}

    def read(value: Any) -> Any:
        if value is None:
            return None
        found = {key: part(value[key]) if part else value[key] for key, part in parts.items()}
        found = {key: each for key, each in found.items() if each is not None or key in kept}
        return found if found or name in EMPTY else None

    return read


def _kept(names: set[str], entry: bool) -> set[str]:
    """The keys of a struct whose nulls stay."""
    if {"role", "content"} <= names or {"from", "value"} <= names:
        return {"content", "value"}
    return names if entry and names & set(TEXTS) else set()
