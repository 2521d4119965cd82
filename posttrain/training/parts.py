"""The parts from which a stage builds its trainer; one dataclass for each kind of stage.

Left out: how they are made (`stages/train.py`), and the parts of stages that only sample
(`stages/sample.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from posttrain.base.stop import StopRequest
from posttrain.data.collate import Collator, PairCollator
from posttrain.data.prepare import HeldoutRows, Prepared, TrainRows
from posttrain.data.template import Template
from posttrain.rundir.directory import RunDir
from posttrain.training.guard import StepGuard


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What every stage that trains needs."""

    run: RunDir
    tokenizer: PreTrainedTokenizerBase
    template: Template
    prepared: Prepared
    rows: int
    """Rows of the mixture that the run takes."""
    model: PreTrainedModel
    start: Path | None
    """Folder or hub id of the start model; None for random weights."""
    adapter: PeftConfig | None
    """The adapter to train; None for full fine-tuning."""
    arguments: TrainingArguments
    guard: StepGuard
    stop: StopRequest
    facts: dict[str, Any]
    """Goes into every checkpoint.json."""


@dataclass(frozen=True, kw_only=True)
class RowParts(Parts):
    """The parts of a stage that trains on the rows of the mixture (sft, dpo)."""

    collator: Collator | PairCollator

    def train_rows(self) -> TrainRows:
        """The run's whole sequence of rows."""
        return TrainRows(self.prepared, self.rows)

    def heldout_rows(self) -> HeldoutRows | None:
        """Rows of the held-out loss in the collator's format, or None."""
        return None if self.prepared.heldout_table is None else HeldoutRows(self.prepared)


@dataclass(frozen=True, kw_only=True)
class PromptParts(Parts):
    """The parts of a stage whose mixture holds prompts and whose rows are sampled (rlvr)."""
