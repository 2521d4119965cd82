"""Recipe -> arguments of TRL's config class.

Saving, held-out evaluation and scoring are driven by posttrain's own callbacks, so the library's strategies
for them are switched off here; so is everything that would leave the machine.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from posttrain.base.process import world_size
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import RlvrRecipe, TrainRecipe
from posttrain.recipe.plan import batch_plan
from posttrain.rundir.directory import RunDir


def trainer_arguments(recipe: TrainRecipe, config_class: type, run: RunDir, max_steps: int) -> Any:
    """An instance of `config_class` (SFTConfig, ...) for `recipe`."""
    train = recipe.train
    plan = batch_plan(train, world_size())
    if train.fp16 and trains_on_cpu():
        raise RequestError("train.fp16 does nothing on a CPU; use bf16, or neither")
    values: dict[str, Any] = {
        "output_dir": str(run.path),
        "run_name": recipe.name,
        "max_steps": max_steps,
        "per_device_train_batch_size": plan.micro,
        "per_device_eval_batch_size": 4 * plan.micro,  # no gradients are held
        "gradient_accumulation_steps": plan.accumulation,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # the guard looks at every step; this filter hides them
        "remove_unused_columns": False,  # or segment_ids would vanish
        "train_sampling_strategy": "sequential",  # the mixture is the order
        "disable_tqdm": not sys.stderr.isatty(),
        "push_to_hub": False,
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,  # every trained parameter takes part in every step
        "use_cpu": trains_on_cpu(),
        **activation_checkpointing(config_class, train.activation_checkpointing),
    }
    for name in (
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "optim",
        "bf16",
        "fp16",
        "logging_steps",
        "seed",
        "dataloader_num_workers",
        "report_to",
    ):
        values[name] = getattr(train, name)
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in train.report_to:
        known = {*INTEGRATION_TO_CALLBACK, "all", "none"}
        if name not in known:
            near = did_you_mean(name, known)
            raise RequestError(f"train.report_to: no integration is called {name!r}{near}")
    if "tensorboard" in train.report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.path / "tensorboard"))
    if recipe.stage == "sft":
        values |= {
            "max_length": None,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "completion_only_loss": False,
            "shuffle_dataset": False,
        }
    if recipe.stage == "dpo":
        # The reference is ours (training/reference.py); asked to precompute, TRL loads no second model.
        values |= {"max_length": None, "precompute_ref_log_probs": True}
    if isinstance(recipe, RlvrRecipe):
        values |= rlvr_arguments(recipe, plan.accumulation)
    try:
        return config_class(**(values | train.extra))
    except (ValueError, TypeError) as error:
        raise RequestError(f"train: {config_class.__name__} refuses these settings: {error}") from error


LOSSES = {"gspo": ("grpo", "sequence")}
"""Loss of the recipe -> (loss_type, importance_sampling_level) of TRL, where they are not (its name, token)."""
EPSILON = {"gspo": (3e-4, 4e-4), "cispo": (0.2, 5.0)}
"""Usual (epsilon, epsilon_high) by loss; (0.2, the same) for the others."""


def rlvr_arguments(recipe: RlvrRecipe, accumulation: int) -> dict[str, Any]:
    """What TRL's losses and its batch arithmetic need of an RLVR recipe. Rollouts, rewards and reference are ours."""
    policy, rollout = recipe.policy, recipe.rollout
    loss, level = LOSSES.get(policy.loss, (policy.loss, "token"))
    low, high = EPSILON.get(policy.loss, (0.2, None))
    low = low if policy.epsilon is None else policy.epsilon
    if policy.epsilon_high is not None or policy.epsilon is not None:
        high = policy.epsilon_high
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
        "beta": 0.0,  # ours is set once a reference of ours is there
        "shuffle_dataset": False,
    }


def trains_on_cpu() -> bool:
    """Whether to stay off the GPU: none is there, or accelerate was told so."""
    import torch

    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return asked or not torch.cuda.is_available()


def activation_checkpointing(config_class: type, on: bool) -> dict[str, Any]:
    """transformers 5.23 renamed `gradient_checkpointing`; TRL 1.16 turns the old name on by default."""
    fields = {f.name for f in dataclasses.fields(config_class)}
    if "activation_checkpointing" in fields:
        return {"activation_checkpointing": on, "gradient_checkpointing": on}
    return {"gradient_checkpointing": on}
