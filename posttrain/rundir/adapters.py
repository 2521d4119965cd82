"""Adapters on disk: the chain of folders from an adapter down to the full model that it changes.

An adapter may lie on another one: the third of three LoRA stages is an adapter on an adapter on an adapter on
a model. `posttrain/models/load.py` loads a chain as one model. Left out: loading and merging, adapters that
are only on a hub (loading finds those). Reads JSON and the headers of safetensors files; imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import RequestError
from posttrain.rundir.proof import digest, refuse_damaged

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""Opens the names of peft's weights; what follows is the name in the base."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Adapter:
    """What an adapter says of itself."""

    place: str
    """Its folder, or its hub id."""
    base: str
    """Folder or hub id of the model or adapter that it changes."""
    revision: str | None
    """Of `base`, where that is a hub id."""
    options: dict[str, Any]
    """`model.options` of the stage that trained it: they change the forward, and no config.json has them."""


def adapter_in(folder: str | Path) -> Adapter | None:
    """The adapter in `folder`; None where there is none. Raises `RequestError`, see `adapter_of`."""
    file = Path(folder) / CONFIG
    return adapter_of(str(folder), file) if file.is_file() else None


def adapter_of(place: str, file: Path) -> Adapter:
    """The adapter at `place` whose adapter_config.json is `file`.

    A relative path to its base is looked up from the working directory, then from the folders above `file`.

    Raises:
        RequestError: the file is damaged, or the base is missing.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{file} is damaged or not an adapter's config ({error})") from error
    if not base or not isinstance(base, str):
        raise RequestError(f"{file} names no base model (base_model_name_or_path), so it cannot be loaded")
    return Adapter(place, _existing(base, file), config.get("revision"), _options(file.parent))


def _existing(base: str, file: Path) -> str:
    if Path(base).exists():
        return base
    found = next((above / base for above in file.absolute().parents if (above / base).exists()), None)
    if found is not None:
        return str(found)
    if base.count("/") > 1 or base.startswith((".", "/", "~", "runs/")):  # a hub id is `name` or `org/name`
        raise RequestError(
            f"{file.parent} is an adapter on {base}, which does not exist (any more): restore that folder, "
            f"or set base_model_name_or_path in {file} to where it is now"
        )
    return base


def _options(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "checkpoint.json").read_text(encoding="utf-8")).get("model_options", {})
    except (OSError, ValueError, AttributeError):
        return {}


def chain(place: str | Path) -> list[str]:
    """`place`, and below an adapter its base, and so on down to a full model or a hub id.

    Raises:
        RequestError: a base is missing, the adapters refer to each other in a circle, or a file of a run's
            checkpoint among them is damaged, other than weights.
    """
    places = [str(place)]
    refuse_damaged(place, "text")
    while adapter := adapter_in(places[-1]):
        if adapter.base in places:
            raise RequestError(f"{places[-1]} is an adapter on {adapter.base}, which is an adapter on it")
        refuse_damaged(adapter.base, "text")
        places.append(adapter.base)
    return places


def tokenizer_place(place: str | Path) -> str:
    """Where the tokenizer of the model at `place` is: `place`, or below adapters that brought none along."""
    places = chain(place)
    return next((p for p in places if any((Path(p) / name).is_file() for name in TOKENIZER)), places[-1])


def identity(place: str | Path, revision: str | None) -> str:
    """A hash of all files that decide the forward of the model at `place`: weights, configs, code, options.

    Of a hub id, the id and `revision`.
    """
    total = hashlib.sha256()
    for part in chain(place):
        folder = Path(part)
        adapter = adapter_in(folder)
        if not folder.is_dir():
            total.update(f"{part} {revision}".encode())
            continue
        total.update(digest(folder).encode())
        for file in [folder / "config.json", folder / CONFIG, *sorted(folder.glob("*.py"))]:
            total.update(file.read_bytes() if file.is_file() else b"-")
        if adapter is not None:
            total.update(json.dumps(adapter.options, sort_keys=True).encode())
            revision = adapter.revision
    return total.hexdigest()[:32]


def refuse_unfit(place: str | Path, quantized: bool) -> None:
    """Raises `RequestError` if the adapter at `place` cannot be merged into its base. No weights are read.

    `quantized`: whether the recipe quantises the weights when they are loaded.
    """
    places = chain(place)
    if len(places) == 1:
        return
    ground = Path(places[-1])
    if quantized or _is_quantized(ground):
        raise quantized_base(place, ground)
    theirs = _shapes(ground)
    for part in places[:-1]:
        for name, own, base in _unequal(_shapes(Path(part)), theirs):
            raise RequestError(
                f"{part} does not fit its base {places[-1]}: {name} is {own} in the adapter and {base} in "
                "the base, so base_model_name_or_path in its adapter_config.json names another model than it "
                "was trained on"
            )


def quantized_base(place: str | Path, ground: str | Path) -> RequestError:
    """The refusal of an adapter at `place` whose full model `ground` is quantised."""
    return RequestError(
        f"{place} is an adapter, which cannot be merged into the quantised weights of {ground}: export it "
        "to a full model in a higher precision first (posttrain export), and start from that"
    )


def _is_quantized(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _shapes(folder: Path) -> Shapes:
    """Shapes of the weights in the safetensors files of `folder`, by name; none of a damaged file."""
    found: Shapes = {}
    for file in folder.glob("*.safetensors"):
        try:
            with file.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(length if length < 1 << 30 else 0))
        except (OSError, ValueError):
            continue
        found |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return found


def _unequal(adapter: Shapes, base: Shapes) -> Iterator[tuple[str, str, str]]:
    """(weight, shape that the adapter changes, shape in the base) where they differ.

    Names that the base's files do not have are skipped: a library may rename weights while it loads them.
    """
    for name, shape in adapter.items():
        inner = name.removeprefix(PREFIX)
        if inner in base:  # a module saved whole
            own = shape
        elif inner.endswith("lora_A.weight") and (other := adapter.get(name.replace("lora_A", "lora_B"))):
            inner = inner.removesuffix("lora_A.weight") + "weight"
            own = [other[0], shape[1]]
        else:
            continue
        there = base.get(inner)
        # Conv1D, of GPT-2, stores a weight the other way round
        if there is not None and len(there) == 2 and there not in (own, own[::-1]):
            yield inner, " x ".join(map(str, own)), " x ".join(map(str, there))
