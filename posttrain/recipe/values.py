"""What a value may be where the key belongs to a library, and no dataclass of ours types it: `train.extra`,
`model.lora.options`, the arguments of schedules.

A kind is named by the words of its error message, so that table, check and message are one. Left out: which
key takes which kind (library_fields.yaml, schedule_rules.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.recipe.bounds import REAL, WHOLE
from posttrain.recipe.build import Problems, shown


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= WHOLE


def _list(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(of, value))


def _mapping(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and of(value[k]) for k in value)


def _pairs(value: Any) -> bool:
    """transformers splits them so."""
    return _text(value) and all(len(part.split("=")) == 2 for part in value.split(","))


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _index(value: Any) -> bool:
    return _whole(value) and value >= 0


def _count(value: Any) -> bool:
    return _whole(value) and value >= 1


def _positive(value: Any) -> bool:
    return _number(value) and 0 < value <= REAL


KINDS: dict[str, Callable[[Any], bool]] = {
    "true or false": lambda value: isinstance(value, bool),
    "false": lambda value: value is False,
    "a number of at least 0": lambda value: _number(value) and 0 <= value <= REAL,
    "a number above 0": _positive,
    "a number above 1": lambda value: _positive(value) and value > 1,
    "a number from 0 to 1": lambda value: _number(value) and 0 <= value <= 1,
    "a whole number of at least 0": _index,
    "a whole number of at least 1": _count,
    "text": _text,
    "text like a=1,b=2": _pairs,
    "empty text": lambda value: value == "",
    "a list of text": _list(_text),
    "a list of whole numbers of at least 0": _list(_index),
    "a mapping": _mapping(lambda value: True),
    "a mapping of names to whole numbers of at least 1": _mapping(_count),
    "a mapping of names to numbers above 0": _mapping(_positive),
    "a mapping of names to lists of whole numbers of at least 0": _mapping(_list(_index)),
    "null": lambda value: value is None,
}
"""Words -> whether a value is of that kind. Beside them: `one of A, B`, texts."""


def require(at: str, value: Any, takes: str | Sequence[str], problems: Problems) -> bool:
    """Whether `value`, at `at`, is of one of the kinds `takes`; else a problem says so."""
    kinds = [takes] if isinstance(takes, str) else takes
    good = any(_is(kind, value) for kind in kinds)
    if not good:
        problems.add(at, f"{at} must be {' or '.join(kinds)}, not {shown(value)}")
    return good


def _is(kind: str, value: Any) -> bool:
    choices = kind.removeprefix("one of ")
    return isinstance(value, str) and value in choices.split(", ") if choices != kind else KINDS[kind](value)
