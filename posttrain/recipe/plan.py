"""What follows from a recipe before anything is loaded: what its rows are, which reference it names,
and how batches and steps divide.

An optimizer step takes examples: rows, or, in an rlvr stage, completions. A checkpoint contains no rollouts,
so an rlvr run can save and stop only at the end of a batch of rollouts (`rhythm`). Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from posttrain.errors import RequestError
from posttrain.recipe.recipes import DpoRecipe, Recipe, RlvrRecipe, RolloutRecipe, SftRecipe, TrainRecipe
from posttrain.recipe.schema import Train

STAGE_SHAPES = {"sft": "rows", "dpo": "pairs", "rlvr": "prompts", "pairs": "prompts", "pass_rate": "prompts"}
UNPAIRED = ("kto",)
"""Preference losses on single replies."""


@dataclass(frozen=True)
class BatchPlan:
    """global_batch_size = micro * ranks * accumulation."""

    micro: int
    ranks: int
    accumulation: int
    global_batch_size: int


def batch_plan(train: Train, ranks: int) -> BatchPlan:
    """Derives the accumulation. Raises RequestError if the global batch is not a multiple of the rest."""
    step = train.per_device_train_batch_size * ranks
    if train.global_batch_size % step:
        raise RequestError(
            f"train.global_batch_size = {train.global_batch_size} cannot be split over {ranks} rank(s) with "
            f"train.per_device_train_batch_size = {train.per_device_train_batch_size}: "
            f"it must be a multiple of {step}"
        )
    return BatchPlan(
        train.per_device_train_batch_size, ranks, train.global_batch_size // step, train.global_batch_size
    )


def shape_of(recipe: Recipe) -> str:
    """What a row of the recipe's sources is: a key of `posttrain.data.shapes.catalogue.SHAPES`."""
    if isinstance(recipe, DpoRecipe) and recipe.preference.loss in UNPAIRED:
        return "labelled"
    return STAGE_SHAPES[recipe.stage]


@dataclass(frozen=True)
class NamedReference:
    """Another model whose log-probabilities a run needs. `key`: where the recipe names it."""

    place: str
    key: str
    revision: str | None = None


def reference_of(recipe: Recipe) -> NamedReference | None:
    """The reference that a recipe names; None where there is none but the start model."""
    found = None
    if isinstance(recipe, DpoRecipe) and (given := recipe.preference).reference_model is not None:
        found = NamedReference(given.reference_model, "preference.reference_model", given.reference_revision)
    elif isinstance(recipe, RlvrRecipe) and recipe.policy.reference is not None:
        found = NamedReference(recipe.policy.reference, "policy.reference")
    return found


def new_tokens(recipe: Recipe) -> int:
    """Tokens that a stage samples behind a row, at most."""
    return recipe.rollout.max_new_tokens if isinstance(recipe, RolloutRecipe) else 0


def rows_alone(recipe: Recipe) -> bool:
    """Whether every forward of the stage has one row, so that nothing in it can depend on other rows."""
    return (
        isinstance(recipe, SftRecipe)
        and recipe.train.per_device_train_batch_size == 1
        and not recipe.data.padding_free
        and recipe.evaluate.heldout is None  # measured on several rows at once
    )


def rhythm(recipe: Recipe) -> int:
    """Optimizer steps between two points at which a run can save: 1, or those on one batch of rollouts."""
    if not isinstance(recipe, RlvrRecipe):
        return 1
    return recipe.rollout.steps_per_generation * recipe.policy.num_iterations


def aligned(steps: int, rhythm: int) -> int:
    """`steps` rounded up to the end of a batch of rollouts."""
    return -(-steps // rhythm) * rhythm


def rows_needed(recipe: Recipe, steps: int) -> int:
    """Rows of the mixture that `steps` optimizer steps take; with dynamic sampling, at least as many."""
    examples = steps * recipe.train.global_batch_size
    if not isinstance(recipe, RlvrRecipe):
        return examples
    return examples // recipe.policy.num_iterations // recipe.rollout.num_generations


def steps_of(recipe: TrainRecipe, rows: int) -> int:
    """Optimizer steps of a run on a mixture of `rows`: `max_steps`, or the epochs, rounded up to whole
    batches, and to whole batches of rollouts.

    Raises:
        RequestError: the parts of the schedule do not fit into them.
    """
    train = recipe.train
    if train.max_steps is not None:
        steps = planned_steps(recipe)
    else:
        examples = train.num_train_epochs * rows
        if isinstance(recipe, RlvrRecipe):
            examples *= recipe.rollout.num_generations * recipe.policy.num_iterations
        exact = examples / train.global_batch_size
        steps = aligned(max(1, math.ceil(round(exact, 6))), rhythm(recipe))
    if sentence := parts_that_do_not_fit(train, steps):
        raise RequestError(sentence)
    return steps


def planned_steps(recipe: TrainRecipe) -> int:
    """The steps of a run whose recipe says `max_steps`."""
    return aligned(recipe.train.max_steps, max(1, rhythm(recipe)))


def warmup_of(train: Train, steps: int) -> int:
    """Steps of warm-up in a run of `steps`, as transformers rounds them (`get_warmup_steps`)."""
    warmup = train.warmup_steps
    return int(warmup) if warmup >= 1 else math.ceil(steps * warmup)


def parts_that_do_not_fit(train: Train, steps: int) -> str:
    """A sentence about a warmup_stable_decay whose parts are more, or fewer, than `steps`; else empty.

    transformers would begin in the middle of the decay, end before it, or train the rest at the least rate.
    """
    given = train.extra.get("lr_scheduler_kwargs") or {}
    decay, stable = given.get("num_decay_steps"), given.get("num_stable_steps")
    if train.lr_scheduler_type != "warmup_stable_decay":
        return ""
    if not isinstance(decay, int) or not isinstance(stable, int | None):
        return ""  # which is refused by itself
    warmup = warmup_of(train, steps)
    parts = [f"{warmup} of warm-up", f"num_decay_steps = {decay}"]
    if stable is not None:
        parts.insert(1, f"num_stable_steps = {stable}")
    left = steps - warmup - decay
    if left >= 0 and stable in (None, left):
        return ""
    if train.max_steps is None:
        key = f"train.num_train_epochs = {train.num_train_epochs:g}"
    else:
        key = f"train.max_steps = {train.max_steps}"
    if left >= 0:
        remedy = f"remove num_stable_steps, or set it to {left}"
    elif warmup <= steps:
        remedy = f"num_decay_steps can be at most {steps - warmup}"
        remedy += "" if stable is None else ", and num_stable_steps is what is left: remove it"
    else:
        remedy = "lower train.warmup_steps"
    how = "fewer" if left >= 0 and stable < left else "more"
    return (
        f"train.lr_scheduler_type = warmup_stable_decay: its parts, {', '.join(parts)}, are {how} than the "
        f"{steps} steps of {key}; {remedy}"
    )
