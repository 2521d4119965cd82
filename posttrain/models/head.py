"""The fused head: the loss is computed inside the output head's own forward, so that no T x V logits exist.

A patch of the `forward` methods of the model and of its output embedding. Because the loss runs inside the head
*module's* forward, whatever shards that module (DDP, ZeRO-3, FSDP2, tied or not) gathers and releases its weight
by its own hooks. What a model does to its logits is read from its config and then measured. Left out, and refused
by name: logits that the measurement cannot explain, mixture-of-experts balancing losses, adapters on the head
other than one plain LoRA.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from posttrain.data.tokens import IGNORED
from posttrain.errors import RequestError
from posttrain_kernels import LossOutput, TokenOutput, confidence_limited, token_log_probs

MULTIPLIES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
DIVIDES = ("logits_scaling", "logits_mup_width_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Config fields by which transformers models change their logits: scaled first, capped last. A division of the
hidden states (MiniCPM3) is one of the logits, because no such model has a bias on its head."""

MEANS_OTHERWISE = {
    "hyperclovax": {"logits_scaling": MULTIPLIES},
    "mpt": {"logit_scale": ()},  # written in its configs, not read by its code
}
"""Families whose code takes a field of that name as another kind, or not at all."""

KNOWN = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "gptj",
    "olmo2",
    "granite",
    "cohere",
    "cohere2",
)
"""Model types whose loss and gradients were seen to equal their own; sharded weights cannot be measured."""


@dataclass
class FusedOutput(ModelOutput):
    """What a fused forward returns; B x (L-1) fields are aligned with `labels[:, 1:]`, 0 where ignored.

    The first six names are those of TRL's fused head, so that its metrics read this output too.
    """

    loss: torch.Tensor | None = None  # scalar, carries the gradient
    log_probs: torch.Tensor | None = None  # [B, L-1] fp32; carries gradient under `tokens`
    entropy: torch.Tensor | None = None  # [B, L-1] fp32; the same
    is_top1: torch.Tensor | None = None  # [B, L-1] bool
    label_mask: torch.Tensor | None = None  # [B, L-1] bool
    aux_loss: torch.Tensor | None = None
    log_z: torch.Tensor | None = None  # [B, L-1] fp32; as log_probs
    segment_log_probs: torch.Tensor | None = None  # [S] fp32
    coef: torch.Tensor | None = None  # [S] fp32: F, the weight on the cross-entropy gradient
    skipped: torch.Tensor | None = None  # [] int64: trained rows left out by `skip_below`


def logit_view(config: Any) -> dict[str, float]:
    """`logit_scale` and `softcap` of the loss for the model of `config` (its text part)."""
    view: dict[str, float] = {}
    scale, otherwise = 1.0, MEANS_OTHERWISE.get(config.model_type, {})
    for kind in (MULTIPLIES, DIVIDES, SOFTCAPS):
        for field in kind:
            value, meant = getattr(config, field, None), otherwise.get(field, kind)
            if not isinstance(value, int | float) or not meant:
                continue
            if meant is SOFTCAPS:
                view["softcap"] = float(value)
            else:
                scale = scale * value if meant is MULTIPLIES else scale / value
    return view if scale == 1.0 else {**view, "logit_scale": scale}


