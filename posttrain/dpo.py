"""Preference optimisation on pairs; a thin subclass of TRL's DPOTrainer.

    posttrain dpo my-dpo.yaml preference.beta=1
    accelerate launch --config_file launch/ddp.yaml -m posttrain.dpo my-dpo.yaml

What is ours: pairs come from the mixture, log-probabilities from the fused head (no T x V logits), those of the
reference are computed once and kept, and the loss is a function of losses/preference.py. Left out: unpaired data (KTO), a
live reference, vision models.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from posttrain.data.collate import count_tokens
from posttrain.data.prepare import HeldoutRows, TrainRows
from posttrain.data.tabulate import cache_root
from posttrain.entry import stage_main
from posttrain.errors import WorkError
from posttrain.fused import attach_fused_head
from posttrain.losses.preference import (
    BETA,
    LOSSES,
    NO_REFERENCE,
    Pairs,
    PreferenceOptions,
    implicit_rewards,
    supervised,
)
from posttrain.recipe import DpoRecipe
from posttrain.stage import StageParts, run_stage
from posttrain.training.checkpoints import digest
from posttrain.training.compat import head_without_adapter
from posttrain.training.pair_stats import PairStats
from posttrain.training.reference import Key, ReferenceRows, ReferenceStore, store_name
from posttrain.training.trainer import RunTrainer

log = logging.getLogger(__name__)
MODEL_KEYS = ("input_ids", "attention_mask", "position_ids", "labels")


class PairFacts:
    """A collator around `collator` (a `PairCollator`) that adds what the loss needs of each side.

    `side_tokens` int64 [2P] trained tokens, `reference` float32 [2P] if every row has it, `num_tokens` (int).
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Any) -> dict[str, Any]:
        batch = self.collator(rows)
        counted = batch["segment_ids"][:, 1:].reshape(-1)
        batch["side_tokens"] = torch.bincount(counted, minlength=2 * len(rows) + 1)[1:]
        if all("reference" in row for row in rows):
            batch["reference"] = torch.tensor(
                [row["reference"][side] for side in (0, 1) for row in rows]
            )
        batch["num_tokens"] = count_tokens(batch)
        return batch


