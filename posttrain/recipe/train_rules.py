"""Rules of the sections `train` and `loss`: bounds, exclusive settings, and the fields of TRL's config
classes that `train.extra` may set. Left out: schedules and optimizers (schedule_rules.py).
"""

from __future__ import annotations

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems
from posttrain.recipe.library_fields import STAGES, refused, require_kinds
from posttrain.recipe.library_source import config_fields, integration_names
from posttrain.recipe.recipes import Recipe, SftRecipe, TrainRecipe
from posttrain.recipe.schema import Loss

EXPONENTS = ("power", "focal", "maxrl")
"""Losses that read `loss.exponent`."""


def train(recipe: TrainRecipe, problems: Problems) -> None:
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
        problems.require_above(f"train.{key}", getattr(t, key))
    for key in ("max_grad_norm", "weight_decay", "warmup_steps", "dataloader_num_workers"):
        problems.require_at_least(f"train.{key}", getattr(t, key))
    if t.bf16 and t.fp16:
        problems.add("train", "train.bf16 and train.fp16 cannot both be true")
    batch, micro = t.global_batch_size, t.per_device_train_batch_size
    if batch > 0 and micro > 0 and batch % micro:
        at = "train.global_batch_size"
        problems.add(at, f"{at} = {batch} is not a multiple of train.per_device_train_batch_size = {micro}")
    _logger_names(t.report_to, problems)
    _extra(recipe, problems)


def _logger_names(names: list[str], problems: Problems) -> None:
    """Names of transformers; `all` and `none` stand alone."""
    at = "train.report_to"
    for name in names:
        if name in ("all", "none"):
            if len(names) > 1:
                problems.add(at, f"{at}: {name} cannot be combined with others")
        elif name != "tensorboard" and name not in integration_names():
            problems.add(at, f"{at}: unknown integration {name!r}{did_you_mean(name, integration_names())}")


def noise(recipe: TrainRecipe, problems: Problems) -> None:
    """Stages that compare two forwards train without dropout and without noise."""
    if recipe.stage == "sft":
        return
    why = f"the {recipe.stage} stage compares two forwards, which must be functions of the weights"
    lora = recipe.model.lora
    if lora is not None and lora.dropout:
        at = "model.lora.dropout"
        problems.add(at, f"{at} = {lora.dropout:g} cannot be used here: {why}; set it to 0")
    if recipe.train.extra.get("neftune_noise_alpha"):
        at = "train.extra.neftune_noise_alpha"
        problems.add(at, f"{at} cannot be used here: {why}; remove it")


def _extra(recipe: TrainRecipe, problems: Problems) -> None:
    """Fields of TRL's config classes, by name; the classes themselves would import torch."""
    given = recipe.train.extra
    if not given:
        return
    known, elsewhere = config_fields(recipe.stage), refused(STAGES[recipe.stage])
    typed = set(recipe.train.__dataclass_fields__) - {"extra"}
    require_kinds(STAGES[recipe.stage], given, "train.extra", problems)
    for key in given:
        at = f"train.extra.{key}"
        if key in typed:
            problems.add(at, f"{at}: {key} is a key of train itself; write train.{key}")
        elif key in elsewhere and key in known:
            problems.add(at, f"{at} is not allowed: {elsewhere[key]}")
        elif key not in known:
            problems.add(at, f"{at}: TRL's config has no field {key!r}{did_you_mean(key, known | typed)}")


def loss(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, SftRecipe):
        return
    given = recipe.loss
    _exponents(given, problems)
    _segments(given, problems)
    if given.p == "external" and given.value == "exact":
        problems.add(
            "loss.value",
            "loss.p = external needs loss.value = surrogate: an exact loss exists only for the model's own p",
        )
    problems.require_share("loss.p_below", given.p_below)
    for key in ("weight_above", "z_loss", "entropy_bonus", "skip_below"):
        problems.require_at_least(f"loss.{key}", getattr(given, key))
    problems.require_above("loss.chunk_rows", given.chunk_rows)
    _only_in_torch(given, problems)
    _smoothing(given, problems)
    if given.skip_below is not None:
        _skipping(given, given.skip_below, problems)


def _exponents(given: Loss, problems: Problems) -> None:
    """`n` and `exponent`, which only some losses read."""
    if given.name == "confidence_limited":
        problems.require_at_least("loss.n", given.n, 1)
    elif given.n != 1.0:
        at = "loss.n"
        problems.add(
            at, f"{at} = {given.n:g} is used only with loss.name = confidence_limited, not {given.name}"
        )
    at, value = "loss.exponent", given.exponent
    if given.name not in EXPONENTS:
        if value is not None:
            problems.add(at, f"{at} is used only with loss.name = {', '.join(EXPONENTS)}, not {given.name}")
        return
    if value is None:
        problems.add(at, f"loss.name = {given.name} needs {at}")
        return
    if given.name == "focal":
        problems.require_at_least(at, value)
    else:
        problems.require_above(at, value)
    if given.name == "maxrl" and not float(value).is_integer():
        problems.add(at, f"{at} = {value:g} must be a whole number: it is T of maxrl")


def _segments(given: Loss, problems: Problems) -> None:
    if given.segment == "answer" and not given.answer_marker:
        problems.add("loss.answer_marker", "loss.segment = answer needs loss.answer_marker, e.g. '#### '")
    if given.segment != "answer" and given.answer_marker:
        at = "loss.answer_marker"
        problems.add(at, f"{at} is used only with loss.segment = answer, not {given.segment}")
    if given.segment == "step" and not given.step_delimiter:
        at = "loss.step_delimiter"
        problems.add(at, f"{at} must not be empty with loss.segment = step")


def _only_in_torch(given: Loss, problems: Problems) -> None:
    used = [key for key in ("label_smoothing", "entropy_bonus") if getattr(given, key)]
    if used and given.backend == "triton":
        at = "loss.backend"
        problems.add(
            at, f"{at} = triton has no kernel for loss.{used[0]}; use torch, or auto, which takes it"
        )


def _smoothing(given: Loss, problems: Problems) -> None:
    at, value = "loss.label_smoothing", given.label_smoothing
    if not 0 <= value < 1:
        problems.add(at, f"{at} = {value} must be at least 0 and below 1")
    elif value and given.name != "cross_entropy":
        hint = "for other losses there is loss.entropy_bonus"
        problems.add(at, f"{at} is used only with loss.name = cross_entropy, not {given.name}; {hint}")


def _skipping(given: Loss, skip_below: float, problems: Problems) -> None:
    at = "loss.skip_below"
    for key, lost in (("z_loss", "z-loss"), ("entropy_bonus", "entropy bonus")):
        if getattr(given, key):
            problems.add(at, f"{at} cannot be used with loss.{key}: skipped tokens would lose their {lost}")
    gates = (given.p_below, given.weight_above) != (None, None)
    if given.name == "cross_entropy" and not gates:
        problems.add(
            at,
            f"{at} does nothing for cross_entropy without p_below or weight_above: all its weights are 1",
        )
    if skip_below >= 1 and given.name != "focal":
        problems.add(at, f"{at} = {skip_below:g} would skip every token: no weight is above 1")
