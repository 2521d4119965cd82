"""What a stage needs to build its trainer, as values. Left out: making them (`stages/train.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from posttrain.rundir.directory import RunDir


@dataclass
class StageParts:
    """What a stage needs to build its trainer."""

    run: RunDir
    tokenizer: Any
    prepared: Any
    collator: Any
    model: Any
    peft_config: Any
    guard: Any
    stop: Any
    total_examples: int
    args: Any
    init: Any
    """Path of the start model, or None where it is made from a config."""
    template: Any
    facts: dict[str, Any] = field(default_factory=dict)

    def heldout_rows(self) -> Any:
        """Rows of the held-out loss in the collator's format, or None."""
        from posttrain.data.prepare import HeldoutRows

        return None if self.prepared.heldout_table is None else HeldoutRows(self.prepared)
