"""Names that moved between library versions, spelled once. Nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any


def activation_checkpointing(config_class: type, on: bool) -> dict[str, Any]:
    """transformers 5.23 renamed `gradient_checkpointing`; TRL 1.16 turns the old name on by default."""
    fields = {f.name for f in dataclasses.fields(config_class)}
    if "activation_checkpointing" in fields:
        return {"activation_checkpointing": on, "gradient_checkpointing": on}
    return {"gradient_checkpointing": on}
