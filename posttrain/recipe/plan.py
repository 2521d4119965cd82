"""What follows from a recipe before anything is loaded: what its rows are, which reference it names,
and how batches and steps divide.

An optimizer step takes examples: rows, or, in an rlvr stage, completions. A checkpoint contains no rollouts,
so an rlvr run can save and stop only at the end of a batch of rollouts (`rhythm`). Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from posttrain.errors import RequestError
from posttrain.recipe import DpoRecipe, Recipe, RlvrRecipe
from posttrain.recipe.schedule_rules import parts_that_do_not_fit
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


def steps_of(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of a run on a mixture of `rows`: `max_steps`, or the epochs, rounded up to whole
    batches.

    Raises:
        RequestError: the parts of the schedule do not fit into them.
    """
    train = recipe.train
    if train.max_steps is not None:
        return aligned(train.max_steps, rhythm(recipe))
    examples = train.num_train_epochs * rows
    if isinstance(recipe, RlvrRecipe):
        examples *= recipe.rollout.num_generations * recipe.policy.num_iterations
    exact = examples / train.global_batch_size
    steps = aligned(max(1, math.ceil(round(exact, 6))), rhythm(recipe))
    if sentence := parts_that_do_not_fit(train, steps):
        raise RequestError(
            f"{sentence} the {steps} steps of train.num_train_epochs = {train.num_train_epochs:g}"
        )
    return steps
