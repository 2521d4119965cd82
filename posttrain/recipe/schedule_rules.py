"""Rules of `train.lr_scheduler_type` and `train.optim`: names, and settings that the chosen one would ignore
or cannot do without.

The names and the arguments of schedules are read from transformers' source. What an optimizer reads is listed
here; a test compares it with transformers' code. Left out: packages that an optimizer needs (found when it is
created).
"""

from __future__ import annotations

from typing import Any

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems
from posttrain.recipe.library_source import enum_values, schedule_arguments
from posttrain.recipe.recipes import TrainRecipe
from posttrain.recipe.schema import Train
from posttrain.recipe.values import require

NEEDED = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
    "polynomial": ("lr_end",),
}
"""Schedule -> arguments of which one must be given. transformers has a default for `lr_end` only: 1e-7, a
tenth of the rate that TRL's DPOConfig has (1e-6)."""
SHAPES = "one of linear, cosine, 1-sqrt"
ARGUMENTS = {
    "min_lr": "a number of at least 0",
    "lr_end": "a number of at least 0",
    "min_lr_rate": "a number from 0 to 1",
    "min_lr_ratio": "a number from 0 to 1",
    "warmup_lr_rate": "a number from 0 to 1",
    "num_cycles": "a number above 0",
    "power": "a number above 0",
    "timescale": "a number above 0",
    "num_decay_steps": "a whole number of at least 0",
    "num_stable_steps": "a whole number of at least 0",
    "warmup_type": SHAPES,
    "decay_type": SHAPES,
}
"""Argument of a schedule -> what it must be for rates between 0 and `train.learning_rate`."""
MOST_CYCLES = 1000
"""Of a cosine; with about as many steps as cycles the rates would be noise."""
USUAL_NAMES = {"wsd": "warmup_stable_decay"}
"""Name that papers give to a schedule -> that of transformers."""
WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow a metric of the library's evaluation loop, which does not run here."""

READS_BETAS = ("adamw", "lion", "ademamix", "apollo", "schedule_free_radam")
READS_EPSILON = ("adamw", "ademamix", "apollo", "schedule_free_radam")
READS_NO_BETAS = ("galore", "grokadamw", "adalomo")
READS_ARGUMENTS = (
    *("anyprecision", "ademamix", "sgd", "adagrad", "rmsprop", "galore", "apollo", "grokadamw"),
    *("adamw_torch_4bit", "adamw_torch_8bit", "schedule_free", "stable_adamw"),
)
READS_NO_DECAY = ("galore", "apollo", "lomo")
READS_TARGETS = ("galore", "apollo")
"""Parts of the names of optimizers, by what they read of `train`."""


def schedule(recipe: TrainRecipe, problems: Problems) -> None:
    """A schedule without the settings it needs, or with settings it ignores."""
    t, at = recipe.train, "train.lr_scheduler_type"
    name, given = t.lr_scheduler_type, t.extra.get("lr_scheduler_kwargs") or {}
    extra = "train.extra.lr_scheduler_kwargs"
    known = enum_values("trainer_utils.py", "SchedulerType")
    if name not in known:
        near = did_you_mean(USUAL_NAMES.get(name, name), known - set(BY_EVALUATION))
        problems.add(at, f"{at} = {name!r} is not a schedule of transformers{near}")
        return
    if name in BY_EVALUATION:
        problems.add(at, f"{at} = {name} follows the library's evaluation, which does not run; use cosine")
        return
    if not isinstance(given, dict):  # train_rules.py says so
        return
    if name == "constant" and t.warmup_steps and not t.optim.startswith("schedule_free"):
        problems.add(
            at, f"{at} = constant ignores train.warmup_steps = {t.warmup_steps:g}; use constant_with_warmup"
        )
    if name == "inverse_sqrt" and not t.warmup_steps and "timescale" not in given:
        problems.add(
            at, f"{at} = inverse_sqrt needs train.warmup_steps or {extra}.timescale, its scale in steps"
        )
    if t.max_steps is not None and (sentence := parts_that_do_not_fit(t, t.max_steps)):
        problems.add(at, f"{sentence} train.max_steps = {t.max_steps}")
    needed = NEEDED.get(name, ())
    if needed and len(set(needed) & set(given)) != 1:
        problems.add(
            at, f"{at} = {name} needs {'exactly one of ' * (len(needed) > 1)}{_listed(needed, extra)}"
        )
    accepted = frozenset() if name in WITHOUT_ARGUMENTS else schedule_arguments(name)
    for key, value in given.items():
        if key in accepted:
            _argument(f"{extra}.{key}", key, value, t.learning_rate, problems)
        else:
            what = f"{at} = {name} does not read it{did_you_mean(key, accepted)}"
            problems.add(f"{extra}.{key}", f"{extra}.{key}: {what}")


