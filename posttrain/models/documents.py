"""Whether the documents of a padding-free row are independent in a model.

Left out: making such rows (`data/collate.py`).
"""

from __future__ import annotations

import torch
from torch import nn

from posttrain.errors import RequestError

KEEPS_DOCUMENTS_APART = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "granite")
"""Model types whose packed documents were measured to be independent (to 3e-6, SDPA)."""


@torch.no_grad()
def refuse_leaking_documents(model: nn.Module) -> None:
    """Raises `RequestError` if a document attends to the one before it although position ids restart.

    Some models (learned or no positions, state spaces) ignore the restart in padding-free batches. It is
    measured: the logits of a document must not depend on what precedes it. Sharded weights (ZeRO-3) cannot be
    run before the engine is set up; then only the families of `KEEPS_DOCUMENTS_APART` are accepted.
    """
    kind = model.config.model_type
    refusal = f"data.padding_free: {kind} lets documents in one row attend to each other; set it to false"
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        if kind not in KEEPS_DOCUMENTS_APART:
            raise RequestError(
                f"data.padding_free with ZeRO-3 is tested for {', '.join(KEEPS_DOCUMENTS_APART)} and not for "
                f"{kind}; set it to false"
            )
        return
    embedding = model.get_input_embeddings().weight
    ids = torch.tensor([[1, 2, 3, 2]], device=embedding.device) % len(embedding)
    positions = torch.arange(4, device=embedding.device).repeat(2)[None]
    training = model.training
    model.eval()
    try:
        a, b = (
            model(input_ids=torch.cat([before, ids], 1), position_ids=positions, use_cache=False)
            .logits[:, 4:]
            .float()
            for before in (ids, (ids + 3) % len(embedding))
        )
    except TypeError as error:
        raise RequestError(refusal) from error
    finally:
        model.train(training)
    if (a - b).abs().max() > 1e-2 * a.abs().max():
        raise RequestError(refusal)
