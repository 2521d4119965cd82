"""`RlvrTrainer`: TRL's GRPOTrainer on rollouts of our own, with log-probabilities from the fused head.

TRL's are the clipped losses and the KL term; everything before them is replaced. A batch of rollouts is
drawn, written to disk, turned into advantages and cut into micro-batches whenever the one before is used up.
Left out: sampling and scoring themselves (`rollouts/draw.py`), the recipe of the stage (`posttrain/rlvr.py`).
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl import GRPOTrainer

from posttrain.base.files import write_jsonl
from posttrain.base.stop import Stopped
from posttrain.data.order import key_of
from posttrain.data.tokens import IGNORED
from posttrain.errors import WorkError
from posttrain.generation.base import Generator
from posttrain.generation.local import TransformersGenerator
from posttrain.generation.vllm import vllm_generator
from posttrain.losses.importance import importance_ratio
from posttrain.models.dropout import turn_off_dropout
from posttrain.models.head import attach_fused_head
from posttrain.recipe.schema import Model
from posttrain.recipe.sections import Policy, TrainRollout
from posttrain.rewards.compose import Composite
from posttrain.rollouts.batch import Inputs, batch_advantages, micro_batches
from posttrain.rollouts.draw import Drawn, Interrupted, RolloutSource
from posttrain.rollouts.groups import Prompts
from posttrain.rollouts.records import rows_of
from posttrain.rollouts.stats import RolloutStats, mean_of_window
from posttrain.training.engines import whole_model
from posttrain.training.parts import PromptParts
from posttrain.training.reference import frozen_reference, without_adapter
from posttrain.training.trainer import RunTrainer

log = logging.getLogger(__name__)
WARN_ABOVE = 0.01
"""A share of failed checks above this is logged as a warning."""


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
        attach_fused_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        turn_off_dropout(self.model)
        self.parts, self.rollout, self.policy = parts, rollout, policy
        self.beta = policy.beta
        if self.beta and (policy.reference or not is_peft_model(self.model)):
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
        self.stats = {"train": RolloutStats()}
        self._correction = "none"
        if rollout.backend != "transformers":
            self._vllm = vllm_generator(self, start, self.facts["max_length"], rollout)
            self._correction = rollout.vllm.correction
            # TRL's loss checks these before it multiplies by the importance ratio
            self.use_vllm = True
            self.vllm_importance_sampling_correction = self._correction != "none"

    # ---- rollouts ------------------------------------------------------------------------------------------

    def _prepare_inputs(self, batch: Any) -> Inputs:
        """The next micro-batch; where a batch of rollouts is used up, the next one first."""
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            self._buffered_inputs = self._next_batch()
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    @contextlib.contextmanager
    def _generating(self) -> Iterator[Generator]:
        if self.rollout.backend != "transformers":
            yield self._vllm
            return
        with whole_model(self.model_wrapped, self.accelerator) as model:
            yield TransformersGenerator(model, self.parts.tokenizer, self.parts.template.stops)

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
            raise Stopped(
                f"stopped after step {self.state.global_step}; run the same command to resume"
            ) from stop
        about = batch_advantages(drawn.groups, self.policy, self.rollout)
        self._write(drawn, about)
        self._refuse_failures(drawn)
        self.stats["train"].add(drawn, about)
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
        with torch.no_grad():
            return [self._with_old(self._to_device(batch)) for batch in batches]

    def _to_device(self, batch: Inputs) -> Inputs:
        return {name: value.to(self.args.device) for name, value in batch.items()}

    def _with_old(self, batch: Inputs) -> Inputs:
        """Adds the log-probabilities of the policy that sampled and of the reference, where the loss needs
        them."""
        sampled, mask = batch.pop("sampled_log_probs"), batch["completion_mask"]
        corrected = self._correction != "none"
        apart = self.args.steps_per_generation * self.num_iterations
        if corrected or self.args.gradient_accumulation_steps % apart:
            batch["old_per_token_logps"] = self._log_probs(self.model, batch)
        if corrected:
            vllm = self.rollout.vllm
            batch["sampling_per_token_logps"] = sampled
            batch["importance_sampling_ratio"] = importance_ratio(
                batch["old_per_token_logps"],
                sampled,
                mask,
                self._correction,
                high=vllm.correction_max,
                low=vllm.correction_min,
            )
        if self.beta:
            with without_adapter(self, self.ref_model is None):
                reference = self.model if self.ref_model is None else self.ref_model
                batch["ref_per_token_logps"] = self._log_probs(reference, batch)
        return batch

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
    ) -> tuple[Tensor, Tensor | None, None]:
        """log p and entropy of completion tokens at the sampling temperature, fp32 [B, C]."""
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
        return out.log_probs[:, kept], out.entropy[:, kept] if compute_entropy else None, None

    def _get_num_items_in_batch(self, batch_samples, device):
        """TRL's losses do their own counting."""
        return None

    # ---- rollouts on disk, failed checks ------------------------------------------------------------------

    def _write(self, drawn: Drawn, about: Any) -> None:
        """`rollouts/step-N.jsonl`, N the first step it trains."""
        if not self.is_world_process_zero():
            return
        step, rows = self.state.global_step + 1, []
        for number, group in enumerate((*drawn.groups, *drawn.aside)):
            text = self.parts.tokenizer.decode(group.prompt.ids)
            for i, row in enumerate(rows_of(group, number, text)):
                kept = number < len(drawn.groups)
                value = float(about.advantages[number, i]) if kept else None
                trained = kept and bool(about.trained[number, i])
                rows.append({"step": step} | row | {"advantage": value, "trained": trained})
        write_jsonl(self.run.path / "rollouts" / f"step-{step:06d}.jsonl", rows)

    def _refuse_failures(self, drawn: Drawn) -> None:
        """Raises WorkError where too many checks failed; logs a warning where some did."""
        graded = [g for group in (*drawn.groups, *drawn.aside) for g in group.graded]
        failed = [g for g in graded if g.failed]
        share, most = len(failed) / len(graded), self.rollout.max_failed
        if share <= min(WARN_ABOVE, most):
            return
        reasons = Counter(
            f"{label}: {v.status}" + (f" ({v.reason})" if v.reason else "")
            for g in failed
            for label, v in g.components.items()
            if v.value is None
        )
        what = f"{len(failed)} of {len(graded)} checks failed ({share:.0%}), most often "
        what += reasons.most_common(1)[0][0]
        if share > most:
            raise WorkError(f"{what}; rollout.max_failed = {most:g} allows fewer, so the run stops")
        log.warning("step %d: %s; they are left out", self.state.global_step + 1, what)

    # ---- logs and checkpoints ------------------------------------------------------------------------------

    def extra_metrics(self, mode: str) -> dict[str, float]:
        found = self.stats["train"].means()
        self.stats["train"].reset()
        own = {name: mean_of_window(values) for name, values in self._metrics["train"].items()}
        self._metrics["train"].clear()
        return found | {k: v for k, v in own.items() if v is not None and k != "step_time"}

    def epoch(self) -> float:
        """Passes over the prompts so far."""
        return self.source.position / max(len(self.source.prompts), 1)

    def checkpoint_facts(self, folder, resumable) -> dict[str, Any]:
        return super().checkpoint_facts(folder, resumable) | {"prompts": self.source.position}

    def resume_from(self, facts: dict[str, Any]) -> None:
        """Continues with the prompt after the last one that was trained on."""
        self.source.position = facts["prompts"]
