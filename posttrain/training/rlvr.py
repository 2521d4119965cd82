"""`RlvrTrainer`: TRL's GRPOTrainer on rollouts of our own, with log-probabilities from the fused head.

TRL's are the clipped losses and the KL term; everything before them is replaced. A batch of rollouts is
drawn, turned into advantages, cut into micro-batches, compared with the policy and written to disk whenever
the one before is used up.
Left out: sampling and scoring themselves (`rollouts/draw.py`), the recipe of the stage (`posttrain/rlvr.py`).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl import GRPOTrainer

from posttrain.base.files import write_jsonl
from posttrain.base.stop import Stopped
from posttrain.data.order import key_of
from posttrain.data.tokenizers import decode
from posttrain.data.tokens import IGNORED
from posttrain.errors import WorkError
from posttrain.generation.base import Generator
from posttrain.generation.local import TransformersGenerator
from posttrain.generation.vllm import vllm_generator
from posttrain.losses.importance import importance_ratio
from posttrain.models.adapters import off_is_start
from posttrain.models.dropout import turn_off_dropout
from posttrain.models.head import attach_fused_head, balancing_coefficient
from posttrain.recipe.schema import Model
from posttrain.recipe.sections import Policy, TrainRollout
from posttrain.rewards.compose import Composite
from posttrain.rollouts.batch import BatchAdvantages, Inputs, batch_advantages, cost_of, micro_batches
from posttrain.rollouts.draw import Drawn, Interrupted, RolloutSource
from posttrain.rollouts.groups import Prompts
from posttrain.rollouts.mismatch import Mismatch, compared
from posttrain.rollouts.records import batch_rows
from posttrain.rollouts.stats import RolloutStats, mean_of_window, why_stopped
from posttrain.rundir.checkpoints import how_to_resume
from posttrain.training.engines import whole_model
from posttrain.training.parts import PromptParts
from posttrain.training.reference import frozen_reference, without_adapter
from posttrain.training.spent import with_reference
from posttrain.training.trainer import RunTrainer

log = logging.getLogger(__name__)


class Ticks(torch.utils.data.Dataset):
    """The data set of the training loop: rollouts come from elsewhere, its batches only count
    micro-batches."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> int:
        return i


