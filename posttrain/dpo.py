"""Preference optimisation on pairs; a thin subclass of TRL's DPOTrainer.

    posttrain dpo my-dpo.yaml preference.beta=1
    accelerate launch --config_file launch/ddp.yaml -m posttrain.dpo my-dpo.yaml

Ours are the rows (from the mixture), the log-probabilities (from the fused head, without T x V logits), the
reference (computed once and kept, or live: training/preference.py) and the loss (a function in
losses/preference.py). Single replies with a label go to training/kto.py. Left out: a reference that is
updated, vision models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before the libraries below: they read it when they are imported
    from posttrain.base.process import quiet_libraries

    quiet_libraries()

import torch
from datasets import Dataset
from trl import DPOConfig

from posttrain.data.cache import cache_root
from posttrain.data.collate import count_tokens
from posttrain.losses.preference import (
    LOSSES,
    NO_REFERENCE,
    PairLogProbs,
    implicit_rewards,
    supervised,
    with_beta,
)
from posttrain.models.adapters import head_without_adapter, off_is_start
from posttrain.models.load import commit_of
from posttrain.recipe import DpoRecipe
from posttrain.recipe.plan import reference_of
from posttrain.recipe.sections import Preference
from posttrain.rundir.adapters import identity
from posttrain.rundir.checkpoints import resolve
from posttrain.rundir.directory import RunDir
from posttrain.rundir.proof import digest
from posttrain.stages.launch import launch_training
from posttrain.stages.train import MakeScorer, TrainStage, run_training
from posttrain.training.engines import fsdp_asked
from posttrain.training.kto import KtoTrainer
from posttrain.training.metrics import PairStats
from posttrain.training.parts import RowParts
from posttrain.training.preference import PreferenceTrainer
from posttrain.training.reference import (
    Key,
    Reference,
    ReferencedRows,
    ReferenceStore,
    earlier_store_name,
    frozen_reference,
    referenced,
    refuse_other_reference,
    store_name,
)


class PairFacts:
    """Wraps a `PairCollator` and adds what the loss needs from each side.

    `side_tokens` int64 [2P] trained tokens, `reference` float32 [2P] if every row has it; `num_tokens` and
    `num_trained_tokens` are ints.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Any) -> dict[str, Any]:
        batch = self.collator(rows)
        counted = batch["segment_ids"][:, 1:].reshape(-1)
        batch["side_tokens"] = torch.bincount(counted, minlength=2 * len(rows) + 1)[1:]
        if all("reference" in row for row in rows):
            batch["reference"] = torch.tensor([row["reference"][side] for side in (0, 1) for row in rows])
        batch["num_tokens"] = count_tokens(batch)
        batch["num_trained_tokens"] = int(batch["side_tokens"].sum())
        return batch


class DpoTrainer(PreferenceTrainer):
    """The losses of pairs."""

    facts_of = PairFacts
    remedy = (
        "; this is usual for losses that only see the difference, and preference.sft_weight counteracts it"
    )

    @classmethod
    def mixed(cls, parts: RowParts, known: dict[Key, Any], batch: int, max_length: int) -> ReferencedRows:
        """The rows of the run, each with the reference's log-probabilities once `known` holds them."""
        return referenced(parts, known)

    def setup_loss(self, given: Preference, parts: RowParts) -> dict[str, PairStats]:
        """Sets the loss; returns the windows of what is logged."""
        self.loss_name, self.sft_weight, self.sft_n = given.loss, given.sft_weight, given.sft_n
        self.options = with_beta(given)
        referenced = given.loss not in NO_REFERENCE
        return {
            mode: PairStats(self.args.device, parts.prepared.names, referenced, bool(given.sft_weight))
            for mode in ("train", "heldout")
        }

    def losses(self, model, batch: dict[str, Any]) -> torch.Tensor:
        loss, *facts = self._pair_losses(model, batch)
        self.stats["train"].add(*facts, batch)
        return loss

    def measure(self, rows: list[Callable[[], Any]]) -> None:
        for real, batch in self.dealt(rows):
            _, *facts = self._pair_losses(self.model_wrapped, batch)
            if real:
                self.stats["heldout"].add(*facts, batch)

    def _pair_losses(self, model, batch: dict[str, Any]) -> tuple:
        """The loss of each pair [P], and what the stats add up."""
        reference = self.reference_of(batch)
        chosen, rejected = self.log_probs(model, batch).view(2, -1)
        tokens = batch["side_tokens"].view(2, -1)
        references = (None, None) if reference is None else reference.view(2, -1)
        pairs = PairLogProbs(chosen, rejected, *tokens, *references)
        loss = LOSSES[self.loss_name](pairs, self.options)
        rewards = implicit_rewards(self.loss_name, pairs, self.options)
        sft = supervised(pairs, self.sft_n) if self.sft_weight else (torch.zeros_like(loss),) * 2
        loss = loss + self.sft_weight * sft[0]
        return loss, pairs, loss, rewards, sft


