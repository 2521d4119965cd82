"""A forward of a model before it is trained, as the checks of this room need it: in the precision in which
the run computes, with attention that runs where the weights are; and the families that are accepted where no
forward is possible.

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
SAME_LOGITS = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gptj", "olmo2"),
    *("granite", "cohere", "cohere2"),
)
"""Model types whose fused loss and gradients are tested."""
KEEPS_DOCUMENTS_APART = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi"),
    *("phi3", "olmo", "olmo2", "olmo3", "olmoe", "granite", "gpt2", "gptj", "gpt_neox", "cohere", "cohere2"),
    *("glm", "glm4", "smollm3", "starcoder2", "stablelm", "nemotron", "ernie4_5", "exaone4", "helium"),
)
"""Model types whose packed documents are independent under eager, SDPA and flash attention. They may differ:
GPT-BigCode has masks that keep documents apart and no position ids for flash attention; OPT the reverse."""
TESTED = {
    "logits": (
        SAME_LOGITS,
        "the logits of {kind} cannot be checked while its weights are sharded; use launch/zero2.yaml or "
        "launch/ddp.yaml",
    ),
    "documents": (
        KEEPS_DOCUMENTS_APART,
        "data.padding_free: whether {kind} keeps documents apart cannot be measured before the engine is set "
        "up; set it to false, or use launch/ddp.yaml",
    ),
}
"""What is measured -> the families for which tests say it, and the refusal of others."""


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded already (ZeRO-3) or not there: no forward is possible yet."""
    return any(hasattr(p, "ds_id") or p.is_meta for p in model.parameters())


def attends_elsewhere(model: nn.Module) -> bool:
    """Whether the weights are on a CPU, where the model's attention does not run: flash attention under FSDP
    or ZeRO-2, before the engine is set up."""
    place = model.get_input_embeddings().weight.device.type
    return place == "cpu" and model.config._attn_implementation not in CPU_ATTENTION


def refuse_untested(kind: str, what: str) -> None:
    """Raises `RequestError` for a model that cannot be run yet where its text model's type, `kind`, is none
    of `TESTED[what]`."""
    families, refusal = TESTED[what]
    if kind not in families:
        raise RequestError(
            f"{refusal.format(kind=kind)}, or one of the tested families: {', '.join(families)}"
        )


def probe_ids(model: nn.Module, length: int) -> torch.Tensor:
    """A row [1, length] of different tokens, as far as the vocabulary has them, where the embedding is."""
    embedding = model.get_input_embeddings().weight
    return torch.arange(1, length + 1, device=embedding.device)[None] % len(embedding)


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
