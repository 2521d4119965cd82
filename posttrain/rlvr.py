"""Reinforcement learning with verifiable rewards; a thin subclass of TRL's GRPOTrainer.

    posttrain rlvr my-rlvr.yaml policy.advantage=pass_at_k policy.k=4
    accelerate launch --config_file launch/ddp.yaml -m posttrain.rlvr my-rlvr.yaml

What is ours: prompts come from the mixture, completions from the Generator, rewards from the registry, advantages from
losses/advantage.py over whole groups, log-probabilities from the fused head (no T x V logits). TRL's own are the clipped
losses and the KL term. Left out: value models (PPO), tools and several turns, rewards inside a completion.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer

from posttrain.base.files import write_jsonl
from posttrain.base.stop import Stopped
from posttrain.data.order import key_of
from posttrain.errors import WorkError
from posttrain.generation.base import Generator
from posttrain.generation.local import TransformersGenerator
from posttrain.losses.importance import importance_ratio
from posttrain.models.head import attach_fused_head
from posttrain.models.load import head_without_adapter
from posttrain.recipe import RlvrRecipe
from posttrain.rewards.compose import Composite
from posttrain.rollouts.batch import Inputs, judged, micro_batches
from posttrain.rollouts.draw import Drawn, Interrupted, RolloutSource
from posttrain.rollouts.groups import Prompts
from posttrain.rollouts.records import rows_of
from posttrain.rollouts.stats import RolloutStats, mean_of_window
from posttrain.stages.launch import stage_main
from posttrain.stages.train import run_stage
from posttrain.training.engines import whole_model
from posttrain.training.parts import StageParts
from posttrain.training.reference import frozen_reference, refuse_other_reference, without_adapter
from posttrain.training.trainer import RunTrainer

log = logging.getLogger(__name__)
LOUD = 0.01
"""A share of failed checks above this is said aloud."""


class Ticks(torch.utils.data.Dataset):
    """The clock of the training loop: rollouts come from elsewhere, its batches only count micro-batches."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> int:
        return i


