"""What the `train:` section may not say: bounds, batch arithmetic, and fields of TRL's config by name."""

from __future__ import annotations

from posttrain.errors import did_you_mean
from posttrain.recipe.bounds import positive
from posttrain.recipe.build import Problems
from posttrain.recipe.library_fields import config_fields
from posttrain.recipe.stages import Recipe

EXTRA_ELSEWHERE = {
    "output_dir": "output_dir",
    "max_length": "data.max_length",
    "packing": "data.padding_free",
    "padding_free": "data.padding_free",
    "gradient_accumulation_steps": "train.global_batch_size",
    "save_steps": "checkpoints.save_steps",
    "save_strategy": "checkpoints.save_steps",
    "save_total_limit": "checkpoints.keep_last",
    "eval_steps": "evaluate.heldout.every_steps",
    "eval_strategy": "evaluate.heldout",
    "gradient_checkpointing": "train.activation_checkpointing",
    "loss_type": "loss.name",
    "dataset_kwargs": "data",
    "data_seed": "train.seed",
    "remove_unused_columns": "data",
    "load_best_model_at_end": "checkpoints.keep_best",
    "metric_for_best_model": "checkpoints.keep_best",
    "chat_template_path": "data.template",
    "model_init_kwargs": "model.options",
    "assistant_only_loss": "data.train_on",
    "completion_only_loss": "data.train_on",
    "train_sampling_strategy": "data.shuffle",
}
"""Fields of the TRL config that posttrain decides itself, and where it is said."""


def train(recipe: Recipe, problems: Problems) -> None:
    t = recipe.train
    if (t.num_train_epochs is None) == (t.max_steps is None):
        problems.add("train", "train needs exactly one of num_train_epochs and max_steps")
    for key in (
        "learning_rate",
        "global_batch_size",
        "per_device_train_batch_size",
        "num_train_epochs",
        "max_steps",
        "logging_steps",
        "adam_epsilon",
    ):
        positive(problems, f"train.{key}", getattr(t, key))
    for key in ("max_grad_norm", "weight_decay", "warmup_steps", "dataloader_num_workers"):
        positive(problems, f"train.{key}", getattr(t, key), 0, strict=False)
    if t.bf16 and t.fp16:
        problems.add("train", "train.bf16 and train.fp16 exclude each other")
    if (
        t.global_batch_size > 0
        and t.per_device_train_batch_size > 0
        and t.global_batch_size % t.per_device_train_batch_size
    ):
        problems.add(
            "train.global_batch_size",
            f"train.global_batch_size = {t.global_batch_size} is not a multiple of "
            f"per_device_train_batch_size = {t.per_device_train_batch_size}",
        )
    known = config_fields(recipe.stage) if t.extra else frozenset()
    typed = set(t.__dataclass_fields__) - {"extra"}
    for key in t.extra:
        path = f"train.extra.{key}"
        if key in typed:
            problems.add(path, f"{path}: {key} is a field of train itself; write train.{key}")
        elif key in EXTRA_ELSEWHERE:
            problems.add(
                path, f"{path}: posttrain decides {key}; it is said in {EXTRA_ELSEWHERE[key]}"
            )
        elif key not in known:
            problems.add(
                path, f"{path}: TRL's config has no field {key!r}{did_you_mean(key, known | typed)}"
            )
