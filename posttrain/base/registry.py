"""A registry of named things: a decorator that adds one, and a lookup that suggests the nearest spelling;
and functions by their dotted path.

Left out: entry points, which the registries built on this one resolve (rewards, tasks).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from posttrain.errors import RequestError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to things. `kind` is the word for one of them in messages ("task", "reward")."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str):
        """Decorator: `@registry.register("name")`. Raises ValueError if the name is already registered."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            help_text = did_you_mean(name, self._items)
            raise RequestError(f"unknown {self.kind} {name!r}{help_text}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))


def import_path(path: str, kind: str) -> Callable[..., Any]:
    """The function at `package.module:name`, for a `kind` ("generator", ...) that is not registered.

    Raises:
        RequestError: the module cannot be imported, or has no function of that name.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing the code of others can raise anything
        raise RequestError(
            f"{kind} {path!r}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from None
    found = getattr(module, attribute, None)
    if found is None:
        near = did_you_mean(attribute, (name for name in dir(module) if not name.startswith("_")))
        raise RequestError(f"{kind} {path!r}: {module_name} has no {attribute!r}{near}")
    if not callable(found):
        raise RequestError(f"{kind} {path!r}: {attribute} is not a function but {type(found).__name__}")
    return found
