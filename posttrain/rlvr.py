"""Reinforcement learning with verifiable rewards; a thin subclass of TRL's GRPOTrainer.

    posttrain rlvr my-rlvr.yaml policy.advantage=pass_at_k policy.k=4
    accelerate launch --config_file launch/ddp.yaml -m posttrain.rlvr my-rlvr.yaml

Ours are the prompts (from the mixture), completions (from a Generator), rewards (from the registry),
advantages (losses/advantage.py, over whole groups) and log-probabilities (from the fused head, without T x V
logits). TRL's are the clipped losses and the KL term. Left out: value models (PPO), tools and several turns,
rewards inside a completion.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":  # before the libraries below: they read it when they are imported
    from posttrain.base.process import quiet_libraries

    quiet_libraries()

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer

from posttrain.base.files import write_jsonl
from posttrain.base.process import world_size
from posttrain.base.stop import Stopped
from posttrain.data.order import key_of
from posttrain.data.tokens import IGNORED
from posttrain.errors import WorkError
from posttrain.generation.base import Generator
from posttrain.generation.local import TransformersGenerator
from posttrain.generation.vllm import vllm_generator
from posttrain.losses.importance import importance_ratio
from posttrain.models.adapters import head_without_adapter
from posttrain.models.head import attach_fused_head
from posttrain.recipe import RlvrRecipe
from posttrain.recipe.plan import batch_plan
from posttrain.rewards.compose import Composite
from posttrain.rollouts.batch import Inputs, batch_advantages, micro_batches
from posttrain.rollouts.draw import Drawn, Interrupted, RolloutSource
from posttrain.rollouts.groups import Prompts
from posttrain.rollouts.records import rows_of
from posttrain.rollouts.stats import RolloutStats, mean_of_window
from posttrain.rundir.directory import RunDir
from posttrain.stages.launch import launch_training
from posttrain.stages.train import MakeScorer, TrainStage, run_training
from posttrain.training.engines import whole_model
from posttrain.training.parts import PromptParts
from posttrain.training.reference import frozen_reference, refuse_other_reference, without_adapter
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

    def setup_rollouts(self, recipe: RlvrRecipe, parts: PromptParts, rewards: Composite) -> None:
        """Replaces TRL's fused head and its sampling with ours; call after `setup_run`."""
        attach_fused_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        self.recipe, self.parts = recipe, parts
        self.beta = recipe.policy.beta
        if self.beta and (recipe.policy.reference or not is_peft_model(self.model)):
            place = recipe.policy.reference
            self.ref_model = frozen_reference(
                recipe.model, place, parts.tokenizer, parts.start, recipe.train.seed, self.accelerator
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
            self._vllm = vllm_generator(self, recipe.model, recipe.data.max_length, recipe.rollout)
            self._correction = recipe.rollout.vllm.correction
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
            # The weights are those of the last step: save them, and only this batch is lost. Before the first
            # step there is nothing to save, and a fresh start draws random numbers that a resumed run would
            # not.
            if self.state.global_step:
                self._save_checkpoint(self.model_wrapped)
            raise Stopped(
                f"stopped after step {self.state.global_step}; run the same command to resume"
            ) from stop
        about = batch_advantages(drawn.groups, recipe.policy, recipe.rollout)
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
        """Adds the log-probabilities of the policy that sampled and of the reference, where the loss needs
        them."""
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
                tokens={"temperature": self.recipe.rollout.temperature},
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
        share, most = len(failed) / len(graded), self.recipe.rollout.max_failed
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


LOSSES = {"gspo": ("grpo", "sequence")}
"""Loss of the recipe -> TRL's (loss_type, importance_sampling_level), where they are not (its name,
"token")."""
EPSILON = {"gspo": (3e-4, 4e-4), "cispo": (0.2, 5.0)}
"""Usual (epsilon, epsilon_high) by loss; (0.2, the same) for the others."""


def arguments(recipe: RlvrRecipe) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig that only this stage sets; rollouts, rewards and the reference are
    ours."""
    policy, rollout = recipe.policy, recipe.rollout
    loss, level = LOSSES.get(policy.loss, (policy.loss, "token"))
    low, high = EPSILON.get(policy.loss, (0.2, None))
    low = low if policy.epsilon is None else policy.epsilon
    if policy.epsilon_high is not None or policy.epsilon is not None:
        high = policy.epsilon_high
    accumulation = batch_plan(recipe.train, world_size()).accumulation
    return {
        "num_generations": rollout.num_generations,
        "max_completion_length": rollout.max_new_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "steps_per_generation": accumulation * rollout.steps_per_generation,
        "num_iterations": policy.num_iterations,
        "loss_type": loss,
        "importance_sampling_level": level,
        "epsilon": low,
        "epsilon_high": low if high is None else high,
        "beta": 0.0,  # set once our reference is loaded
        "shuffle_dataset": False,
    }


def build(recipe: RlvrRecipe, parts: PromptParts) -> RlvrTrainer:
    """The trainer of this stage."""
    rewards = Composite(recipe.rewards, recipe.success)
    with head_without_adapter(parts.model):
        trainer = RlvrTrainer(
            model=parts.model,
            reward_funcs=_none,
            args=parts.arguments,
            train_dataset=Dataset.from_list([{"prompt": "."}]),
            processing_class=parts.tokenizer,
            peft_config=parts.adapter,
        )
    trainer.data_collator = torch.tensor
    trainer.setup_run(parts, Ticks(parts.arguments.max_steps * recipe.train.global_batch_size))
    trainer.setup_rollouts(recipe, parts, rewards)
    return trainer


def _none(completions: list[Any], **columns: Any) -> list[float]:
    """TRL requires a reward function; it is never called, since the rewards are known before."""
    raise NotImplementedError


STAGE = TrainStage(GRPOConfig, arguments, build)


def train(recipe: RlvrRecipe, make_scorer: MakeScorer | None = None) -> RunDir:
    """Run the stage; see `posttrain.stages.train.run_training`."""
    refuse_other_reference(recipe.model, recipe.data.template, recipe.policy.reference, "policy.reference")
    return run_training(recipe, STAGE, make_scorer)


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.rlvr RECIPE [key=value ...]`; returns the exit code."""
    return launch_training("rlvr", train, argv)


if __name__ == "__main__":
    sys.exit(main())
