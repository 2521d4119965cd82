"""The part of a recipe that differs from the defaults: what is worth reading of it.

Left out: the whole recipe as it is saved (load.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any


def without_defaults(section: Any, values: Any) -> Any:
    """`values`, the plain values of `section`, without the keys of its dataclasses that have their default.

    Keys that must be given stay. It loads as the same recipe.
    """
    if isinstance(section, list):
        return [without_defaults(item, value) for item, value in zip(section, values, strict=True)]
    if not dataclasses.is_dataclass(section):
        return values
    return {
        field.name: without_defaults(getattr(section, field.name), values[field.name])
        for field in dataclasses.fields(section)
        if getattr(section, field.name) != _default(field)
    }


def _default(field: dataclasses.Field) -> Any:
    """MISSING, which no value equals, where there is none."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()
