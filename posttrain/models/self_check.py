"""A forward of a model before it is trained, as the checks of this room need it: in the precision in which
the run computes, with attention that runs where the weights are.

Left out: what is measured (`logits.py`, `dropout.py`, `documents.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from posttrain.errors import RequestError

MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""accelerate's `mixed_precision` -> the type of autocast; "no" has none."""
CPU_ATTENTION = (None, "eager", "sdpa")
"""Implementations of attention that run on a CPU."""


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded already (ZeRO-3) or not there: no forward is possible yet."""
    return any(hasattr(p, "ds_id") or p.is_meta for p in model.parameters())


def attends_elsewhere(model: nn.Module) -> bool:
    """Whether the weights are on a CPU, where the model's attention does not run: flash attention under FSDP
    or ZeRO-2, before the engine is set up."""
    place = model.get_input_embeddings().weight.device.type
    return place == "cpu" and model.config._attn_implementation not in CPU_ATTENTION


@contextlib.contextmanager
def as_trained(model: nn.Module, mixed: str) -> Iterator[torch.device]:
    """Forwards as under training, but in eval mode; yields the device.

    `mixed` is accelerate's `mixed_precision` of the run. Attention that does not run on a CPU is replaced
    by eager attention there.

    Raises:
        RequestError: a forward fails in a library, as that of flash attention on float32.
    """
    device, chosen = model.get_input_embeddings().weight.device, model.config._attn_implementation
    training, elsewhere = model.training, attends_elsewhere(model)
    model.eval()
    try:
        if elsewhere:
            model.set_attn_implementation("eager")
        with torch.autocast(device.type, MIXED.get(mixed), enabled=mixed in MIXED):
            yield device
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NameError) as error:  # NameError: transformers 5.24 on flash attention in Falcon
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        weights = str(model.dtype).removeprefix("torch.")
        remedy = "" if chosen in (None, "eager", "sdpa") else "; try model.attention: sdpa"
        raise RequestError(
            f"a forward of {model.config.model_type} fails with model.attention = {chosen}, weights in "
            f"{weights} and mixed precision {mixed}: {reason}{remedy}"
        ) from error
    finally:
        if elsewhere:
            model.set_attn_implementation(chosen)
        model.train(training)
