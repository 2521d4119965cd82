"""`PreferenceTrainer`: log-probabilities of policy and reference, which every preference loss is computed
from.

The reference is the start model or another one. Precomputed, its log-probabilities are computed before the
first step and kept (reference.py); live, it runs in every step. Either way no T x V logits exist. Left out:
the losses and what is in a batch (dpo.py, kto.py); a reference that is updated.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import DPOTrainer

from posttrain.errors import RequestError
from posttrain.models.dropout import turn_off_dropout
from posttrain.models.head import attach_fused_head, balancing_coefficient
from posttrain.recipe.stage_rules import NO_BALANCING
from posttrain.training.engines import fsdp_asked
from posttrain.training.reference import Key, Reference, without_adapter
from posttrain.training.spent import with_reference
from posttrain.training.trainer import RunTrainer

log = logging.getLogger(__name__)
MODEL_KEYS = ("input_ids", "attention_mask", "position_ids", "labels")


class PreferenceTrainer(RunTrainer, DPOTrainer):
    """TRL's DPOTrainer with the mixture's order, the fused head, our reference and posttrain's checkpoints.

    A stage's loss overrides `losses` and `measure`; `stats` has a window for each of "train" and "heldout".
    """

    def __init__(self, **given: Any) -> None:
        if fsdp_asked() and given.get("peft_config") is None:
            # TRL would load the start model once more and put all of it on each GPU
            sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 8)
            given["ref_model"] = LlamaForCausalLM(
                LlamaConfig(num_hidden_layers=1, num_attention_heads=1, **sizes)
            )
        super().__init__(**given)
        self.ref_model = None

    def _precompute_ref_logps(self, dataset, name, batch_size):
        """TRL would do it on the placeholder; see `prepare_reference`."""
        return dataset

    def _prepare_dataset(self, dataset, *args):
        """The rows come prepared from the mixture."""
        return dataset

    def setup_preference(self, reference: Reference | None, heldout: Any, stats: dict[str, Any]) -> None:
        """Replaces TRL's fused head with ours and turns dropout off; call after `setup_run`.

        `reference`: None where the loss has none.
        """
        mixed = self.accelerator.mixed_precision
        model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        if balancing_coefficient(model):
            raise RequestError(NO_BALANCING)
        attach_fused_head(model, mixed)
        turn_off_dropout(self.model, mixed)
        self.reference, self.heldout, self.stats = reference, heldout, stats
        self.add_callback(ReferenceCallback(self))

    # ---- the reference -------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare_reference(self) -> None:
        """Before the first step, unless live: computes and keeps the missing log-probabilities, then frees a
        second model.

        A resumed run may lack some: its file of them is lost, or its rows have changed (data.on_change).
        Where the policy was the reference, the start model is then loaded once more. Collective.
        """
        given = self.reference
        if given is None or given.live:
            return
        missing = given.missing
        if not self.state.global_step and self.is_world_process_zero():
            # also of those that are kept already: what a run costs does not depend on what ran before it
            tokens = sum(tokens_of(read()) for read in given.wanted.values())
            self.spent.counts["num_reference_tokens"] = tokens
        if missing and self.state.global_step and not given.other and not is_peft_model(self.model):
            given.model = given.load()
        if missing:
            log.info("computing reference log-probabilities of %d %s", len(missing), self.what)
            with self.untimed():
                given.known.update(self._computed([given.wanted[key] for key in missing]))
        if self.is_world_process_zero():
            given.store.save(given.known, set(given.wanted))
        # accelerate holds what it has prepared
        self.accelerator._models = [m for m in self.accelerator._models if m is not given.model]
        given.model, given.wanted = None, {}
        self.accelerator.wait_for_everyone()
        if missing:
            self.check_stop()  # its last batch may have been under way

    what = "pairs"
    """What a row is, in messages."""

    def _computed(self, rows: list[Callable[[], Any]]) -> dict[Key, Any]:
        mine: dict[Key, Any] = {}
        with self.as_reference() as model:
            for real, batch in self.dealt(rows, self.data_collator.collator):
                keys = batch["example_ids"].tolist()
                logps = self.log_probs(model, batch).cpu().view(-1, len(keys))  # [sides, P]
                if real:
                    for j, (source, row) in enumerate(keys):
                        mine[source, row] = logps[:, j].float().numpy()
        return {key: value for part in self.gather(mine) for key, value in part.items()}

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[Any]:
        """Yields the model that is the reference, for forwards without gradient."""
        if self.reference.model is not None:
            with torch.no_grad():
                yield self.reference.model
            return
        with self.inference(), without_adapter(self, True):
            yield self.model_wrapped

    def reference_of(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """Log-probabilities of the reference, as `log_probs`; None where the loss has none. Collective if
        live."""
        if self.reference is None:
            return None
        if not self.reference.live:
            return batch["reference"]
        with self.as_reference() as model:
            return self.log_probs(model, batch)

    def cost(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A live reference sees all that the policy does."""
        if self.reference is None or not self.reference.live:
            return inputs
        return inputs | {"num_reference_tokens": inputs["num_tokens"] + inputs.get("num_forward_tokens", 0)}

    def parameters(self) -> dict[str, int] | None:
        found = super().parameters()
        if found is None or self.reference is None:
            return found
        if self.reference.other and self.reference.model is None:
            return found  # another model, whose kept values are used: its size is not known
        return with_reference(found, self.model, self.reference.model)

    # ---- the loss ------------------------------------------------------------------------------------------

    def log_probs(self, model, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities of the replies, summed over tokens: fp32 [S], one a segment."""
        with self.compute_loss_context_manager():
            out = model(**{k: batch[k] for k in MODEL_KEYS if k in batch}, tokens={})
        segments = batch["segment_ids"][:, 1:].reshape(-1)
        sums = torch.zeros(batch["num_segments"] + 1, dtype=torch.float32, device=segments.device)
        return sums.index_add(0, segments, out.log_probs.reshape(-1).float())[1:]

    def losses(self, model, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of each row [P], added to the stats of "train"."""
        raise NotImplementedError

    def measure(self, rows: list[Callable[[], Any]]) -> None:
        """Adds the held-out `rows` to the stats of "heldout"; without gradient. Collective."""
        raise NotImplementedError

    def _get_num_items_in_batch(self, batch_samples, device):
        """Rows of the optimizer step, over all micro-batches and ranks; always as many."""
        local = sum(len(batch["example_ids"]) for batch in batch_samples)
        return torch.full((), float(local * self.args.world_size), device=device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum over rows / `num_items_in_batch` (None: mean of this batch), times ranks, since DDP
        averages."""
        losses = self.losses(model, inputs)
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
                    "chosen replies have become less likely than under the reference (%.1f nats each)%s",
                    means["logratio/chosen"],
                    self.remedy,
                )
        return means

    remedy = ""
    """Appended to the warning that chosen replies become less likely."""

    def heldout_metrics(self) -> dict[str, float]:
        """Held-out loss, rewards and margins."""
        self.measure([partial(self.heldout.__getitem__, i) for i in range(len(self.heldout))])
        metrics = self.extra_metrics("heldout")
        metrics.pop("tokens_per_second")
        return metrics


def tokens_of(row: dict[str, Any]) -> int:
    """Tokens of a single row, or of both sides of a pair."""
    parts = (row["chosen"], row["rejected"]) if "chosen" in row else (row,)
    return sum(len(part["input_ids"]) for part in parts)


class ReferenceCallback(TrainerCallback):
    """Prepares the reference once the engine has the model, before the first batch is read."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.prepare_reference()
