"""Builds a dataclass from plain YAML values, strictly: unknown keys, wrong types and missing values are all
collected, each with its path, before anything is raised.

omegaconf reads the file and resolves interpolation. Its own structured configs are not used: inside list
items they report only the last key of a path.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.base.resolved import Resolved
from posttrain.errors import did_you_mean
from posttrain.recipe.reading import Unfit, parsed

MISSING = dataclasses.MISSING


@dataclass
class Problem:
    """One thing that is wrong with a recipe: its place (`data.sources[1].weight`) and a message."""

    path: str
    message: str

    def __str__(self) -> str:
        """The message, after the path unless the message contains it."""
        return self.message if self.path in self.message else f"{self.path}: {self.message}"


@dataclass
class Problems:
    """Collects problems, so that the user sees all of them at once."""

    found: list[Problem] = field(default_factory=list)

    def add(self, path: str, message: str) -> None:
        self.found.append(Problem(path, message))

    def require_above(self, path: str, value: float | None, bound: float = 0) -> None:
        """`value` must be finite and above `bound`; None is allowed."""
        if value is not None and not (math.isfinite(value) and value > bound):
            self._out_of_bounds(path, value, f"above {bound:g}")

    def require_at_least(self, path: str, value: float | None, bound: float = 0) -> None:
        """`value` must be finite and at least `bound`; None is allowed."""
        if value is not None and not (math.isfinite(value) and value >= bound):
            self._out_of_bounds(path, value, f"at least {bound:g}")

    def require_share(self, path: str, value: float | None) -> None:
        """`value` must be in [0, 1]; None is allowed."""
        if value is not None and not 0 <= value <= 1:
            self.add(path, f"{path} = {value} must be between 0 and 1")

    def _out_of_bounds(self, path: str, value: float, bound: str) -> None:
        finite = "" if math.isfinite(value) else "finite and "
        self.add(path, f"{path} = {value} must be {finite}{bound}")

    def __bool__(self) -> bool:
        return bool(self.found)


def to_dataclass(cls: type, value: Any, path: str, problems: Problems) -> Any:
    """An instance of dataclass `cls` with the values of the mapping `value`, or None if there are problems.

    `path`: the place of `value` in the recipe, "" for the recipe itself. Where the class has a mapping
    `REFUSED`, its sentences say why the keys in it do not exist.
    """
    where = path or "the recipe"
    if not isinstance(value, dict):
        problems.add(path, f"{where} must be {_describe(cls)}, not {shown(value)}")
        return None
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    before = len(problems.found)
    for key in value:
        if key not in fields:
            at, why = _join(path, key), getattr(cls, "REFUSED", {}).get(key)
            near = did_you_mean(key, fields, len(fields))
            problems.add(at, f"unknown key {key!r}{near}" if why is None else f"{at}: {why}")
    arguments = {}
    for name, spec in fields.items():
        at, hint = _join(path, name), _hints(cls)[name]
        if name in value:
            arguments[name] = _convert(hint, value[name], at, problems)
        elif spec.default is MISSING and spec.default_factory is MISSING:
            problems.add(at, f"{at} is missing; it takes {_describe(hint)}")
    return cls(**arguments) if len(problems.found) == before else None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of: " + ", ".join(map(str, typing.get_args(hint)))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(arg) for arg in typing.get_args(hint))
    if origin is list:
        (inner,) = typing.get_args(hint)
        sections = dataclasses.is_dataclass(inner)
        return f"a list of {_keys_of('sections', inner) if sections else _describe(inner)}"
    if dataclasses.is_dataclass(hint):
        return _keys_of("a section", hint)
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Any: "values"}
    return names.get(hint, "null" if hint is type(None) else "a mapping")


def _keys_of(what: str, cls: type) -> str:
    return f"{what} with the keys {', '.join(f.name for f in dataclasses.fields(cls) if f.init)}"


def shown(value: Any) -> str:
    """`value` as a message quotes it, in at most 60 characters: what a resolver gave as it was written; null,
    true and false as YAML has them."""
    return cut(json.dumps(value) if value is None or isinstance(value, bool) else repr(value))


def cut(text: str) -> str:
    """`text`, or its first characters of 60 and dots."""
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _convert(hint: Any, value: Any, path: str, problems: Problems) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if isinstance(value, Resolved) and hint is not str and origin not in (types.UnionType, typing.Union):
        value = _typed(value)
    if origin in (types.UnionType, typing.Union):
        choices = typing.get_args(hint)
        if value is None and type(None) in choices:
            return None
        kinds = [c for c in choices if c is not type(None)]
        lists = [c for c in kinds if isinstance(value, list) and typing.get_origin(c) is list]
        return _convert((lists or kinds)[0], value, path, problems)
    if origin is Literal:
        if value in typing.get_args(hint) and not isinstance(value, bool):
            return value
        problems.add(path, f"{path} = {shown(value)}{did_you_mean(value, typing.get_args(hint))}")
        return None
    if origin is list:
        if not isinstance(value, list):
            scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
            near = f"; write [{value}]" if scalar else ""
            problems.add(path, f"{path} must be {_describe(hint)}, not {shown(value)}{near}")
            return None
        item = typing.get_args(hint)[0]
        return [_convert(item, v, f"{path}[{i}]", problems) for i, v in enumerate(value)]
    if origin is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return value
        problems.add(path, f"{path} must be a mapping with text keys, not {shown(value)}")
        return None
    if dataclasses.is_dataclass(hint):
        return to_dataclass(hint, value, path, problems)
    return _scalar(hint, value, path, problems)


def _typed(text: Resolved) -> Any:
    """An environment variable is always text; where a number, a flag or a container is wanted, it is read as
    YAML."""
    try:
        value = parsed(text)
    except Unfit:
        return text
    return text if isinstance(value, str) else value


def _scalar(hint: type, value: Any, path: str, problems: Problems) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and (number and (isinstance(value, int) or value.is_integer())):
        return int(value)
    if hint in (str, bool) and isinstance(value, hint):
        return value
    quotes = f" (in quotes: '{value}')" if hint is str and number else ""
    if hint is str and isinstance(value, bool):
        quotes = " (yes, no, on and off are true and false in YAML; put the word in quotes)"
    problems.add(path, f"{path} must be {_describe(hint)}, not {shown(value)}{quotes}")
    return None
