"""Rules of `train.lr_scheduler_type`: names, and settings that the chosen schedule would ignore or cannot do
without.

The names and the arguments of schedules are read from transformers' source. Left out: optimizers
(optimizers.py); whether the parts of a schedule fit into the steps of epochs, which are counted later
(plan.py).
"""

from __future__ import annotations

import math
from typing import Any

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems
from posttrain.recipe.library_source import enum_values, schedule_arguments
from posttrain.recipe.plan import parts_that_do_not_fit, planned_steps
from posttrain.recipe.recipes import TrainRecipe
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
    if t.warmup_steps > 1 and not float(t.warmup_steps).is_integer():
        key = "train.warmup_steps"
        problems.add(key, f"{key} = {t.warmup_steps:g} must be a whole number of steps, or a share below 1")
    if name == "warmup_stable_decay":
        _parts(recipe, given, problems)
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


def _parts(recipe: TrainRecipe, given: dict[str, Any], problems: Problems) -> None:
    """The parts of warmup_stable_decay, compared with `max_steps`; with the steps of epochs once the rows are
    counted, and so the stable part cannot be said beside them."""
    t = recipe.train
    if t.max_steps is None and "num_stable_steps" in given:
        at = "train.extra.lr_scheduler_kwargs.num_stable_steps"
        problems.add(at, f"{at} needs train.max_steps; remove it: it is what warm-up and decay leave")
    if t.max_steps is not None and t.max_steps > 0 and math.isfinite(t.warmup_steps):
        sentence = parts_that_do_not_fit(t, planned_steps(recipe))
        if sentence:
            problems.add("train.lr_scheduler_type", sentence)


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
