"""The table of instructions: an id, the function that checks it, and the arguments that it takes.

A check is `fn(text, **kwargs) -> str`: the empty string when the text follows the instruction, else the
reason in words. Its parameters after the text are the kwargs a row must give, typed by their annotations. Two
names are special: `fixed` (True in mode `fixed`) and `prompt_to_repeat` (taken from the row's prompt where
the kwargs lack it). A new instruction is one function under `@instruction("group:name")`. Left out: writing
the instruction into a prompt.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.errors import did_you_mean

Relation = Literal["less than", "at least"]
CheckFn = Callable[..., str]


@dataclass(frozen=True)
class Instruction:
    """An entry of the table."""

    id: str
    fn: CheckFn
    kwargs: Mapping[str, Any]
    """Name and type of each argument that a row gives."""
    optional: frozenset[str]
    modal: bool
    """Whether the function takes the mode (`fixed`)."""

    def follow(self, text: str, kwargs: Mapping[str, Any], fixed: bool) -> str:
        """Why `text` does not follow the instruction; empty if it does. `kwargs` are those of `bind`."""
        return self.fn(text, **kwargs, **({"fixed": fixed} if self.modal else {}))


TABLE: dict[str, Instruction] = {}


def instruction(id: str, table: dict[str, Instruction] = TABLE) -> Callable[[CheckFn], CheckFn]:
    """Decorator that adds a check to the table."""

    def add(fn: CheckFn) -> CheckFn:
        if id in table:
            raise ValueError(f"instruction {id!r} is registered twice")
        hints = typing.get_type_hints(fn)
        names = list(inspect.signature(fn).parameters.values())[1:]
        given = [one for one in names if one.name != "fixed"]
        table[id] = Instruction(
            id,
            fn,
            {one.name: hints[one.name] for one in given},
            frozenset(one.name for one in given if one.default is not one.empty),
            len(given) < len(names),
        )
        return fn

    return add


def bind(
    id: Any, kwargs: Any, prompt: str | None = None, table: Mapping[str, Instruction] = TABLE
) -> tuple[Instruction, dict[str, Any]]:
    """The instruction and the arguments of one entry of a row. Null values count as missing.

    Raises:
        ValueError: the id is unknown, or an argument is missing, unknown or of the wrong type.
    """
    if not isinstance(id, str) or id not in table:
        near = did_you_mean(id, table) if isinstance(id, str) else ""
        raise ValueError(f"unknown instruction {id!r}{near}")
    if not isinstance(kwargs, Mapping):
        raise ValueError(f"instruction {id!r}: its kwargs must be an object, not {kwargs!r}")
    row = table[id]
    bound = {key: value for key, value in kwargs.items() if value is not None}
    if "prompt_to_repeat" in row.kwargs and prompt is not None:
        bound.setdefault("prompt_to_repeat", prompt)
    for key in bound:
        if key not in row.kwargs:
            near = did_you_mean(key, row.kwargs)
            raise ValueError(f"instruction {id!r}: unknown argument {key!r}{near}")
    for key, kind in row.kwargs.items():
        if key in bound:
            bound[key] = _typed(id, key, bound[key], kind)
        elif key not in row.optional:
            raise ValueError(f"instruction {id!r}: the argument {key!r} is missing")
    return row, bound


def _typed(id: str, key: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`; integers may be written as floats, as in some published files."""
    where = f"instruction {id!r}: {key} must be"
    if kind is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < 0:
            raise ValueError(f"{where} an integer of at least 0, not {value!r}")
        return int(value)
    if kind is str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where} a string with text, not {value!r}")
        return value
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            choices = " or ".join(repr(one) for one in typing.get_args(kind))
            raise ValueError(f"{where} {choices}, not {value!r}")
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} a list of strings, not {value!r}")
    return [_typed(id, f"each of {key}", one, str) for one in value]


def compare(count: int, relation: str, bound: int, what: str) -> str:
    """Why `count` is not `relation` ("less than", "at least") `bound`; empty if it is."""
    if (count < bound) if relation == "less than" else (count >= bound):
        return ""
    return f"{count} {what}, asked for {relation} {bound}"


def exactly(count: int, wanted: int, what: str) -> str:
    """Why `count` is not `wanted`; empty if it is."""
    return "" if count == wanted else f"{count} {what}, asked for exactly {wanted}"


def at_least(count: int, wanted: int, what: str) -> str:
    """Why `count` is less than `wanted`; empty if it is not."""
    return compare(count, "at least", wanted, what)


def unless(followed: bool, reason: str) -> str:
    """`reason`, or an empty string if `followed`."""
    return "" if followed else reason


def whole_word(word: str) -> re.Pattern[str]:
    """A pattern for `word`, in any case, not inside a longer word."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
