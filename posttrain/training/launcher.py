"""Settings of the launcher (the accelerate config, its environment, a DeepSpeed config) that would decide a
number without the recipe, or under which the model cannot be trained.

Left out: FSDP's own settings (engines.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PretrainedConfig, TrainingArguments

from posttrain.base.process import world_size
from posttrain.errors import RequestError, WorkError
from posttrain.models.self_check import refuse_untested
from posttrain.recipe.schema import Model, Train
from posttrain.rundir.adapters import CONFIG as ADAPTER_CONFIG
from posttrain.rundir.checkpoints import resolve
from posttrain.rundir.start_config import start_config
from posttrain.training.engines import engine_asked, zero_asked

OURS = {"optimizer": "train.optim", "scheduler": "train.lr_scheduler_type"}
"""Sections of a DeepSpeed config that would take the place of a key of the recipe."""

GATHERED = "stage3_gather_16bit_weights_on_model_save"


def mixed_precision(train: Train) -> str:
    """What the recipe asks for, as accelerate calls it: bf16, fp16 or no."""
    return "bf16" if train.bf16 else "fp16" if train.fp16 else "no"


def refuse_launcher(train: Train) -> None:
    """Raises `RequestError` where the launcher asks for a compiler, or another precision than the recipe."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    given = mixed_precision(train)
    if asked not in ("no", "", given):
        raise RequestError(
            f"the accelerate config has mixed_precision: {asked}, the recipe asks for {given}; set it to "
            "'no' there, and train.bf16 or train.fp16 here"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if compiler not in ("no", ""):
        raise RequestError(
            f"the accelerate config has dynamo_backend: {compiler}; remove dynamo_config: torch.compile is "
            "not tested with the fused head"
        )


def refuse_unsaved_weights(model: Model) -> None:
    """Raises `RequestError` for a ZeRO-3 config under which checkpoints would hold no weights.

    accelerate writes it so unless asked. Adapters are gathered whatever it says.
    """
    zero = zero_asked()
    if model.lora is None and zero.get("stage") == 3 and not zero.get(GATHERED):
        raise RequestError(
            "under this ZeRO-3 config checkpoints would hold no weights; set zero3_save_16bit_model: true in "
            f"the accelerate config, or zero_optimization.{GATHERED}: true in the DeepSpeed config file"
        )


def refuse_sharded_family(model: Model) -> None:
    """Under ZeRO-3, raises `RequestError` for a family that would be refused once its weights are loaded.

    A start from an adapter passes: its base is merged before it is sharded, and can be measured. So does a
    config of the hub that cannot be read here; whoever loads the model says why.
    """
    if engine_asked() != "zero3":
        return
    if model.from_config is not None:
        at, place = "model.from_config.model_type", None
    else:
        at, place = f"model.init = {model.init}", resolve(str(model.init))[0]
        if (Path(place) / ADAPTER_CONFIG).is_file():
            return
    found = start_config(model, place, hub_config).get("model_type")
    if found is None:
        return
    try:
        refuse_untested(found, "logits")
    except RequestError as error:
        raise RequestError(f"{at}: under ZeRO-3, {error}") from None


def hub_config(place: str, revision: str | None) -> dict[str, Any]:
    """config.json of the hub id `place`; empty where it cannot be read."""
    try:
        return PretrainedConfig.get_config_dict(place, revision=revision or "main")[0]
    except (OSError, ValueError):
        return {}


def refuse_other_world(arguments: TrainingArguments) -> None:
    """Raises `WorkError` unless accelerate runs as many processes as were launched."""
    if arguments.world_size != world_size():
        raise WorkError(
            f"launched with WORLD_SIZE={world_size()}, but accelerate runs {arguments.world_size} "
            "process(es); check distributed_type in the accelerate config (MULTI_CPU starts one)"
        )


def refuse_other_batch(train: TrainingArguments) -> None:
    """Raises `RequestError` where a DeepSpeed config divides the batch otherwise than the recipe does, whose
    values are in `train`."""
    config = DeepSpeedPlugin().deepspeed_config if engine_asked().startswith("zero") else {}
    micro, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    for key, ours in (
        ("gradient_accumulation_steps", accumulation),
        ("train_micro_batch_size_per_gpu", micro),
        ("train_batch_size", train.world_size * micro * accumulation),
    ):
        if (value := config.get(key, "auto")) not in ("auto", ours):
            raise RequestError(
                f"the DeepSpeed config has {key}: {value} (which may be a default), the recipe gives {ours}; "
                f"write {key}: auto there: "
                "train.global_batch_size decides"
            )


def refuse_deepspeed(config: dict[str, Any], train: TrainingArguments) -> None:
    """Raises `RequestError` where a DeepSpeed `config`, with `auto` filled in, overrules the recipe, whose
    values are in `train`."""
    for section, key in OURS.items():
        if section in config:
            raise RequestError(
                f"the DeepSpeed config has a section {section}, which takes the place of {key}; remove it"
            )
    clipping = config.get("gradient_clipping")
    if clipping != train.max_grad_norm:
        found = "no gradient_clipping" if clipping is None else f"gradient_clipping = {clipping}"
        raise RequestError(
            f"the DeepSpeed config has {found}, but train.max_grad_norm = {train.max_grad_norm:g}; set "
            "gradient_clipping: auto"
        )
    for name, wanted in (("bf16", train.bf16), ("fp16", train.fp16)):
        enabled = config.get(name, {}).get("enabled", False)
        if enabled != wanted:
            raise RequestError(
                f"the DeepSpeed config has {name}.enabled = {enabled}, but train.{name} = {wanted}; remove "
                f"{name} there"
            )


def keep_precision(accelerator: Any, bf16: bool) -> None:
    """Under FSDP2 with bf16: gradients are reduced in fp32, and what enters and leaves the model is not
    rounded.

    accelerate's policy casts outputs to bf16, and with them the loss and the log-probabilities, and floating
    inputs: a normalizer of 12345 becomes 12352, a success probability of .9973 becomes .9961. Hidden states
    need no cast between sharded modules, as the embedding's weight is bf16 in its forward. Call before any
    model is prepared.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and bf16:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            torch.bfloat16, torch.float32, cast_forward_inputs=False
        )