def refuse_unsupported_head(model: nn.Module) -> None:
    """Raises `RequestError` naming what the fused head cannot do for this model, before it is prepared."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise RequestError(f"{type(model).__name__} has no output head with a weight")
    if getattr(config, "output_router_logits", None) and getattr(config, "router_aux_loss_coef", 0):
        raise RequestError(
            f"{config.model_type} trains with a load-balancing loss, which is not supported yet; "
            "set model.options.output_router_logits=false to train without it"
        )


def attach_fused_head(model: nn.Module) -> None:
    """Lets `model(..., labels=, segment_ids=, fused={...})` return `FusedOutput` instead of logits.

    `fused` holds keyword arguments of `posttrain_kernels.confidence_limited`. With `tokens={...}` instead, those of
    `token_log_probs`, the output has no loss and its log-probabilities carry the gradient. Without either the
    forward is the model's own, so generation is unchanged. Replaces a fused head that TRL has put there.
    """
    model.__dict__.pop("forward", None)
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self, *args, fused=None, tokens=None, labels=None, segment_ids=None, **kwargs):
        if fused is None and tokens is None:
            return original(*args, **kwargs) if labels is None else original(*args, labels=labels, **kwargs)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # [B, L-1, H]
        target = labels[:, 1:]  # [B, L-1]
        call: dict[str, Any] = {"labels": target.reshape(-1)}
        if tokens is None:
            call |= {"function": confidence_limited, "segment_ids": segment_ids[:, 1:].reshape(-1)}
        else:
            call |= {"function": token_log_probs}
        values = _head(self)(hidden.reshape(-1, hidden.shape[-1]), fused=call | (fused or tokens))
        return _output(LossOutput(*values) if tokens is None else TokenOutput(*values), target)

    model.forward = types.MethodType(forward, model)
    _patch(_head(model), logit_view(model.config.get_text_config()))
    refuse_other_logits(model)


def _output(out: LossOutput | TokenOutput, target: torch.Tensor) -> FusedOutput:
    fields = out._asdict()
    # Copies where they carry gradient: an in-place operation on a view would drop FSDP2's hook.
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
    # Looked up on each call: peft replaces the head module after the patch.
    return model.get_output_embeddings()


def _patch(head: nn.Module, view: dict[str, float]) -> None:
    """Patch whatever stands for the head: the layer itself, or what peft has put around it."""
    saved = getattr(head, "modules_to_save", None)
    if saved is not None:  # a trained copy of the head
        head = saved[head.active_adapters[0]]
    if hasattr(head, "lora_A"):
        _refuse_adapters(head)
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
        # A plain tuple: the hooks of DeepSpeed look for tensors in tuples, not in named ones.
        return tuple(function(hidden, self.weight, bias=bias, **view, **arguments))

    _replace_forward(layer, fused_forward)


def _refuse_adapters(head: nn.Module) -> None:
    """The forward below knows logits = X W^T + s (dropout(X) A^T) B^T and nothing else."""
    from peft.tuners.lora.layer import Linear

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
            f"model.lora: an adapter {problem} on the output head is not supported; one plain LoRA is "
            "(no use_dora, no lora_bias), or list the head in model.lora.modules_to_save"
        )


def _patch_lora(head: nn.Module) -> None:
    """Each weight is read inside the forward of the module that owns it, one call within the next, because that is
    where ZeRO-3 has it gathered."""
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


LOUD = 50.0
"""Logits are compared at this size: near 0 a softcap changes nothing and a scale hardly anything."""


@torch.no_grad()
def refuse_other_logits(model: nn.Module) -> None:
    """Raises `RequestError` where the model's own logits say something else than the fused head.

    Measured on one row of a few tokens, with what enters the head made larger until the logits are `LOUD`. Weights
    that are sharded already (ZeRO-3) cannot be run before the engine is set up; there only `KNOWN` families pass.
    """
    config = model.config.get_text_config()
    if any(hasattr(p, "ds_id") or p.is_meta for p in model.parameters()):
        if config.model_type not in KNOWN:
            raise RequestError(
                f"the logits of {config.model_type} cannot be checked while its weights are sharded; "
                f"known to be right are {', '.join(KNOWN)}. Use launch/zero2.yaml or launch/ddp.yaml"
            )
        return
    embedding = model.get_input_embeddings().weight
    ids = torch.arange(1, 9, device=embedding.device)[None] % len(embedding)  # [1, 8]
    factor = 1.0
    hook = _head(model).register_forward_pre_hook(lambda module, args: (args[0] * factor, *args[1:]))
    training = model.training
    model.eval()
    try:
        with _attention_for(model, embedding.device):
            size = float(model(input_ids=ids, use_cache=False).logits.abs().max())
            if not 0 < size < float("inf"):
                return  # nothing to compare; the guard watches for NaN
            factor = LOUD / size
            own = model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # [7, V]
            out = model(input_ids=ids, labels=ids, tokens={})
    except (TypeError, AttributeError, ValueError) as error:
        raise RequestError(f"{config.model_type} cannot be trained with the fused head: {error}") from error
    finally:
        hook.remove()
        model.train(training)
    log_p = own.log_softmax(1)
    expected = log_p.gather(1, ids[0, 1:, None])[:, 0]
    entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(1)
    worst = max((out.log_probs[0] - expected).abs().max(), (out.entropy[0] - entropy).abs().max())
    # bf16 keeps 8 bits of a logit; fp32 keeps all that matters.
    if not worst <= (1e-3 if embedding.dtype == torch.float32 else 1e-2) * LOUD:
        raise RequestError(
            f"{config.model_type} does something to its logits that the fused head does not know "
            f"(log-probabilities differ by {float(worst):.2g}); it cannot be trained here yet"
        )


@contextlib.contextmanager
def _attention_for(model: nn.Module, device: torch.device) -> Iterator[None]:
    """On a CPU an attention that runs there: kernels for a GPU are refused by their libraries."""
    chosen = model.config._attn_implementation
    if device.type != "cpu" or chosen in (None, "eager", "sdpa"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)