def _listed(names: tuple[str, ...], extra: str) -> str:
    return " and ".join(f"{extra}.{name}" for name in names)


def _argument(at: str, key: str, value: Any, learning_rate: float, problems: Problems) -> None:
    """One argument that the schedule reads. A new one of transformers, which is not listed, passes."""
    if key not in ARGUMENTS or not require(at, value, ARGUMENTS[key], problems):
        return
    rate = f"train.learning_rate = {learning_rate:g}"
    if key == "min_lr" and value > learning_rate:
        problems.add(at, f"{at} = {value:g} must be at most {rate}")
    elif key == "lr_end" and value >= learning_rate:
        problems.add(at, f"{at} = {value:g} must be below {rate}")
    elif key == "num_cycles" and value > MOST_CYCLES:
        problems.add(at, f"{at} = {value:g} must be at most {MOST_CYCLES}")


def parts_that_do_not_fit(train: Train, steps: int) -> str:
    """The beginning of a sentence about a warmup_stable_decay whose parts are more, or fewer, than `steps`;
    else empty. transformers would begin in the middle of the decay, or train the rest at the least rate."""
    given = train.extra.get("lr_scheduler_kwargs") or {}
    decay, stable = given.get("num_decay_steps"), given.get("num_stable_steps")
    if train.lr_scheduler_type != "warmup_stable_decay" or not isinstance(decay, int):
        return ""
    warmup = train.warmup_steps if train.warmup_steps >= 1 else steps * train.warmup_steps
    parts = f"{warmup:g} steps of warm-up and num_decay_steps = {decay}"
    if isinstance(stable, int):
        parts = f"{warmup:g} steps of warm-up, num_stable_steps = {stable} and num_decay_steps = {decay}"
    if warmup + decay > steps:
        how = "more"
    elif isinstance(stable, int) and warmup + stable + decay < steps:
        how = "fewer"
    else:
        return ""
    return f"train.lr_scheduler_type = warmup_stable_decay: {parts} are {how} than"


def optimizer(recipe: TrainRecipe, problems: Problems) -> None:
    """An unknown optimizer, or settings of another one."""
    t, at, name = recipe.train, "train.optim", recipe.train.optim
    known = enum_values("training_args.py", "OptimizerNames")
    if name not in known:
        usual = "adamw_torch" if name in ("adam", "adamw") else name
        problems.add(at, f"{at} = {name!r} is not an optimizer of transformers{did_you_mean(usual, known)}")
        return
    defaults = {
        f: type(t).__dataclass_fields__[f].default for f in ("adam_beta1", "adam_beta2", "adam_epsilon")
    }
    ignored = [
        f"train.{f}" for f, default in defaults.items() if getattr(t, f) != default and not reads(name, f)
    ]
    if t.weight_decay and not reads(name, "weight_decay"):
        ignored.append("train.weight_decay")
    ignored += [
        f"train.extra.{f}"
        for f in ("optim_args", "optim_target_modules")
        if t.extra.get(f) is not None and not reads(name, f)
    ]
    for key in ignored:
        problems.add(key, f"{key} is not used by {at} = {name}; remove it")
    if str(t.extra.get("optim_args") or "").replace(" ", "").find("weight_decay=") >= 0:
        key = "train.extra.optim_args"
        problems.add(key, f"{key}: weight_decay is overwritten by train.weight_decay; set that")
    if name.startswith("schedule_free"):
        _schedule_free(t, problems)


def reads(optim: str, field: str) -> bool:
    """Whether transformers passes `field` of its arguments to the optimizer `optim`."""

    def one_of(parts: tuple[str, ...]) -> bool:
        return any(part in optim for part in parts)

    if field in ("adam_beta1", "adam_beta2"):
        return one_of(READS_BETAS) and not one_of(READS_NO_BETAS)
    if field == "adam_epsilon":
        return one_of(READS_EPSILON) and not one_of(READS_NO_BETAS)
    if field == "weight_decay":
        return not one_of(READS_NO_DECAY)
    if field == "optim_args":
        return one_of(READS_ARGUMENTS)
    return one_of(READS_TARGETS)


def _schedule_free(t: Any, problems: Problems) -> None:
    """These optimizers warm up by themselves, from `train.warmup_steps` as a number."""
    if t.lr_scheduler_type != "constant":
        at = "train.lr_scheduler_type"
        problems.add(at, f"{at} must be constant with train.optim = {t.optim}, which has its own schedule")
    if 0 < t.warmup_steps < 1:
        at = "train.warmup_steps"
        problems.add(at, f"{at} = {t.warmup_steps:g} must be a number of steps with train.optim = {t.optim}")
    elif t.warmup_steps and t.optim == "schedule_free_radam":
        at = "train.warmup_steps"
        problems.add(at, f"{at} is not used by train.optim = {t.optim}; remove it")
