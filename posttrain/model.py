"""Loads models as a recipe says, and gives them a fused head: the loss is computed inside the head's own
forward, from hidden states, so that no T x V logits exist.

The fused head is a patch of two `forward` methods, of the model and of its output embedding. Because the loss
runs inside the head *module's* forward, whatever shards that module (DDP, ZeRO-3, tied or not) gathers and
releases its weight by its own hooks. Left out, and refused by name until the kernel can do them: FSDP2, a bias,
softcap or scale on the logits, LoRA on the head, mixture-of-experts balancing losses.
"""

from __future__ import annotations

import functools
import logging
import types
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import ModelOutput, is_flash_attn_2_available

from posttrain.errors import RequestError
from posttrain.recipe.schema import Model
from posttrain_kernels import LossOutput, confidence_limited

log = logging.getLogger(__name__)

LOGIT_FIELDS = {
    "final_logit_softcapping": "softcap on the logits",
    "logit_scale": "a logit scale",
    "logits_scaling": "a logit scale",
    "output_multiplier": "a logit scale",
    "lm_head_multiplier": "a logit scale",
}
"""Config fields by which transformers models change their logits after the head."""

LOADING = (
    OSError, ValueError, TypeError, ImportError, RuntimeError, EOFError, UnpicklingError, SafetensorError,
)  # fmt: skip
"""What `from_pretrained` raises for folders that hold no model, half of one, or arguments it does not know."""


@dataclass
class FusedOutput(ModelOutput):
    """What a fused forward returns; B x (L-1) fields are aligned with `labels[:, 1:]`, 0 where ignored.

    The first six names are those of TRL's fused head, so that its metrics read this output too.
    """

    loss: torch.Tensor | None = None  # scalar, carries the gradient
    log_probs: torch.Tensor | None = None  # [B, L-1] fp32
    entropy: torch.Tensor | None = None  # [B, L-1] fp32
    is_top1: torch.Tensor | None = None  # [B, L-1] bool
    label_mask: torch.Tensor | None = None  # [B, L-1] bool
    aux_loss: torch.Tensor | None = None
    segment_log_probs: torch.Tensor | None = None  # [S] fp32
    coef: torch.Tensor | None = None  # [S] fp32: F, the weight on the cross-entropy gradient


def attention_implementation(choice: str) -> str:
    """The attention implementation to ask transformers for; `auto` says in the log what it picked."""
    if choice != "auto":
        return choice
    flash = torch.cuda.is_available() and is_flash_attn_2_available()
    picked = "flash_attention_2" if flash else "sdpa"
    reason = "flash-attn is installed" if flash else "flash-attn or a GPU is missing"
    log.info("attention: %s (%s)", picked, reason)
    return picked


def load_model(config: Model, init: str | Path | None, tokenizer: Any, seed: int) -> nn.Module:
    """The causal language model of `config` with an embedding row for every token of `tokenizer`.

    `init` is the resolved place of trained weights (None with `from_config`). Raises `RequestError` where
    the model cannot be had.
    """
    attention = attention_implementation(config.attention)
    if config.from_config is not None:
        torch.manual_seed(seed)
        model = _from_config(config, tokenizer, attention)
    else:
        model = _from_pretrained(config, str(init), attention)
    _resize(model, tokenizer, config)
    refuse_unsupported_head(model)
    return model


