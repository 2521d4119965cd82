"""Rules of the sections that only the later stages have: `preference` of dpo; `rewards`, `success` and `rollout` of rlvr."""

from __future__ import annotations

import math

from posttrain.recipe.bounds import positive, share
from posttrain.recipe.build import Problems
from posttrain.recipe.stages import DpoRecipe, Recipe, RlvrRecipe


def preference(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, DpoRecipe):
        return
    given = recipe.preference
    if given.loss == "kto":
        problems.add("preference.loss", "preference.loss = kto: unpaired data is not supported yet")
    if given.beta is not None:
        positive(problems, "preference.beta", given.beta)
    at = "preference.label_smoothing"
    if not 0 <= given.label_smoothing < 0.5:
        problems.add(at, f"{at} = {given.label_smoothing} must lie in [0, 0.5)")
    elif given.label_smoothing and given.loss not in ("cdpo", "robust"):
        problems.add(at, f"{at} has no effect on {given.loss}; cdpo and robust read it")
    positive(problems, "preference.gamma", given.gamma, strict=False)
    positive(problems, "preference.sft_weight", given.sft_weight, strict=False)
    positive(problems, "preference.sft_n", given.sft_n, 1, strict=False)


def rewards(recipe: Recipe, problems: Problems) -> None:
    """Names and options are checked where the rewards are known (preflight)."""
    if not isinstance(recipe, RlvrRecipe):
        return
    if not recipe.rewards:
        problems.add("rewards", "rewards is empty; name at least one")
    for i, reward in enumerate(recipe.rewards):
        if not math.isfinite(reward.weight):
            problems.add(f"rewards[{i}].weight", f"rewards[{i}].weight = {reward.weight}")
    if recipe.success is not None:
        share(problems, "success.at_least", recipe.success.at_least)
    positive(problems, "rollout.num_generations", recipe.rollout.num_generations, 2, strict=False)
