"""What a model does to its logits, and whether the fused head computes the same.

The operations are read from the model's config and then measured on a few tokens. Refused with an error that
names the model: logits that the measurement cannot explain, models without an output head. Left out: the
fused forward itself (`head.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from posttrain.errors import RequestError
from posttrain.models.self_check import as_trained, is_sharded, probe_ids, refuse_untested

MULTIPLIES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
DIVIDES = ("logits_scaling", "logits_mup_width_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Config fields with which models of transformers change their logits: scaled first, capped last. A division
of the hidden states (MiniCPM3) equals one of the logits, because no such model has a bias on its head.
"""

MEANS_OTHERWISE = {
    "hyperclovax": {"logits_scaling": MULTIPLIES},
    "mpt": {"logit_scale": ()},  # written in its configs, not read by its code
}
"""Families whose code gives a field of that name another meaning, or ignores it."""

PROBE_LOGIT = 50.0
"""Largest logit of the measurement: near 0 a softcap changes nothing and a scale hardly anything."""


def logit_view(config: Any) -> dict[str, float]:
    """`logit_scale` and `softcap` of the kernels for the text part of `config`; absent without effect."""
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
    """Raises `RequestError` if the fused head cannot work for this model; before the model is prepared."""
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise RequestError(f"{type(model).__name__} has no output head with a weight, which training needs")


@torch.no_grad()
def refuse_other_logits(model: nn.Module, mixed: str = "no") -> None:
    """Raises `RequestError` if the model's own logits differ from those of the fused head.

    Measured on one row of a few tokens, with the input of the head scaled up until the largest logit is
    `PROBE_LOGIT`. Weights that are already sharded (ZeRO-3) cannot be run before the engine is set up; then
    only tested families are accepted. `mixed`: accelerate's `mixed_precision` of the run.
    """
    config = model.config.get_text_config()
    if is_sharded(model):
        refuse_untested(config.model_type, "logits")
        return
    embedding = model.get_input_embeddings().weight
    ids, factor = probe_ids(model, 8), 1.0
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: (args[0] * factor, *args[1:]))
    try:
        with as_trained(model, mixed):
            size = float(model(input_ids=ids, use_cache=False).logits.abs().max())
            if not 0 < size < float("inf"):
                return  # nothing to compare; the training guard stops on NaN
            factor = PROBE_LOGIT / size
            own = model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # [7, V]
            out = model(input_ids=ids, labels=ids, tokens={})
    except (TypeError, AttributeError, ValueError) as error:
        raise RequestError(f"{config.model_type} cannot be trained with the fused head: {error}") from error
    finally:
        hook.remove()
    log_p = own.log_softmax(1)
    expected = log_p.gather(1, ids[0, 1:, None])[:, 0]
    entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(1)
    worst = max((out.log_probs[0] - expected).abs().max(), (out.entropy[0] - entropy).abs().max())
    # bf16 keeps 8 bits of a logit
    exact = embedding.dtype == torch.float32 and mixed == "no"
    if not worst <= (1e-3 if exact else 1e-2) * PROBE_LOGIT:
        raise RequestError(
            f"{config.model_type} changes its logits in a way that the fused head does not support "
            f"(log-probabilities differ by {float(worst):.2g}), so it cannot be trained"
        )
