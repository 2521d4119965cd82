"""The `train` section of a recipe as arguments of TRL's config class.

Saving, held-out evaluation and scoring are driven by posttrain's own callbacks, so the library's strategies
for them are switched off; so is everything that would leave the machine. Values that never change are in the
table recipe/library_fields.yaml. Left out: what only one stage computes (the function `arguments` of each
stage module).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from posttrain.base.process import flag, world_size
from posttrain.errors import RequestError
from posttrain.recipe.library_fields import fixed
from posttrain.recipe.plan import batch_plan
from posttrain.recipe.schema import Train
from posttrain.rundir.directory import RunDir

COPIED = (
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
)
"""Fields with the same name and meaning in the recipe and in the library."""
LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"
_ours: set[str] = set()
"""What runs of this process have set it to."""


def _log_into(folder: Path) -> None:
    """Has TensorBoard's files of this run in `folder`, unless the user says where; an earlier run in this
    process may have set the variable, too."""
    if os.environ.get(LOGGING_DIR, "") in ("", *_ours):
        os.environ[LOGGING_DIR] = str(folder)
        _ours.add(str(folder))


def trainer_arguments(
    config_class: type[TrainingArguments], train: Train, run: RunDir, max_steps: int, own: dict[str, Any]
) -> TrainingArguments:
    """An instance of `config_class` (SFTConfig, ...); `own`: the arguments that only this stage computes.

    Raises:
        RequestError: the library refuses the settings, or they do not fit this machine.
    """
    if train.fp16 and trains_on_cpu():
        raise RequestError("train.fp16 has no effect on a CPU; use train.bf16, or neither")
    if "tensorboard" in train.report_to:
        _log_into(run.path / "tensorboard")
    plan = batch_plan(train, world_size())
    fields = {f.name for f in dataclasses.fields(config_class)}
    values = {name: value for name, value in fixed(config_class.__name__).items() if name in fields} | {
        "output_dir": str(run.path),
        "run_name": run.path.name,
        "max_steps": max_steps,
        "per_device_train_batch_size": plan.micro,
        "per_device_eval_batch_size": 4 * plan.micro,  # no gradients are held
        "gradient_accumulation_steps": plan.accumulation,
        "disable_tqdm": not sys.stderr.isatty(),
        "use_cpu": trains_on_cpu(),
        **activation_checkpointing(config_class, train.activation_checkpointing),
        **{name: getattr(train, name) for name in COPIED},
        **own,
    }
    try:
        return config_class(**(values | train.extra))
    except (ValueError, TypeError) as error:
        raise RequestError(f"train: {config_class.__name__} refuses these settings: {error}") from error


def trains_on_cpu() -> bool:
    """Whether to stay off the GPU: there is none, or accelerate was told to."""
    return flag("ACCELERATE_USE_CPU") or not torch.cuda.is_available()


def activation_checkpointing(config_class: type, on: bool) -> dict[str, Any]:
    """transformers 5.23 renamed `gradient_checkpointing`; TRL 1.16 turns the old name on by default."""
    fields = {f.name for f in dataclasses.fields(config_class)}
    if "activation_checkpointing" in fields:
        return {"activation_checkpointing": on, "gradient_checkpointing": on}
    return {"gradient_checkpointing": on}
