"""The fused head: the loss is computed inside the output head's own forward, so that no T x V logits exist.

A patch of the `forward` methods of the model and of its output embedding. Because the loss runs inside the
forward of the head *module*, whatever shards that module (DDP, ZeRO-3, FSDP2, tied or not) gathers and
releases its weight with its own hooks. The load-balancing loss of a mixture of experts is that of the model's
own forward. Left out: which models the fused head supports (`logits.py`), which adapters on the head
(`adapters.py`).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from posttrain.data.tokens import IGNORED
from posttrain.errors import RequestError
from posttrain.models.adapters import refuse_head_adapter
from posttrain.models.logits import logit_view, refuse_other_logits
from posttrain_kernels import LossOutput, TokenOutput, confidence_limited, token_log_probs


@dataclass
class FusedOutput(ModelOutput):
    """What a fused forward returns; fields [B, L-1] are aligned with `labels[:, 1:]`, 0 where ignored.

    The first six names are those of TRL's fused head, so that its metrics work with this output.
    """

    loss: torch.Tensor | None = None  # scalar, carries the gradient
    log_probs: torch.Tensor | None = None  # [B, L-1] fp32; carries gradient under `tokens`
    entropy: torch.Tensor | None = None  # [B, L-1] fp32; likewise
    is_top1: torch.Tensor | None = None  # [B, L-1] bool
    label_mask: torch.Tensor | None = None  # [B, L-1] bool
    aux_loss: torch.Tensor | None = None  # scalar: the load-balancing loss, without its coefficient
    log_z: torch.Tensor | None = None  # [B, L-1] fp32; likewise
    segment_log_probs: torch.Tensor | None = None  # [S] fp32
    coef: torch.Tensor | None = None  # [S] fp32: F, the weight on the cross-entropy gradient
    skipped: torch.Tensor | None = None  # [] int64: trained tokens left out by `skip_below`


def attach_fused_head(model: nn.Module, mixed: str = "no") -> None:
    """Makes `model(..., labels=, segment_ids=, fused={...})` return `FusedOutput` instead of logits.

    `fused` contains keyword arguments of `posttrain_kernels.confidence_limited`. With `tokens={...}` instead,
    keyword arguments of `token_log_probs`, the output has no loss and its log-probabilities carry the
    gradient. Without either, the forward is the model's own, so generation is unchanged. Replaces a fused
    head installed by TRL. `mixed`: accelerate's `mixed_precision` of the run.

    Raises:
        RequestError: see `refuse_other_logits`; an adapter on the head that is not supported.
    """
    model.__dict__.pop("forward", None)
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self, *args, fused=None, tokens=None, labels=None, segment_ids=None, **kwargs):
        if fused is None and tokens is None:
            return original(*args, **kwargs) if labels is None else original(*args, labels=labels, **kwargs)
        kwargs["use_cache"] = False
        hidden, balance = _hidden(self, original, args, kwargs)
        hidden = hidden[:, :-1]  # [B, L-1, H]
        target = labels[:, 1:]  # [B, L-1]
        call: dict[str, Any] = {"labels": target.reshape(-1)}
        if tokens is None:
            call |= {"function": confidence_limited, "segment_ids": segment_ids[:, 1:].reshape(-1)}
        else:
            call |= {"function": token_log_probs}
        values = _head(self)(hidden.reshape(-1, hidden.shape[-1]), fused=call | (fused or tokens))
        output = _output(LossOutput(*values) if tokens is None else TokenOutput(*values), target)
        output.aux_loss = balance
        return output

    model.forward = types.MethodType(forward, model)
    _patch(_head(model), logit_view(model.config.get_text_config()))
    refuse_other_logits(model, mixed)


NO_LOSS = (
    "computes no load-balancing loss in transformers; set model.options.output_router_logits=false to train "
    "without it"
)


def balancing_coefficient(model: nn.Module) -> float:
    """The weight of the load-balancing loss of `model`, 0 where its config does not ask for one
    (`output_router_logits`). Raises `RequestError` where it asks and the family's code has none."""
    if not getattr(model.config.get_text_config(), "output_router_logits", None):
        return 0.0
    for name in ("router_aux_loss_coef", "aux_loss_coef"):
        if hasattr(model, name):
            return float(getattr(model, name))
    raise RequestError(f"{model.config.model_type} {NO_LOSS}")


