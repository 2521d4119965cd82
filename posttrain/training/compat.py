"""What the libraries below want done their way: names that moved between versions, a check of TRL's that is not ours."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any


def activation_checkpointing(config_class: type, on: bool) -> dict[str, Any]:
    """transformers 5.23 renamed `gradient_checkpointing`; TRL 1.16 turns the old name on by default."""
    fields = {f.name for f in dataclasses.fields(config_class)}
    if "activation_checkpointing" in fields:
        return {"activation_checkpointing": on, "gradient_checkpointing": on}
    return {"gradient_checkpointing": on}


@contextlib.contextmanager
def head_without_adapter(model: Any) -> Iterator[None]:
    """TRL refuses an adapter on the head, because its own fused head would not train it. Ours does (`fused.py`), so
    while TRL looks, the head is the layer below the adapter."""
    plain = model.get_output_embeddings

    def below() -> Any:
        head = plain()
        return head.get_base_layer() if hasattr(head, "lora_A") else head

    model.get_output_embeddings = below
    try:
        yield
    finally:
        del model.get_output_embeddings
