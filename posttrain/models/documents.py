"""Whether the documents of a padding-free row are independent in a model.

Left out: making such rows (`data/collate.py`).
"""

from __future__ import annotations

import torch
from torch import nn

from posttrain.errors import RequestError
from posttrain.models.self_check import (
    as_trained,
    attends_elsewhere,
    is_sharded,
    probe_ids,
    refuse_untested,
)

LENGTH = 12
"""Tokens of a document of the measurement: more than the width of convolutions in models that have them."""


def refuse_leaking_documents(model: nn.Module, mixed: str = "no") -> None:
    """Raises `RequestError` if a document depends on the one before it although position ids restart.

    Some models (state spaces, convolutions, ALiBi, positions that do not restart) ignore the restart. It is
    measured on one row with the same document twice, in two ways. The gradient of the second document's
    logits with respect to the embeddings of the first must be exactly 0, as it is whatever the scale of the
    weights: what is masked has a weight of 0, and not a small one. And both must have the same logits, up to
    rounding: else positions count on. Weights that are sharded (ZeRO-3), or on a CPU where the attention of
    the run does not run, cannot be measured; then only tested families are accepted.

    `mixed`: accelerate's `mixed_precision` of the run.
    """
    kind = model.config.get_text_config().model_type
    if is_sharded(model) or attends_elsewhere(model):
        refuse_untested(kind, "documents")
        return
    refusal = f"data.padding_free: {kind} lets documents in one row attend to each other; set it to false"
    try:
        first, second, leak = _measured(model, mixed)
    except TypeError as error:  # no position ids
        raise RequestError(refusal) from error
    if not (second.isfinite().all() and leak.isfinite().all()):
        raise RequestError(
            f"data.padding_free: the logits of {kind} are not finite, so whether it keeps documents apart "
            "cannot be measured; set it to false"
        )
    if leak.any() or (first - second).abs().max() > 0.1 * first.abs().max():
        raise RequestError(refusal)


@torch.enable_grad()
def _measured(model: nn.Module, mixed: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [L, V] of the first and the second document, and the gradient [L, H] that must be 0."""
    embedding, inputs = model.get_input_embeddings(), []

    def as_leaf(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        inputs.append(out.detach().requires_grad_())
        return inputs[-1].clone()  # some scale it in place

    hook = embedding.register_forward_hook(as_leaf)
    try:
        with as_trained(model, mixed) as device:
            ids = probe_ids(model, LENGTH).repeat(1, 2)  # [1, 2L]
            steps = torch.arange(LENGTH, device=device).repeat(2)[None]
            logits = model(input_ids=ids, position_ids=steps, use_cache=False).logits[0].float()
            first, second = logits.split(LENGTH)
            draw = torch.Generator().manual_seed(0)  # any direction in which the gradient does not cancel
            direction = torch.randn(second.shape, generator=draw).to(second.device)
            (gradient,) = torch.autograd.grad((second * direction).sum(), inputs[0])
    finally:
        hook.remove()
    return first.detach(), second.detach(), gradient[0, :LENGTH]
