"""A named registry: a decorator, a lookup that helps with spelling, and nothing else.

Plugins by entry point or dotted path are resolved by the registries built on this one (rewards, tasks).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from posttrain.errors import RequestError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to a thing. `kind` is the word used in messages ("task", "reward", ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str):
        """Decorator `@registry.register("name")`; registering a name twice is a mistake."""

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