class RlvrTrainer(RunTrainer, GRPOTrainer):
    """TRL's GRPOTrainer with our rollouts, the fused head and posttrain's checkpoints."""

    def setup_rollouts(
        self, parts: PromptParts, rewards: Composite, start: Model, rollout: TrainRollout, policy: Policy
    ) -> None:
        """Replaces TRL's fused head and its sampling with ours and turns dropout off; call after `setup_run`.

        `start`: the recipe's section `model`.
        """
        mixed = self.accelerator.mixed_precision
        model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        attach_fused_head(model, mixed)
        # TRL's loss adds it, as a mean over the step's micro-batches
        self.router_aux_loss_coef = balancing_coefficient(model)
        self.aux_loss_enabled = self.router_aux_loss_coef != 0
        turn_off_dropout(self.model, mixed)
        self.parts, self.rollout, self.policy = parts, rollout, policy
        self.beta = policy.beta
        own = start.lora is not None and off_is_start(start.lora)
        if self.beta and (policy.reference or not own):
            self.ref_model = frozen_reference(
                start, policy.reference, parts.tokenizer, parts.start, self.args.seed, self.accelerator
            )
        self.source = RolloutSource(
            Prompts(parts.prepared),
            rollout,
            rewards,
            self.args.seed,
            self.args.process_index,
            self.args.world_size,
            self.gather,
            lambda: self.stop.requested,
        )
        self.stats = {"train": RolloutStats(parts.prepared.names)}
        self._correction, self._compares = "none", False
        if rollout.backend != "transformers":
            if parts.template.endings:
                log.warning(
                    "%r is several tokens: vLLM stops at single tokens only", parts.template.end_of_turn
                )
            self._vllm = vllm_generator(self, start, self.facts["max_length"], rollout)
            self._correction = rollout.vllm.correction
            self._compares = self._correction != "none" or rollout.vllm.max_logp_diff is not None
            # TRL's loss checks these before it multiplies by the importance ratio
            self.use_vllm = True
            self.vllm_importance_sampling_correction = self._correction != "none"

    # ---- rollouts ------------------------------------------------------------------------------------------

    def _prepare_inputs(self, batch: Any) -> Inputs:
        """The next micro-batch; where a batch of rollouts is used up, the next one first."""
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            self._buffered_inputs = self._next_batch()
        turn = self._step % self.args.steps_per_generation
        self.spent.add(self._buffered_costs[turn])
        return self._buffered_inputs[turn]

    def cost(self, inputs: Any) -> dict[str, Any]:
        """Of a batch that only counts: see `_prepare_inputs`."""
        return {}

    def parameters(self) -> dict[str, int] | None:
        found = super().parameters()
        return with_reference(found, self.model, self.ref_model) if found and self.beta else found

    @contextlib.contextmanager
    def _generating(self) -> Iterator[Generator]:
        if self.rollout.backend != "transformers":
            yield self._vllm
            return
        with whole_model(self.model_wrapped, self.accelerator) as model:
            template = self.parts.template
            yield TransformersGenerator(model, self.parts.tokenizer, template.stops, template.endings)

    def _next_batch(self) -> list[Inputs]:
        steps = self.rollout.steps_per_generation
        size = self.facts["global_batch_size"] * steps // self.rollout.num_generations
        begun = self.source.position
        try:
            drawn = self.source.draw(self._generating, size)
        except Interrupted as stop:
            # The weights are those of the last step: save them, and only this batch is lost. Before the first
            # step there is nothing to save, and a fresh start draws random numbers that a resumed run would
            # not.
            if self.state.global_step:
                self._save_checkpoint(self.model_wrapped)
            resume = how_to_resume(self.run.checkpoints)
            raise Stopped(f"stopped after step {self.state.global_step}; {resume}") from stop
        about = batch_advantages(drawn.groups, self.policy, self.rollout)
        batches = micro_batches(
            drawn.groups,
            about,
            self.parts.tokenizer.pad_token_id,
            steps,
            self.args.per_device_train_batch_size,
            key_of(self.args.seed, begun),
            self.args.process_index,
            self.args.world_size,
        )
        self._buffered_costs = [cost_of(batch) for batch in batches]
        if self.is_world_process_zero():  # all ranks have all that was sampled
            self.spent.add(drawn.cost())
        with self.inference():
            completed = [
                self._with_old(self._to_device(batch), cost["num_tokens"])
                for batch, cost in zip(batches, self._buffered_costs, strict=True)
            ]
        self._write_and_log(drawn, about, [row for _, rows in completed for row in rows])
        return [batch for batch, _ in completed]

    def _write_and_log(self, drawn: Drawn, about: BatchAdvantages, found: list[list[float]]) -> None:
        """Writes the batch to disk and logs it. Raises `WorkError` where nothing may be trained on it.

        `found`: what this rank's micro-batches give `Mismatch`.
        """
        mismatch = Mismatch.of(self.gather(found), self.rollout) if self._compares else None
        step = self.state.global_step + 1
        reason = why_stopped(drawn, step, self.rollout.max_failed)
        if mismatch is not None:
            about.trained = about.trained & mismatch.kept(about.trained.numel()).view_as(about.trained)
            reason = reason or mismatch.refusal()
        if reason is not None:
            about.trained = torch.zeros_like(about.trained)
        if self.is_world_process_zero():
            differences = mismatch and mismatch.differences()
            read = partial(decode, tokenizer=self.parts.tokenizer)
            rows = batch_rows(drawn, about, step, read, differences)
            write_jsonl(self.run.path / "rollouts" / f"step-{step:06d}.jsonl", rows)
        if reason is not None:
            raise WorkError(f"stopped before step {step}: {reason}")
        self.stats["train"].add(drawn, about, mismatch and mismatch.metrics())

    def _several_steps(self) -> bool:
        a_batch = self.args.steps_per_generation * self.num_iterations  # micro-batches trained on one batch
        return bool(self.args.gradient_accumulation_steps % a_batch)

    def _to_device(self, batch: Inputs) -> Inputs:
        return {name: value.to(self.args.device) for name, value in batch.items()}

    def _with_old(self, batch: Inputs, tokens: int) -> tuple[Inputs, list[list[float]]]:
        """Adds the log-probabilities of the policy that sampled and of the reference, where the loss needs
        them. Returns (batch, rows for `Mismatch`). `tokens`: of the batch, without padding."""
        sampled, rows, mask = batch.pop("sampled_log_probs"), batch.pop("rows"), batch["completion_mask"]
        mode, vllm, found, weights = self._correction, self.rollout.vllm, [], None
        bounds = vllm.correction_max, vllm.correction_min
        if self._compares or self._several_steps():
            self.spent.add({"num_forward_tokens": tokens})
            old = self._log_probs(self.model, batch)
        if mode != "none":
            weights = importance_ratio(old, sampled, mask, mode, *bounds)
            batch["importance_sampling_ratio"] = weights
        if mode != "none" or self._several_steps():
            batch["old_per_token_logps"] = old
        if self._compares:
            found = compared(old, sampled, mask, rows, weights, mode, *bounds)
        if self.beta:
            self.spent.add({"num_reference_tokens": tokens})
            with without_adapter(self, self.ref_model is None):
                reference = self.model if self.ref_model is None else self.ref_model
                batch["ref_per_token_logps"] = self._log_probs(reference, batch)
        return batch, found

    def _log_probs(self, model: nn.Module, batch: Inputs) -> Tensor:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        return self._get_per_token_logps_and_entropies(model, ids, mask, batch["completion_ids"].shape[1])[0]

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        **other,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """log p and entropy of completion tokens at the sampling temperature, fp32 [B, C], and the
        load-balancing loss where the model has one."""
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
        labels[:, :-logits_to_keep] = IGNORED
        with self.accelerator.autocast():
            out = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                labels=labels,
                position_ids=(attention_mask.cumsum(1) - 1).clamp(
                    min=0
                ),  # of left-padded prompts, as sampled
                tokens={"temperature": self.rollout.temperature},
            )
        kept = slice(-logits_to_keep, None)
        return out.log_probs[:, kept], out.entropy[:, kept] if compute_entropy else None, out.aux_loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """TRL's losses do their own counting."""
        return None

    # ---- logs and checkpoints ------------------------------------------------------------------------------

    def extra_metrics(self, mode: str) -> dict[str, float]:
        found = self.stats["train"].means()
        self.stats["train"].reset()
        own = {name: mean_of_window(values) for name, values in self._metrics["train"].items()}
        self._metrics["train"].clear()
        return found | {k: v for k, v in own.items() if v is not None and k != "step_time"}

    def window(self) -> dict[str, Any]:
        """Every rank measures what all have sampled, and the library gathers its own."""
        own = {name: list(values) for name, values in self._metrics["train"].items()}
        return {"losses": self._window_losses, "stats": self.stats["train"].state(), "library": own}

    def load_window(self, window: dict[str, Any]) -> None:
        self._window_losses = list(window["losses"])
        self.stats["train"].load(window["stats"])
        for name, values in window["library"].items():
            self._metrics["train"][name] += [math.nan if value is None else value for value in values]

    def epoch(self) -> float:
        """Passes over the prompts so far."""
        return self.source.position / max(len(self.source.prompts), 1)

    def checkpoint_facts(self, resumable) -> dict[str, Any]:
        return super().checkpoint_facts(resumable) | {"prompts": self.source.position}

    def resume_from(self, facts: dict[str, Any]) -> None:
        """Continues with the prompt after the last one that was trained on."""
        super().resume_from(facts)
        self.source.position = facts["prompts"]