class RlvrTrainer(RunTrainer, GRPOTrainer):
    """TRL's GRPOTrainer with our rollouts, the fused head and posttrain's checkpoints."""

    def setup_rollouts(self, recipe: RlvrRecipe, parts: StageParts, rewards: Composite) -> None:
        """Replaces TRL's fused head and its sampling by ours; call after `setup_run`."""
        attach_fused_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        self.recipe, self.parts = recipe, parts
        self.beta = recipe.policy.beta
        if self.beta and (recipe.policy.reference or not is_peft_model(self.model)):
            place = recipe.policy.reference
            self.ref_model = frozen_reference(
                recipe.model, place, parts.tokenizer, parts.init, recipe.train.seed, self.accelerator
            )
        self.source = RolloutSource(
            Prompts(parts.prepared),
            recipe.rollout,
            rewards,
            recipe.train.seed,
            self.args.process_index,
            self.args.world_size,
            self.gather,
            lambda: self.stop.requested,
        )
        self.stats = {"train": RolloutStats()}
        self._correction = "none"
        if recipe.rollout.backend != "transformers":
            from posttrain.generation.vllm import vllm_generator

            self._vllm = vllm_generator(self, recipe)
            self._correction = recipe.rollout.vllm.correction
            # what TRL's loss asks before it multiplies by the importance ratio
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
        if self.recipe.rollout.backend != "transformers":
            yield self._vllm
            return
        with whole_model(self.model_wrapped, self.accelerator) as model:
            yield TransformersGenerator(model, self.parts.tokenizer, self.parts.template.stops)

    def _next_batch(self) -> list[Inputs]:
        recipe = self.recipe
        steps = recipe.rollout.steps_per_generation
        size = recipe.train.global_batch_size * steps // recipe.rollout.num_generations
        begun = self.source.position
        try:
            drawn = self.source.draw(self._generating, size)
        except Interrupted as stop:
            # The weights are those of the last step: save them, and nothing is lost but this batch. Before the first one
            # there is nothing to save, and a start draws random numbers that a resumed run would not.
            if self.state.global_step:
                self._save_checkpoint(self.model_wrapped)
            raise Stopped(
                f"stopped after step {self.state.global_step}; the same command goes on from there"
            ) from stop
        about = judged(drawn.groups, recipe.policy, recipe.rollout)
        self._write(drawn, about)
        self._refuse_failures(drawn)
        self.stats["train"].add(drawn, about)
        batches = micro_batches(
            drawn.groups,
            about,
            self.parts.tokenizer.pad_token_id,
            steps,
            self.args.per_device_train_batch_size,
            key_of(recipe.train.seed, begun),
            self.args.process_index,
            self.args.world_size,
        )
        with torch.no_grad():
            return [self._with_old(self._to_device(batch)) for batch in batches]

    def _to_device(self, batch: Inputs) -> Inputs:
        return {name: value.to(self.args.device) for name, value in batch.items()}

    def _with_old(self, batch: Inputs) -> Inputs:
        """Adds what the loss needs of the policy that sampled, and of the reference."""
        sampled, mask = batch.pop("sampled_log_probs"), batch["completion_mask"]
        corrected = self._correction != "none"
        apart = self.args.steps_per_generation * self.num_iterations
        if corrected or self.args.gradient_accumulation_steps % apart:
            batch["old_per_token_logps"] = self._log_probs(self.model, batch)
        if corrected:
            vllm = self.recipe.rollout.vllm
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
        """log p and entropy of completion tokens at the sampling temperature, fp32 [B, C], by the fused head."""
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, :-logits_to_keep] = -100
        with self.accelerator.autocast():
            out = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                labels=labels,
                position_ids=(attention_mask.cumsum(1) - 1).clamp(
                    min=0
                ),  # of left-padded prompts, as sampled
                tokens={"temperature": self.recipe.rollout.temperature},
            )
        kept = slice(-logits_to_keep, None)
        return out.log_probs[:, kept], out.entropy[:, kept] if compute_entropy else None, None

    def _get_num_items_in_batch(self, batch_samples, device):
        """The losses count for themselves."""
        return None

    # ---- what is kept and said of rollouts -----------------------------------------------------------------

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
        """Raises WorkError where too many checks failed; says so where some did."""
        graded = [g for group in (*drawn.groups, *drawn.aside) for g in group.graded]
        failed = [g for g in graded if g.failed]
        share, most = len(failed) / len(graded), self.recipe.rollout.max_failed
        if share <= min(LOUD, most):
            return
        reasons = Counter(
            f"{label}: {v.status}" + (f" ({v.reason})" if v.reason else "")
            for g in failed
            for label, v in g.components.items()
            if v.value is None
        )
        what = f"{len(failed)} of {len(graded)} checks failed ({share:.0%}); most often {reasons.most_common(1)[0][0]}"
        if share > most:
            raise WorkError(f"{what}. More than rollout.max_failed = {most:g}: the run stops")
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
        """Goes on with the prompt after the last one that was trained on."""
        self.source.position = facts["prompts"]


def build(recipe: RlvrRecipe, parts: StageParts) -> RlvrTrainer:
    """The trainer of this stage, from what `run_stage` has loaded."""
    rewards = Composite(recipe.rewards, recipe.success)
    with head_without_adapter(parts.model):
        trainer = RlvrTrainer(
            model=parts.model,
            reward_funcs=_none,
            args=parts.args,
            train_dataset=Dataset.from_list([{"prompt": "."}]),
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
        )
    trainer.data_collator = torch.tensor
    ticks = Ticks(parts.args.max_steps * recipe.train.global_batch_size)
    trainer.setup_run(parts.run, ticks, parts.guard, parts.stop, parts.facts)
    trainer.setup_rollouts(recipe, parts, rewards)
    return trainer


def _none(completions: list[Any], **columns: Any) -> list[float]:
    """TRL wants a reward function; rewards come from the registry before it would ask."""
    raise NotImplementedError


def train(recipe: RlvrRecipe, score_factory=None):
    """Run the stage; see `posttrain.stages.train.run_stage`."""
    refuse_other_reference(recipe, recipe.policy.reference, "policy.reference")
    return run_stage(recipe, build, GRPOConfig, score_factory)


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.rlvr RECIPE [key=value ...]`."""
    return stage_main("rlvr", train, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
