"""LoRA adapters: their config from a recipe, and what the fused head supports of them.

Left out: attaching them to a model (peft, through the trainers) and their forward on the head (`head.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import nn

from posttrain.errors import RequestError
from posttrain.recipe.library_fields import fixed
from posttrain.recipe.schema import Lora


def lora_config(lora: Lora | None) -> LoraConfig | None:
    """peft's LoraConfig, or None for full fine-tuning.

    Raises:
        RequestError: peft refuses `lora.options`.
    """
    if lora is None:
        return None
    targets = "all-linear" if lora.target_modules == ["all-linear"] else lora.target_modules
    values = fixed("LoraConfig") | {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": targets,
        "modules_to_save": lora.modules_to_save or None,
    }
    fields = {f.name for f in dataclasses.fields(LoraConfig)}
    try:
        return LoraConfig(**{k: v for k, v in values.items() if k in fields} | lora.options)
    except (TypeError, ValueError) as error:
        raise RequestError(f"model.lora.options: {error}") from error


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
