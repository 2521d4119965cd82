"""The generators that a source of a recipe may name, and the check of their options.

A generator is a function of its options that returns or yields rows, dicts of columns like those of a file:

    def squares(size: int = 100, start: int = 1):
        for n in range(start, start + size):
            yield {"prompt": f"{n}*{n}=", "completion": str(n * n), "answer": str(n * n)}

    GENERATORS.register("squares")(squares)

A recipe then says `generator: squares` and `options: {size: 500}`. Without an edit here it names the function
by a dotted path, `generator: my_package.my_module:squares`. The options are the parameters, typed by their
annotations as those of rewards are; a `ValueError` refuses a value. The function must give the same rows each
time it is called, on every rank. The built-in generators are objects that declare a dataclass as `options`
instead, which `posttrain check` can check without making a row. Left out: what the columns mean (shapes/).
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from posttrain.base.registry import Registry, import_path
from posttrain.base.resolved import plain_text
from posttrain.data.problems import (
    arithmetic,
    calendar,
    equation,
    letters,
    logic,
    sequence,
    sets,
    sorting,
    string_edit,
    units,
)
from posttrain.data.problems.base import Family
from posttrain.data.problems.operands import ADDITION, MULTIPLICATION
from posttrain.data.problems.reasoning_gym import REASONING_GYM
from posttrain.errors import RequestError
from posttrain.recipe.build import Problems, to_dataclass

MODULES = (arithmetic, calendar, equation, letters, logic, sequence, sets, sorting, string_edit, units)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in MODULES}
"""The families by name; a new one is a small file and its module above."""


class Options(Protocol):
    """Settings of a generator: a frozen dataclass whose every field has a default."""

    def check(self, name: str) -> None:
        """Raises `RequestError` for a value out of range."""


class Generator(Protocol):
    """Makes the rows that its `options` ask for."""

    options: type[Any]

    def __call__(self, options: Any, /) -> list[dict[str, Any]]: ...


class FunctionGenerator:
    """A plain function as a generator: its options are its parameters.

    Raises RequestError where the options cannot be read from the signature.
    """

    def __init__(self, name: str, function: Callable[..., Iterable[dict[str, Any]]]) -> None:
        self.name, self.function = name, function
        self.options = _options_of(name, function)

    def __call__(self, options: Any) -> list[dict[str, Any]]:
        """The rows. Raises RequestError if the function raises ValueError or gives no rows, or not dicts."""
        try:
            rows = list(self.function(**plain_text(vars(options))))
        except ValueError as error:
            raise RequestError(f"generator {self.name}: {error}") from error
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise RequestError(
                    f"generator {self.name}: row {index} is {type(row).__name__}, not a dict of columns"
                )
        if not rows:
            raise RequestError(f"generator {self.name}: these options give no row")
        return rows


GENERATORS: Registry[Any] = Registry("generator")
"""By name: objects with `options` (`Generator`), and plain functions."""
for _made in (MULTIPLICATION, ADDITION, *FAMILIES.values(), REASONING_GYM):
    GENERATORS.register(_made.name)(_made)


def find(name: str) -> Generator:
    """The generator that a recipe names: a registered one, or `package.module:function`.

    Raises:
        RequestError: no such generator, or its options cannot be read.
    """
    own = name not in GENERATORS and ":" in name
    made = import_path(name, "generator") if own else GENERATORS[name]
    return made if hasattr(made, "options") else FunctionGenerator(name, made)


def generate(name: str, options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a generator; the built-in ones give {prompt, completion, answer, id}.

    Raises:
        RequestError: unknown generator or option, a value of the wrong type or out of range.
    """
    return find(name)(check(name, options or {}))


def check(name: str, options: Mapping[str, Any]) -> Any:
    """The typed options, without making rows; raises as `generate` does."""
    problems = Problems()
    typed = to_dataclass(find(name).options, dict(options), "", problems)
    if problems:
        wrong = "; ".join(p.message.replace("unknown key", "unknown option") for p in problems.found)
        raise RequestError(f"generator {name}: {wrong}")
    typed.check(name)
    return typed


def _options_of(name: str, function: Callable[..., Any]) -> type[Any]:
    """A dataclass of the parameters of `function`."""
    try:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError, NameError) as error:
        raise RequestError(f"generator {name}: its options cannot be read: {error}") from None
    fields: list[tuple[str, Any, Any]] = []
    for p in parameters:
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise RequestError(
                f"generator {name}: parameter {p.name!r} cannot be an option; name each option"
            )
        given = p.default is not p.empty
        hint = hints.get(p.name, type(p.default) if given else str)
        default = dataclasses.field(default_factory=lambda v=p.default: v) if given else dataclasses.field()
        fields.append((p.name, hint, default))
    return dataclasses.make_dataclass(
        "Options", fields, kw_only=True, namespace={"check": lambda self, name: None}
    )