# ---- what a run of this stage is made of -------------------------------------------------------------------


def build(recipe: DpoRecipe, parts: RowParts) -> PreferenceTrainer:
    """The trainer of this stage."""
    kind = KtoTrainer if recipe.preference.loss == "kto" else DpoTrainer
    placeholder = Dataset.from_list([{"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0]}])
    with head_without_adapter(parts.model):
        trainer = kind(
            model=parts.model,
            args=parts.arguments,
            data_collator=kind.facts_of(parts.collator),
            train_dataset=placeholder,
            processing_class=parts.tokenizer,
            peft_config=parts.adapter,
        )
    known: dict[Key, Any] = {}
    rows = kind.mixed(parts, known, recipe.train.global_batch_size, recipe.data.max_length)
    reference = None
    if recipe.preference.loss not in NO_REFERENCE:
        reference = _reference(recipe, parts, trainer, rows, known)
    trainer.setup_run(parts, rows.train, recipe.train.log_samples)
    trainer.setup_preference(reference, rows.heldout, trainer.setup_loss(recipe.preference, parts))
    return trainer


def _reference(
    recipe: DpoRecipe,
    parts: RowParts,
    trainer: PreferenceTrainer,
    rows: ReferencedRows,
    known: dict[Key, Any],
) -> Reference:
    """The reference of a run; a second model is loaded where the policy cannot take its place."""
    given, lora = recipe.preference, recipe.model.lora
    apart = given.reference_model is not None or (lora is not None and not off_is_start(lora))
    load = partial(
        frozen_reference,
        recipe.model,
        given.reference_model,
        parts.tokenizer,
        parts.start,
        recipe.train.seed,
        trainer.accelerator,
        given.reference_revision,
    )
    reference = Reference(load, live=given.reference == "live", other=apart)
    if not reference.live:
        tables = [*parts.prepared.fingerprints, *rows.fingerprints]
        own, model = parts.run.path / "reference", _reference_identity(recipe, parts)
        names, earlier = [store_name(model, table) for table in tables], []
        if own.is_dir() and (lora is None or off_is_start(lora)):  # earlier versions took another reference
            before = _reference_digest(recipe, parts)
            earlier = [earlier_store_name(before, table) for table in tables]
        folder = cache_root(recipe.data).parent / "reference"
        reference.store = ReferenceStore(folder, own, names, earlier)
        known.update(reference.store.load())
        reference.known = known
        reference.wanted = rows.train.places() | (rows.heldout.places() if rows.heldout is not None else {})
    needed = reference.live and lora is None
    if needed or (reference.other and (reference.live or reference.missing)):
        reference.model = load()
    return reference


def _reference_place(recipe: DpoRecipe, parts: RowParts) -> tuple[Path | None, str | None]:
    """Where the reference lies, and its revision on the hub; None for a start model with random weights."""
    named = recipe.preference.reference_model
    if named is None:
        return parts.start, recipe.model.revision
    return Path(resolve(named)[0]), recipe.preference.reference_revision


def _reference_identity(recipe: DpoRecipe, parts: RowParts) -> str:
    """All that the reference's log-probabilities depend on besides the rows: its files, and how it is loaded
    and run."""
    model, train = recipe.model, recipe.train
    place, revision = _reference_place(recipe, parts)
    files = repr(model.from_config) if place is None else identity(place, revision, commit_of)
    rows = parts.model.config.get_text_config().vocab_size  # those of new tokens are drawn with the seed
    how = (model.options, model.quantization, parts.model.config._attn_implementation, parts.model.dtype)
    found = f"{files} {rows} {train.seed} {how} {train.bf16} {train.fp16}"
    return f"{found} fsdp2" if train.bf16 and fsdp_asked() else found  # bf16 weights, elsewhere autocast


def _reference_digest(recipe: DpoRecipe, parts: RowParts) -> str:
    """The name that earlier versions gave these files."""
    place, revision = _reference_place(recipe, parts)
    own = recipe.preference.reference_model is None
    made = f" {recipe.model.from_config} {recipe.train.seed}" if own else ""
    weights = digest(place) if place is not None and place.is_dir() else ""
    weights = weights or f"{place} {revision}{made}"
    return f"{weights} {parts.model.dtype} {recipe.train.bf16} {recipe.train.fp16}"


STAGE = TrainStage(DPOConfig, build)


def train(recipe: DpoRecipe, make_scorer: MakeScorer | None = None) -> RunDir:
    """Run the stage; see `posttrain.stages.train.run_training`."""
    refuse_other_reference(recipe.model, recipe.data.template, reference_of(recipe))
    return run_training(recipe, STAGE, make_scorer)


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.dpo RECIPE [key=value ...]`; returns the exit code."""
    return launch_training("dpo", train, argv)


if __name__ == "__main__":
    sys.exit(main())
