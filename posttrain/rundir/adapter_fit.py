"""Whether an adapter on disk can be merged into its base, known before any weight is read.

Reads JSON and the headers of safetensors files; imports no torch. Left out: adapters and bases that are only
on a hub, and names that a library changes while it loads a model: loading finds those
(`posttrain/models/adapters.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from posttrain.errors import RequestError
from posttrain.rundir.adapters import CONFIG, adapter_in, chain, model_config, quantized_base_error

PREFIX = "base_model.model."
"""Opens the names of peft's weights; what follows is the name in the base."""
UNMERGEABLE = {
    "layer_replication": "the layers that it repeats share their weights",
    "alora_invocation_tokens": "it acts on some tokens only",
    "arrow_config": "it mixes several adapters",
}
"""Keys of an adapter's config under which it is not a change of its base's weights, and why."""
Shapes = dict[str, list[int]]


def refuse_unfit(place: str | Path, quantized: bool) -> None:
    """Raises `RequestError` if the adapter at `place` cannot be merged into its base. No weights are read.

    `quantized`: whether the recipe quantises the weights when they are loaded.
    """
    places = chain(place)
    if len(places) == 1:
        return
    ground = Path(places[-1])
    if quantized or "quantization_config" in model_config(ground):
        raise quantized_base_error(place, ground)
    if ground.is_dir() and not (ground / "config.json").is_file():
        raise RequestError(
            f"{places[-2]} is an adapter on {ground}, which contains no model (no config.json)"
        )
    theirs = _shapes(ground)
    for part in places[:-1]:
        adapter, ours = adapter_in(part), _shapes(Path(part))
        assert adapter is not None  # all but the last of a chain are
        refuse_unmergeable(part, adapter.config)
        if not ours and not (Path(part) / "adapter_model.bin").is_file():
            raise RequestError(f"{part} has an {CONFIG} but no weights (adapter_model.safetensors)")
        for name, own, base in _unequal(ours, theirs):
            raise RequestError(
                f"{part} does not fit its base {places[-1]}: {name} is {own} in the adapter and {base} in "
                f"the base, so base_model_name_or_path in its {CONFIG} names another model than it was "
                "trained on"
            )
        bare = next((n for n in ours if n.endswith("lora_B.bias") and _no_bias(n, theirs)), None)
        if bare is not None:
            raise RequestError(
                f"{part} was trained with lora_bias and cannot be merged: {bare.removeprefix(PREFIX)} "
                "changes the bias of a layer that has none"
            )


def refuse_unmergeable(place: str, config: dict[str, Any]) -> None:
    """Raises `RequestError` if an adapter of `config` (its adapter_config.json) cannot be written as a change
    of its base's weights."""
    for key, reason in UNMERGEABLE.items():
        if config.get(key):
            raise RequestError(f"{place} is an adapter with {key}, which cannot be merged: {reason}")


def _shapes(folder: Path) -> Shapes:
    """Shapes of the weights in the safetensors files of `folder`, by name."""
    found: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "numpy") as weights:
                names = weights.keys()
                found |= {name: weights.get_slice(name).get_shape() for name in names}
        except (OSError, SafetensorError) as error:
            raise RequestError(f"{file} is damaged: {error}") from error
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


def _no_bias(name: str, base: Shapes) -> bool:
    """Whether `name`, of an adapter's bias, belongs to a layer of the base that has a weight and no bias."""
    layer = name.removeprefix(PREFIX).removesuffix("lora_B.bias")
    return f"{layer}weight" in base and f"{layer}bias" not in base
