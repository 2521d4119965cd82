"""The installed libraries compared with the table of their fields (recipe/library_fields.yaml).

A run is refused where a default has moved that it relies on, or where a field that posttrain must set is
gone; fields that the table does not have are named in one warning. Fields that posttrain or the recipe sets
may have any default. Left out: the decisions themselves, which are in the table.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from posttrain.errors import RequestError
from posttrain.recipe.library_fields import BASE, STAGES, Field, table
from posttrain.training.engines import engine_asked

log = logging.getLogger(__name__)
MODULES = {
    "TrainingArguments": "transformers",
    "SFTConfig": "trl",
    "DPOConfig": "trl",
    "GRPOConfig": "trl",
    "LoraConfig": "peft",
    "AcceleratorConfig": "transformers.trainer_pt_utils",
    "GradientAccumulationPlugin": "accelerate.utils.dataclasses",
    "DataLoaderConfiguration": "accelerate.utils.dataclasses",
    "DistributedDataParallelKwargs": "accelerate.utils.dataclasses",
    "AutocastKwargs": "accelerate.utils.dataclasses",
    "GradScalerKwargs": "accelerate.utils.dataclasses",
    "FullyShardedDataParallelPlugin": "accelerate.utils.dataclasses",
    "DeepSpeedPlugin": "accelerate.utils.dataclasses",
    "DeepSpeedBF16Config": "deepspeed.runtime.precision_config",
    "DeepSpeedFP16Config": "deepspeed.runtime.precision_config",
    "DeepSpeedZeroConfig": "deepspeed.runtime.zero.config",
    "DeepSpeedConfig": "deepspeed.runtime.constants",
}
"""Where each class of the table is. DeepSpeed is imported only where the launcher asks for it."""
ALWAYS = (
    "LoraConfig",
    "AcceleratorConfig",
    "GradientAccumulationPlugin",
    "DataLoaderConfiguration",
    "DistributedDataParallelKwargs",
    "AutocastKwargs",
    "GradScalerKwargs",
    "FullyShardedDataParallelPlugin",
)
DEEPSPEED = tuple(name for name in MODULES if name.startswith("DeepSpeed"))


ABSENT: Any = object()
"""In place of a default: there is no such field."""


@dataclass(frozen=True)
class Difference:
    """A field whose default is `found` in the installed library and `known` in the table."""

    library: str
    """Name and version."""
    class_name: str
    field: str
    known: Any
    found: Any
    row: Field | None
    """None for a field that the table does not have."""

    def __str__(self) -> str:
        known, found = (
            "no such field" if v is ABSENT else f"default {v!r}" for v in (self.known, self.found)
        )
        return f"{self.library}: {self.class_name}.{self.field}: {found}, in the table {known}"

    @property
    def matters(self) -> bool:
        """Whether a run would compute something else than the table says."""
        if self.row is None:
            return False
        if self.found is ABSENT:  # a switch that is gone is off
            return self.row.kind == "rely" or (self.row.kind == "set" and self.row.value != self.row.default)
        return self.row.kind == "rely"


def installed(class_name: str) -> dict[str, Any]:
    """The defaults of the installed class, by field, as plain values."""
    module = importlib.import_module(MODULES[class_name])
    if class_name == "DeepSpeedConfig":  # it reads a mapping; its defaults are constants
        names = table()[class_name]
        found = {name: getattr(module, f"{name.upper()}_DEFAULT", ABSENT) for name in names}
        return {name: plain(value) for name, value in found.items() if value is not ABSENT}
    cls = getattr(module, class_name)
    if dataclasses.is_dataclass(cls):
        return {f.name: plain(_default(f)) for f in dataclasses.fields(cls) if f.init}
    return {
        name: plain(info.get_default(call_default_factory=True)) for name, info in cls.model_fields.items()
    }


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def plain(value: Any) -> Any:
    """`value` as the table writes it."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # DeepSpeed has an int of its own
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return f"({type(value).__name__})"


def differences(class_name: str) -> list[Difference]:
    """Where the installed class has other fields or defaults than the table."""
    real, rows, found = installed(class_name), table()[class_name], []
    releases = functools.cache(version)  # it reads a file each time
    for field in sorted({*real, *rows}):
        row, now = rows.get(field), real.get(field, ABSENT)
        inherited = class_name in STAGES.values() and field in table()[BASE]
        name = MODULES[BASE if inherited else class_name].partition(".")[0]
        release = releases(name)
        known: Any = ABSENT if row is None else row.default
        if row is not None and row.since and Version(release) < Version(row.since):
            known = row.before[0] if row.before else ABSENT
        if type(known) is not type(now) or known != now:
            found.append(Difference(f"{name} {release}", class_name, field, known, now, row))
    return found


def refuse_moved_defaults(class_names: Iterable[str]) -> None:
    """Raises `RequestError` for differences that matter; warns once of fields that the table lacks."""
    found = [difference for name in class_names for difference in differences(name)]
    wrong = [str(d) for d in found if d.matters]
    if wrong:
        raise RequestError(
            f"a default that the run relies on has moved: {'; '.join(wrong)}; install an earlier version of "
            "the library, or a posttrain that knows this one"
        )
    new = [f"{d.class_name}.{d.field} = {d.found!r} ({d.library})" for d in found if d.row is None]
    if new:
        log.warning("settings that posttrain does not know and leaves at their defaults: %s", ", ".join(new))


def used_classes(config_class: str) -> list[str]:
    """The classes of the table that a run with TRL's `config_class` goes through, under this launcher."""
    return [config_class, *ALWAYS, *(DEEPSPEED if engine_asked().startswith("zero") else ())]