class DpoTrainer(RunTrainer, DPOTrainer):
    """TRL's DPOTrainer with the mixture's order, the fused head and posttrain's checkpoints."""

    def _precompute_ref_logps(self, dataset, name, batch_size):
        """TRL would do it on the placeholder; see `prepare_reference`."""
        return dataset

    def _prepare_dataset(self, dataset, *args):
        """The rows come prepared from the mixture."""
        return dataset

    def setup_loss(
        self, recipe: DpoRecipe, prepared: Any, store: ReferenceStore, known: dict[Key, Any]
    ) -> None:
        """Replaces TRL's fused head by ours; call after `setup_run`."""
        attach_fused_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        given = recipe.preference
        self.loss_name, self.sft_weight, self.sft_n = given.loss, given.sft_weight, given.sft_n
        beta = BETA.get(given.loss, 0.1) if given.beta is None else given.beta
        self.options = PreferenceOptions(beta, given.label_smoothing, given.gamma)
        self.store, self.known = store, known
        self.heldout = None
        if prepared.heldout_table is not None:
            self.heldout = ReferenceRows(HeldoutRows(prepared), known)
        referenced = given.loss not in NO_REFERENCE
        self.stats = {
            mode: PairStats(self.args.device, prepared.names, referenced, bool(given.sft_weight))
            for mode in ("train", "heldout")
        }

    # ---- the reference -------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare_reference(self) -> None:
        """Before the first step: the log-probabilities of every pair of the run that are not known yet. Collective.

        Raises:
            WorkError: a resumed run whose file of them is gone: the model is not the reference any more.
        """
        if self.loss_name in NO_REFERENCE:
            return
        rows = [self.train_dataset.rows, *([] if self.heldout is None else [self.heldout.rows])]
        wanted = {
            key: (part, i)
            for part, each in enumerate(rows)
            for key, i in _first_places(each).items()
        }
        missing = [wanted[key] for key in sorted(wanted) if key not in self.known]
        adapter = is_peft_model(self.model)
        if missing and self.state.global_step and not adapter:
            raise WorkError(
                f"{self.store.run_copy}: the reference log-probabilities of {len(missing)} pairs are gone, and the model has "
                f"trained {self.state.global_step} steps: start the run again in another directory"
            )
        if missing:
            log.info("reference log-probabilities of %d pairs", len(missing))
            unwrapped = self.accelerator.unwrap_model(self.model)
            with (
                self.untimed(),
                unwrapped.disable_adapter() if adapter else contextlib.nullcontext(),
            ):
                self.known.update(self._reference_of(rows, missing))
        if self.is_world_process_zero():
            self.store.save(self.known, set(wanted))
        self.accelerator.wait_for_everyone()

    def _reference_of(self, rows: list[Any], places: list[tuple[int, int]]) -> dict[Key, Any]:
        self.model.eval()
        mine: dict[Key, Any] = {}
        for real, batch in self.dealt([partial(rows[p].__getitem__, i) for p, i in places]):
            logps = self._log_probs(self.model_wrapped, batch).cpu().view(2, -1)
            if real:
                for j, (source, row) in enumerate(batch["example_ids"].tolist()):
                    mine[source, row] = logps[:, j].float().numpy()
        self.model.train()
        if self.args.world_size == 1:
            return mine
        parts: list[dict] = [{} for _ in range(self.args.world_size)]
        dist.all_gather_object(parts, mine)
        return {key: value for part in parts for key, value in part.items()}

    # ---- the loss ------------------------------------------------------------------------------------------

    def _log_probs(self, model, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities of the completions, summed over tokens: fp32 [2P], chosen first."""
        with self.compute_loss_context_manager():
            out = model(**{k: batch[k] for k in MODEL_KEYS if k in batch}, tokens={})
        segments = batch["segment_ids"][:, 1:].reshape(-1)
        sums = torch.zeros(batch["num_segments"] + 1, dtype=torch.float32, device=segments.device)
        return sums.index_add(0, segments, out.log_probs.reshape(-1).float())[1:]

    def _pair_losses(self, model, batch: dict[str, Any], mode: str) -> torch.Tensor:
        """The loss of each pair [P]; adds them to the stats."""
        chosen, rejected = self._log_probs(model, batch).view(2, -1)
        tokens = batch["side_tokens"].view(2, -1)
        references = (None, None)
        if self.loss_name not in NO_REFERENCE:
            references = batch["reference"].view(2, -1)
        pairs = Pairs(chosen, rejected, *tokens, *references)
        loss = LOSSES[self.loss_name](pairs, self.options)
        rewards = implicit_rewards(self.loss_name, pairs, self.options)
        sft = supervised(pairs, self.sft_n) if self.sft_weight else (torch.zeros_like(loss),) * 2
        loss = loss + self.sft_weight * sft[0]
        self.stats[mode].add(pairs, loss, rewards, sft, batch)
        return loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """Pairs of the optimizer step, over all micro-batches and ranks; always as many."""
        local = sum(len(batch["example_ids"]) for batch in batch_samples)
        return torch.full((), float(local * self.args.world_size), device=device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum over pairs / `num_items_in_batch` (None: mean of this batch), times ranks, which DDP averages over."""
        losses = self._pair_losses(model, inputs, "train")
        if num_items_in_batch is None:
            return losses.mean()
        return losses.sum() / num_items_in_batch * self.args.world_size

    # ---- logs ----------------------------------------------------------------------------------------------

    _called_out = False

    def extra_metrics(self, mode: str) -> dict[str, float]:
        means = self.stats[mode].means(self.reduce)
        self.stats[mode].reset()
        if mode == "train":
            means.pop("loss")
            if not self._called_out and means.get("logratio/chosen", 0.0) < -1.0:
                self._called_out = True
                log.warning(
                    "the chosen replies have become less likely than under the reference (%.1f nats each): usual for "
                    "losses that only see the difference; preference.sft_weight holds them up",
                    means["logratio/chosen"],
                )
        return means

    @torch.no_grad()
    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> dict[str, float]:
        """Held-out loss, accuracy and margins over all held-out pairs and ranks."""
        with self.untimed():
            self.stats["heldout"].reset()
            self.model.eval()
            for real, batch in self.dealt(
                [partial(self.heldout.__getitem__, i) for i in range(len(self.heldout))]
            ):
                if real:
                    self._pair_losses(self.model_wrapped, batch, "heldout")
                else:
                    self._log_probs(self.model_wrapped, batch)
            self.model.train()
            metrics = self.extra_metrics("heldout")
        metrics.pop("tokens_per_second")
        return self.log_heldout(metrics, metric_key_prefix)


class ReferenceCallback(TrainerCallback):
    """Asks for the reference once the engine has the model and before the first batch is read."""

    def __init__(self, trainer: DpoTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.prepare_reference()


def _first_places(rows: Any) -> dict[Key, int]:
    """Where each pair of `rows` stands first."""
    found: dict[Key, int] = {}
    for i in range(len(rows)):
        found.setdefault(rows.key(i), i)
    return found


def _start_digest(recipe: DpoRecipe, parts: StageParts) -> str:
    """A content hash of the model the run starts from, and of the precision it is run in."""
    weights = digest(parts.init) if parts.init is not None and parts.init.is_dir() else ""
    named = (
        weights
        or f"{parts.init} {recipe.model.revision} {recipe.model.from_config} {recipe.train.seed}"
    )
    return f"{named} {parts.model.dtype} {recipe.train.bf16} {recipe.train.fp16}"


def build(recipe: DpoRecipe, parts: StageParts) -> DpoTrainer:
    """The trainer of this stage, from what `run_stage` has loaded."""
    placeholder = Dataset.from_list([{"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0]}])
    with head_without_adapter(parts.model):
        trainer = DpoTrainer(
            model=parts.model, args=parts.args, data_collator=PairFacts(parts.collator), train_dataset=placeholder,
            processing_class=parts.tokenizer, peft_config=parts.peft_config,
        )  # fmt: skip
    prepared = parts.prepared
    model = _start_digest(recipe, parts)
    names = [store_name(model, fingerprint) for fingerprint in prepared.fingerprints]
    folder = cache_root(recipe.data).parent / "reference"
    store = ReferenceStore(folder, parts.run.path / "reference", names)
    known = store.load()
    rows = ReferenceRows(TrainRows(prepared, parts.total_examples), known)
    trainer.setup_run(
        parts.run, rows, parts.guard, parts.stop, parts.facts, recipe.train.log_samples
    )
    trainer.setup_loss(recipe, prepared, store, known)
    trainer.add_callback(ReferenceCallback(trainer))
    return trainer


def train(recipe: DpoRecipe, score_factory=None):
    """Run the stage; see `posttrain.stage.run_stage`."""
    return run_stage(recipe, build, DPOConfig, score_factory)


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.dpo RECIPE [key=value ...]`."""
    return stage_main("dpo", train, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