def _hidden(model: nn.Module, original: Callable, args: Any, kwargs: dict) -> tuple[Tensor, Tensor | None]:
    """Input of the head [B, L, H], and the load-balancing loss where the config asks for one.

    Each family calls its loss in its own way, so the model's own forward does it; of the logits it computes
    those of one position.
    """
    if not balancing_coefficient(model):
        return model.base_model(*args, **kwargs).last_hidden_state, None
    found: list[Tensor] = []
    hook = model.base_model.register_forward_hook(lambda _, __, out: found.append(out.last_hidden_state))
    try:
        out = original(*args, output_router_logits=True, logits_to_keep=1, **kwargs)
    finally:
        hook.remove()
    balance = getattr(out, "aux_loss", None)
    if not isinstance(balance, Tensor):
        raise RequestError(f"{model.config.model_type} {NO_LOSS}")
    return found[0], balance


def _output(out: LossOutput | TokenOutput, target: torch.Tensor) -> FusedOutput:
    fields = out._asdict()
    # Copied where they carry gradient: an in-place operation on a view would drop FSDP2's hook.
    by_token = {
        name: fields[name].view(target.shape).clone()
        if fields[name].requires_grad
        else fields[name].view(target.shape)
        for name in ("log_probs", "entropy", "log_z")
    }
    return FusedOutput(
        loss=fields.get("loss"),
        is_top1=out.correct.view(target.shape),
        label_mask=target != IGNORED,
        **by_token,
        **{name: fields.get(name) for name in ("segment_log_probs", "coef", "skipped")},
    )


def _head(model: nn.Module) -> nn.Module:
    # looked up on each call, as peft replaces the head module after the patch
    return model.get_output_embeddings()


def _patch(head: nn.Module, view: dict[str, float]) -> None:
    """Patches the head, which may be wrapped by peft."""
    saved = getattr(head, "modules_to_save", None)
    if saved is not None:  # a trained copy of the head, and the head of the reference, with adapters off
        _patch_layer(head.original_module, view)
        head = saved[head.active_adapters[0]]
    if hasattr(head, "lora_A"):
        refuse_head_adapter(head)
        _patch_lora(head)
        head = head.get_base_layer()
    elif hasattr(head, "base_layer") or hasattr(head, "original_module"):
        raise RequestError(
            f"model.lora: {type(head).__name__} around the output head is not supported; "
            "use plain LoRA, or list the head in model.lora.modules_to_save"
        )
    _patch_layer(head, view)


def _replace_forward(module: nn.Module, fused_forward: Callable) -> None:
    module.__dict__.pop("forward", None)
    plain = module.forward

    def forward(self, hidden, *args, fused=None, **kwargs):
        if fused is None:
            return plain(hidden, *args, **kwargs)
        return fused_forward(self, hidden, **fused)

    module.forward = types.MethodType(forward, module)


def _patch_layer(layer: nn.Module, view: dict[str, float]) -> None:
    def fused_forward(self, hidden, function, **arguments):
        bias = getattr(self, "bias", None)
        # a plain tuple, because DeepSpeed's hooks do not look into named tuples
        return tuple(function(hidden, self.weight, bias=bias, **view, **arguments))

    _replace_forward(layer, fused_forward)


def _patch_lora(head: nn.Module) -> None:
    """Patches LoRA's A, B and the base layer as nested calls.

    Each weight is read inside the forward of the module that owns it, because ZeRO-3 gathers it only there.
    """
    (name,) = head.active_adapters

    def through_a(self, hidden, **call):
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.get_base_layer()(hidden, fused=call)
        down = self.lora_A[name]
        x = self._cast_input_dtype(hidden, down.weight.dtype)
        left = down(self.lora_dropout[name](x)) * self.scaling[name]  # [T, r]
        return self.lora_B[name](hidden, fused={**call, "left": left, "base": self.get_base_layer()})

    def through_b(self, hidden, left, base, **call):
        return base(hidden, fused={**call, "low_rank": (left, self.weight)})

    _replace_forward(head, through_a)
    _replace_forward(head.lora_B[name], through_b)
