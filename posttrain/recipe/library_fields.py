"""What decides each field of the libraries' config classes: a key of the recipe, posttrain, or nothing that
matters. The table is library_fields.yaml; its values are what the trainers and adapters are built with.

Left out: the comparison with the installed libraries, which imports them (training/defaults.py).
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from posttrain.recipe.build import Problems
from posttrain.recipe.values import require

STAGES = {"sft": "SFTConfig", "dpo": "DPOConfig", "rlvr": "GRPOConfig"}
"""The config class of TRL that each stage uses."""
KINDS = ("recipe", "set", "derived", "none", "rely")
BASE = "TrainingArguments"


@dataclass(frozen=True)
class Field:
    """One field of a class."""

    default: Any
    """The library's default: plain values; other objects as their class's name in parentheses."""
    kind: Literal["recipe", "set", "derived", "none", "rely"]
    value: Any
    """recipe: the key; set: the value; derived, none, rely: how or why, in words."""
    why: str = ""
    takes: str | tuple[str, ...] = ()
    """Kinds of the values (values.py) that `train.extra`, or `model.lora.options`, may give it."""
    refuse: str = ""
    """What a user who tries to set it is told, where that is not the reason of the row."""
    since: str = ""
    """Version of the library from which on the class has this field, or this default."""
    before: Any = None
    """Its default before `since`, if it existed: a list of that one value."""

    @property
    def open(self) -> bool:
        """Whether `train.extra`, or `model.lora.options`, may set it."""
        return bool(self.takes)

    @property
    def reason(self) -> str:
        """Why a user may not set it."""
        if self.kind == "recipe":
            return self.refuse or f"use {self.value} instead"
        return self.refuse or (self.why if self.kind == "set" else self.value)


def _field(row: dict[str, Any]) -> Field:
    kind = next(kind for kind in KINDS if kind in row)
    extras = {k: v for k, v in row.items() if k not in (kind, "default", "before")}
    if "before" in row:
        extras["before"] = [row["before"]]
    return Field(row["default"], kind, row[kind], **extras)


def _over(base: dict[str, Any], field: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of a class that inherits: the decision of the base, unless the row has its own."""
    if any(kind in row for kind in KINDS) or field not in base:
        return row
    return {k: v for k, v in base[field].items() if k not in ("since", "before")} | row


@functools.cache
def table() -> dict[str, dict[str, Field]]:
    """Class name -> field name -> its row; TRL's classes with the fields that they inherit."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    rows = yaml.load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), loader)
    for name in STAGES.values():
        rows[name] = rows[BASE] | {field: _over(rows[BASE], field, row) for field, row in rows[name].items()}
    return {name: {field: _field(row) for field, row in fields.items()} for name, fields in rows.items()}


def fixed(class_name: str) -> dict[str, Any]:
    """The values that posttrain gives to the class; of an `open` field the user's replaces it."""
    rows = table()[class_name].items()
    return {name: copy.deepcopy(field.value) for name, field in rows if field.kind == "set"}


def require_kinds(class_name: str, given: dict[str, Any], at: str, problems: Problems) -> None:
    """Adds what is wrong with the values of open fields in the mapping `given`, which is at `at`."""
    rows = table()[class_name]
    for name, value in given.items():
        if name in rows and rows[name].open:
            require(f"{at}.{name}", value, rows[name].takes, problems)


def refused(class_name: str) -> dict[str, str]:
    """Fields that a user may not set directly -> what the user is told."""
    return {name: field.reason for name, field in table()[class_name].items() if not field.open}
