"""Adapters: loading trained ones and merging them into their base, the config of a new one from a recipe, and
what the fused head supports of them.

Left out: attaching a new one (peft, through the trainers) and its forward on the head (`head.py`); where
adapters lie (`rundir/adapters.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from posttrain.errors import RequestError, WorkError
from posttrain.recipe.library_fields import fixed
from posttrain.recipe.schema import Lora
from posttrain.rundir.adapter_fit import refuse_unmergeable


def attach(base: nn.Module, place: str, revision: str | None) -> PeftModel:
    """`base` with the trained adapter at `place` (a folder, or a hub id with its `revision`), in eval mode.

    Raises:
        RequestError: the adapter does not fit the base, or its file lacks weights.
    """
    config = PeftConfig.from_pretrained(place, revision=revision)
    config.inference_mode, config.base_model_name_or_path = True, base.name_or_path
    try:
        model = get_peft_model(base, config)
        result = model.load_adapter(place, "default", revision=revision)
    except (RuntimeError, ValueError) as error:  # sizes that differ; modules that the base does not have
        lines = str(error).strip().splitlines()
        reason = next((line.strip() for line in lines if "size mismatch" in line), lines[0])
        raise RequestError(f"{place} does not fit its base {base.name_or_path}: {reason}") from error
    if result.missing_keys or result.unexpected_keys:
        kind = "lacks" if result.missing_keys else "has weights that do not belong to the base:"
        first = (result.missing_keys or result.unexpected_keys)[0]
        raise RequestError(f"{place} does not fit its base {base.name_or_path}: it {kind} {first}")
    return model.eval()


def merge(model: PeftModel, place: str) -> nn.Module:
    """`model` as a plain model whose weights contain the adapter, called `place`.

    Where head and embedding are one weight and the adapter changes one of them, they become two: a merged
    weight that both used would change the other as well (peft#2018).

    Raises:
        RequestError: the adapter cannot be written as a change of the base's weights.
    """
    refuse_unmergeable(place, model.peft_config["default"].to_dict())
    base = model.get_base_model()
    _untie(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        plain = model.merge_and_unload(safe_merge=True)
    plain.name_or_path = plain.config._name_or_path = place
    return plain.requires_grad_(True)


def _untie(model: nn.Module) -> None:
    layers = model.get_output_embeddings(), model.get_input_embeddings()
    head, embedding = (x.get_base_layer() if hasattr(x, "get_base_layer") else x for x in layers)
    adapted = (head, embedding) != layers
    if adapted and getattr(head, "weight", None) is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())


def lora_config(lora: Lora, revision: str | None) -> LoraConfig:
    """peft's LoraConfig.

    `revision`: of a base from the hub, which is loaded again to score the adapter.

    Raises:
        RequestError: peft refuses `lora.options`.
    """
    targets = "all-linear" if lora.target_modules == ["all-linear"] else lora.target_modules
    values = fixed("LoraConfig") | {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": targets,
        "modules_to_save": lora.modules_to_save or None,
        "revision": revision,
    }
    fields = {f.name for f in dataclasses.fields(LoraConfig)}
    try:
        return LoraConfig(**{k: v for k, v in values.items() if k in fields} | lora.options)
    except (TypeError, ValueError) as error:
        raise RequestError(f"model.lora.options: {error}") from error


def refused_by_peft(error: Exception) -> bool:
    """Whether peft raised `error`, or what it called: the adapter that it was to attach does not fit. Memory
    that is not enough says nothing of the adapter."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = any(frame.f_globals.get("__name__", "").startswith("peft.") for frame in frames)
    return inside and not isinstance(error, RequestError | WorkError | MemoryError | torch.OutOfMemoryError)


def off_is_start(lora: Lora) -> bool:
    """Whether the model with its adapter off is the model that the adapter was attached to.

    It is not where the adapter trains biases, which stay on, nor where its initialisation takes a part out of
    the base (arXiv 2404.02948, 2406.01775). A reference is then loaded apart.
    """
    taken = lora.options.get("init_lora_weights") in ("pissa", "olora")
    return not taken and lora.options.get("bias", "none") == "none"


def refuse_head_adapter(head: nn.Module) -> None:
    """Raises `RequestError` unless the head is X W^T + s (dropout(X) A^T) B^T, as the fused head computes."""
    active = head.active_adapters
    problem = None
    if not isinstance(head, Linear):
        problem = f"of type {type(head).__module__}.{type(head).__name__}"
    elif len(active) != 1:
        problem = f"with {len(active)} active adapters"
    elif head.lora_variant:
        problem = f"of the variant {type(next(iter(head.lora_variant.values()))).__name__}"
    elif head.fan_in_fan_out:
        problem = "with fan_in_fan_out"
    elif any(head.lora_bias.values()):
        problem = "with lora_bias"
    if problem is not None:
        raise RequestError(
            f"model.lora: an adapter {problem} on the output head is not supported; use one plain LoRA (no "
            "use_dora, no lora_bias), or list the head in model.lora.modules_to_save"
        )


@contextlib.contextmanager
def head_without_adapter(model: Any) -> Iterator[None]:
    """While TRL's trainer is built, the output head is the layer below its adapter.

    TRL refuses an adapter on the head because its own fused head would not train it; ours does (`head.py`).
    """
    plain = model.get_output_embeddings

    def below() -> Any:
        head = plain()
        return head.get_base_layer() if hasattr(head, "lora_A") else head

    model.get_output_embeddings = below
    try:
        yield
    finally:
        del model.get_output_embeddings