def _from_config(config: Model, tokenizer: Any, attention: str) -> nn.Module:
    assert config.from_config is not None
    options = config.from_config.options | {"vocab_size": len(tokenizer)}
    for name in ("pad", "bos", "eos"):
        options.setdefault(f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    try:
        shape = AutoConfig.for_model(config.from_config.model_type, **options)
        return AutoModelForCausalLM.from_config(
            shape, attn_implementation=attention, dtype=_dtype(config), **config.options
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(f"model.from_config does not describe a model: {error}") from error
    except Exception as error:  # huggingface_hub's strict dataclasses raise a class of their own
        if "Strict" in type(error).__name__ or "Validation" in type(error).__name__:
            raise RequestError(f"model.from_config.options: {error}") from error
        raise


def _from_pretrained(config: Model, init: str, attention: str) -> nn.Module:
    quantization = None
    if config.quantization is not None:
        q = config.quantization
        if not torch.cuda.is_available():
            raise RequestError("model.quantization needs a GPU; train without it on a CPU")
        quantization = BitsAndBytesConfig(
            load_in_4bit=q.bits == 4,
            load_in_8bit=q.bits == 8,
            bnb_4bit_quant_type=q.type,
            bnb_4bit_use_double_quant=q.double,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            init,
            revision=config.revision or "main",
            attn_implementation=attention,
            dtype=torch.bfloat16 if quantization else _dtype(config),
            quantization_config=quantization,
            trust_remote_code=config.trust_remote_code,
            **config.options,
        )
    except LOADING as error:
        raise RequestError(f"model.init = {init!r} cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, SafetensorError | EOFError | UnpicklingError):
        return f"its weights are damaged ({error})"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _dtype(config: Model) -> torch.dtype:
    return torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)


def _resize(model: nn.Module, tokenizer: Any, config: Model) -> None:
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) <= rows:
        return
    if config.lora is not None:
        # An adapter saved over grown rows does not load with from_pretrained: the base on disk has fewer.
        raise RequestError(
            f"{len(tokenizer) - rows} token(s) are new to the model, which LoRA cannot add: choose a data.template "
            "whose tokens it knows, leave out model.add_tokens, or train all weights"
        )
    log.info("vocabulary: %d -> %d rows; new ones start around the mean", rows, len(tokenizer))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=True)


def refuse_unsupported_head(model: nn.Module) -> None:
    """Raises `RequestError` naming what the fused head cannot do for this model."""
    config = model.config.get_text_config()
    for field, what in LOGIT_FIELDS.items():
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise RequestError(
                f"{config.model_type} has {what} ({field}), which the loss does not support yet"
            )
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise RequestError(f"{type(model).__name__} has no output head with a weight")
    if getattr(head, "bias", None) is not None:
        raise RequestError(
            f"{type(model).__name__} has a bias on its output head, not supported yet"
        )
    if getattr(config, "output_router_logits", None) and getattr(config, "router_aux_loss_coef", 0):
        raise RequestError(
            f"{config.model_type} trains with a load-balancing loss, which is not supported yet; "
            "set model.options.output_router_logits=false to train without it"
        )


def attach_fused_head(model: nn.Module) -> None:
    """Lets `model(..., labels=, segment_ids=, fused={...})` return `FusedOutput` instead of logits.

    `fused` holds keyword arguments of `posttrain_kernels.confidence_limited`. Without it the forward is the
    model's own, so generation is unchanged. Replaces a fused head that TRL has put there.
    """
    model.__dict__.pop("forward", None)
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self, *args, fused=None, labels=None, segment_ids=None, **kwargs):
        if fused is None:
            return (
                original(*args, **kwargs)
                if labels is None
                else original(*args, labels=labels, **kwargs)
            )
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # [B, L-1, H]
        shape = hidden.shape[:2]
        target, segments = labels[:, 1:], segment_ids[:, 1:]  # [B, L-1]
        out = LossOutput(
            *_head(self)(
                hidden.reshape(-1, hidden.shape[-1]),
                fused={"labels": target.reshape(-1), "segment_ids": segments.reshape(-1), **fused},
            )
        )
        return FusedOutput(
            loss=out.loss,
            log_probs=out.log_probs.view(shape),
            entropy=out.entropy.view(shape),
            is_top1=out.correct.view(shape),
            label_mask=target != -100,
            segment_log_probs=out.segment_log_probs,
            coef=out.coef,
        )

    model.forward = types.MethodType(forward, model)
    _patch_head(_inner(_head(model)))


def _head(model: nn.Module) -> nn.Module:
    # Looked up on each call: peft replaces the head module after the patch.
    return model.get_output_embeddings()


def _inner(head: nn.Module) -> nn.Module:
    """The module that owns the weight: peft wraps a head named in `modules_to_save`."""
    saved = getattr(head, "modules_to_save", None)
    return head if saved is None else saved[head.active_adapters[0]]


def _patch_head(head: nn.Module) -> None:
    head.__dict__.pop("forward", None)
    plain = head.forward

    def forward(self, hidden, fused=None):
        if fused is None:
            return plain(hidden)
        # A plain tuple: the hooks of DeepSpeed look for tensors in tuples, not in named ones.
        return tuple(confidence_limited(hidden, self.weight, **fused))

    head.forward = types.MethodType(forward, head)


def load_scored(path: str | Path, device: str) -> nn.Module:
    """A checkpoint for evaluation: eval mode, weights as saved, adapters attached, on `device`."""
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except LOADING as error:
        raise RequestError(f"{path} cannot be loaded: {_reason(error)}") from error
    return model.eval().to(device)
