"""The fused head: the loss is computed inside the output head's own forward, so that no T x V logits exist.

A patch of two `forward` methods, of the model and of its output embedding. Because the loss runs inside the head
*module's* forward, whatever shards that module (DDP, ZeRO-3, tied or not) gathers and releases its weight by its
own hooks. Left out, and refused by name until the kernel can do them: FSDP2, a bias, softcap or scale on the
logits, LoRA on the head, mixture-of-experts balancing losses.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from posttrain.errors import RequestError
from posttrain_kernels import LossOutput, confidence_limited

LOGIT_FIELDS = {
    "final_logit_softcapping": "softcap on the logits",
    "logit_scale": "a logit scale",
    "logits_scaling": "a logit scale",
    "output_multiplier": "a logit scale",
    "lm_head_multiplier": "a logit scale",
}
"""Config fields by which transformers models change their logits after the head."""


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
