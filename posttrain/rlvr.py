"""Reinforcement learning with verifiable rewards; a thin subclass of TRL's GRPOTrainer.

    posttrain rlvr my-rlvr.yaml policy.advantage=pass_at_k policy.k=4
    accelerate launch --config_file launch/ddp.yaml -m posttrain.rlvr my-rlvr.yaml

Ours are the prompts (from the mixture), completions (from a Generator), rewards (from the registry),
advantages (losses/advantage.py, over whole groups) and log-probabilities (from the fused head, without T x V
logits). TRL's are the clipped losses and the KL term. Left out: value models (PPO), tools and several turns,
rewards inside a completion.
"""

from __future__ import annotations

import sys
from typing import Any

if __name__ == "__main__":  # before the libraries below: they read it when they are imported
    from posttrain.base.process import quiet_libraries

    quiet_libraries()

import torch
from datasets import Dataset
from trl import GRPOConfig

from posttrain.base.process import world_size
from posttrain.models.adapters import head_without_adapter
from posttrain.recipe import RlvrRecipe
from posttrain.recipe.plan import batch_plan, reference_of
from posttrain.rewards.compose import Composite
from posttrain.rundir.directory import RunDir
from posttrain.stages.launch import launch_training
from posttrain.stages.train import MakeScorer, TrainStage, run_training
from posttrain.training.parts import PromptParts
from posttrain.training.reference import refuse_other_reference
from posttrain.training.rlvr import RlvrTrainer, Ticks

LOSSES = {"gspo": ("grpo", "sequence")}
"""Loss of the recipe -> TRL's (loss_type, importance_sampling_level), where they are not (its name,
"token")."""
EPSILON = {"gspo": (3e-4, 4e-4), "cispo": (0.2, 5.0)}
"""Usual (epsilon, epsilon_high) by loss; (0.2, the same) for the others."""


def arguments(recipe: RlvrRecipe) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig that only this stage computes."""
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
        "use_bias_correction_kl": policy.kl == "k3_weighted",
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
    trainer.setup_rollouts(parts, rewards, recipe.model, recipe.rollout, recipe.policy)
    return trainer


def _none(completions: list[Any], **columns: Any) -> list[float]:
    """TRL requires a reward function; it is never called, since the rewards are known before."""
    raise NotImplementedError


STAGE = TrainStage(GRPOConfig, build, arguments)


def train(recipe: RlvrRecipe, make_scorer: MakeScorer | None = None) -> RunDir:
    """Run the stage; see `posttrain.stages.train.run_training`."""
    refuse_other_reference(recipe.model, recipe.data.template, reference_of(recipe))
    return run_training(recipe, STAGE, make_scorer)


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.rlvr RECIPE [key=value ...]`; returns the exit code."""
    return launch_training("rlvr", train, argv)


if __name__ == "__main__":
    sys.exit(main())
