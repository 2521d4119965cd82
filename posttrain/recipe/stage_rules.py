"""Rules of the sections that only some stages have: `preference` of dpo, `policy` of rlvr, `rewards`,
`success` and `rollout` of the stages that sample, `pairing` of pairs, `keep` of pass_rate.
"""

from __future__ import annotations

import math

from posttrain.recipe.build import Problems
from posttrain.recipe.recipes import (
    DpoRecipe,
    PairsRecipe,
    PassRateRecipe,
    Recipe,
    RlvrRecipe,
    RolloutRecipe,
    SampleRecipe,
)
from posttrain.recipe.sections import Preference

NO_BALANCING = (
    "the model's config asks for a load-balancing loss (output_router_logits), which a dpo stage does not "
    "have; set model.options.output_router_logits=false"
)
"""Said where the config is known, which this room does not read."""


def preference(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, DpoRecipe):
        return
    given = recipe.preference
    problems.require_above("preference.beta", given.beta)
    _turns(recipe, problems)
    at = "preference.label_smoothing"
    if not 0 <= given.label_smoothing < 0.5:
        problems.add(at, f"{at} = {given.label_smoothing} must be in [0, 0.5)")
    elif given.label_smoothing and given.loss not in ("cdpo", "robust"):
        problems.add(at, f"{at} is used only with preference.loss = cdpo or robust, not {given.loss}")
    problems.require_at_least("preference.gamma", given.gamma)
    problems.require_at_least("preference.sft_weight", given.sft_weight)
    problems.require_at_least("preference.sft_n", given.sft_n, 1)
    for name in ("desirable_weight", "undesirable_weight"):
        at = f"preference.{name}"
        problems.require_at_least(at, getattr(given, name))
        if getattr(given, name) != 1 and given.loss != "kto":
            problems.add(at, f"{at} is used only with preference.loss = kto, not {given.loss}")
    if given.loss == "kto":
        _unpaired(recipe, problems)
    _reference(given, problems)


def _turns(recipe: DpoRecipe, problems: Problems) -> None:
    at, turns = "data.train_on", recipe.data.train_on
    if turns == "assistant" and recipe.preference.loss == "kto":
        problems.add(
            at,
            f"{at} = assistant cannot be used with preference.loss = kto, whose label judges the last reply; "
            "use last",
        )


def _unpaired(recipe: DpoRecipe, problems: Problems) -> None:
    if recipe.preference.sft_weight:
        at = "preference.sft_weight"
        problems.add(at, f"{at} cannot be used with preference.loss = kto, whose rows have no chosen reply")
    if recipe.train.global_batch_size < 2:
        problems.add(
            "train.global_batch_size",
            "train.global_batch_size must be at least 2 for kto: its KL estimate pairs each prompt with the "
            "reply to another one",
        )


def _reference(given: Preference, problems: Problems) -> None:
    for name, default in (("reference", "precomputed"), ("reference_model", None)):
        at = f"preference.{name}"
        if given.loss in ("simpo", "orpo") and getattr(given, name) != default:
            problems.add(
                at, f"{at} cannot be used with preference.loss = {given.loss}, which has no reference"
            )
    if given.reference_revision is not None and given.reference_model is None:
        at = "preference.reference_revision"
        problems.add(at, f"{at} is used only with preference.reference_model")


def policy(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, RlvrRecipe):
        return
    p = recipe.policy
    problems.require_at_least("policy.beta", p.beta)
    for key in ("epsilon", "epsilon_high", "num_iterations", "k"):
        problems.require_above(f"policy.{key}", getattr(p, key))
    if recipe.guard.on_spike != "ignore":
        at = "guard.on_spike"
        problems.add(
            at,
            f"{at} = {recipe.guard.on_spike} cannot be used in an rlvr stage, whose loss varies around 0; "
            "watch the scores with evaluate.gates instead",
        )
    if p.reference is not None and not p.beta:
        at = "policy.reference"
        problems.add(at, f"{at} is used only with policy.beta above 0")
    if p.kl != "k3_weighted" and not p.beta:
        at = "policy.kl"
        problems.add(at, f"{at} = {p.kl} is used only with policy.beta above 0, the weight of the KL term")
    if p.loss == "cispo" and p.epsilon is not None:
        at = "policy.epsilon"
        problems.add(
            at,
            f"{at} cannot be used with policy.loss = cispo; set policy.epsilon_high, the cap of its weights",
        )
    _attempts(recipe, problems)


def _attempts(recipe: RlvrRecipe, problems: Problems) -> None:
    """k of pass@k, N of the confidence-limited advantage."""
    p, n, at = recipe.policy, recipe.rollout.num_generations, "policy.k"
    if p.advantage in ("pkpo", "pass_at_k") and p.k > n:
        problems.add(
            at,
            f"{at} = {p.k} is above rollout.num_generations = {n}: pass@{p.k} cannot be estimated from {n} "
            "completions",
        )
    if p.advantage == "confidence" and p.k > 2 * n:
        problems.add(
            at,
            f"{at} = {p.k} (N of confidence) is above 2 x rollout.num_generations = {2 * n}: the smallest "
            f"success rate that a group can show is 1/{n}, where F is already below a third",
        )
    if p.advantage not in ("pkpo", "pass_at_k", "confidence") and p.k != 1:
        problems.add(
            at,
            f"{at} is used only with policy.advantage = pkpo, pass_at_k or confidence, not {p.advantage}",
        )


def rewards(recipe: Recipe, problems: Problems) -> None:
    """Names and options are checked where the rewards are known (stages/preflight.py)."""
    if not isinstance(recipe, RolloutRecipe):
        return
    if not recipe.rewards:
        problems.add("rewards", "rewards is empty; add at least one reward")
    for i, reward in enumerate(recipe.rewards):
        if not math.isfinite(reward.weight):
            at = f"rewards[{i}].weight"
            problems.add(at, f"{at} = {reward.weight} must be finite")
    if recipe.success is not None:
        problems.require_share("success.at_least", recipe.success.at_least)


def rollout(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, RolloutRecipe):
        return
    r = recipe.rollout
    least = 1 if isinstance(recipe, PassRateRecipe) else 2
    problems.require_at_least("rollout.num_generations", r.num_generations, least)
    for key in ("max_new_tokens", "batch_size", "deadline", "temperature"):
        problems.require_above(f"rollout.{key}", getattr(r, key))
    if not 0 < r.top_p <= 1:
        problems.add("rollout.top_p", f"rollout.top_p = {r.top_p} must be in (0, 1]")
    problems.require_share("rollout.max_failed", r.max_failed)
    _prompts(recipe, problems)
    if isinstance(recipe, RlvrRecipe):
        _train_rollout(recipe, problems)
    if isinstance(recipe, SampleRecipe):
        problems.require_above("max_prompts", recipe.max_prompts)
        if r.backend != "transformers":
            at = "rollout.backend"
            problems.add(at, f"{at} = {r.backend}: the {recipe.stage} stage samples only with transformers")


def _prompts(recipe: RolloutRecipe, problems: Problems) -> None:
    """Settings of `data` that prompts do not have."""
    if recipe.data.overlong == "truncate":
        at = "data.overlong"
        problems.add(at, f"{at} = truncate would cut off the prompt; use drop or error")
    if recipe.data.padding_free:
        at = "data.padding_free"
        problems.add(at, f"{at} cannot be used in the {recipe.stage} stage, whose rows are prompts")
    if recipe.data.weighting == "tokens":
        at = "data.weighting"
        problems.add(at, f"{at} = tokens counts trained tokens, and a prompt has none; use examples")


def _train_rollout(recipe: RlvrRecipe, problems: Problems) -> None:
    r, n = recipe.rollout, recipe.rollout.num_generations
    problems.require_above("rollout.steps_per_generation", r.steps_per_generation)
    problems.require_at_least("rollout.refill", r.refill)
    batch = recipe.train.global_batch_size * r.steps_per_generation
    if n > 0 and batch > 0 and batch % n:
        at = "rollout.num_generations"
        problems.add(
            at,
            f"{at} = {n} does not divide the batch: train.global_batch_size = "
            f"{recipe.train.global_batch_size} completions x rollout.steps_per_generation = "
            f"{r.steps_per_generation} is not a whole number of groups",
        )
    if r.truncated_reward and r.truncated != "penalise":
        at = "rollout.truncated_reward"
        problems.add(at, f"{at} is used only with rollout.truncated = penalise, not {r.truncated}")
    if r.top_p < 1 and r.backend != "transformers" and r.vllm.correction != "none":
        problems.add(
            "rollout.top_p",
            f"rollout.top_p = {r.top_p:g} biases the importance weights of rollout.vllm.correction; set "
            "top_p to 1 or the correction to none",
        )
    problems.require_above("rollout.vllm.max_logp_diff", r.vllm.max_logp_diff)
    if recipe.evaluate.heldout is not None:
        at = "evaluate.heldout"
        problems.add(
            at, f"{at} measures a loss on rows, which an rlvr stage does not have; use evaluate.tasks"
        )


def pairing(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, PairsRecipe):
        return
    p = recipe.pairing
    problems.require_above("pairing.per_prompt", p.per_prompt)
    problems.require_at_least("pairing.min_gap", p.min_gap)
    problems.require_above("pairing.continuations", p.continuations)
    if p.per_prompt > 1 and p.strategy != "correct_incorrect":
        at = "pairing.per_prompt"
        problems.add(
            at,
            f"{at} = {p.per_prompt} needs pairing.strategy = correct_incorrect; {p.strategy} makes at most "
            "one pair per prompt",
        )
    if p.strategy == "cross_model" and p.teacher is None:
        at = "pairing.teacher"
        problems.add(at, f"pairing.strategy = cross_model needs {at}, the model that corrects")
    if p.strategy != "cross_model" and p.teacher is not None:
        at = "pairing.teacher"
        problems.add(at, f"{at} is used only with pairing.strategy = cross_model, not {p.strategy}")
    if not p.step_delimiter:
        problems.add("pairing.step_delimiter", "pairing.step_delimiter must not be empty")


def keep(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, PassRateRecipe):
        return
    low, high, n = recipe.keep.at_least, recipe.keep.at_most, recipe.rollout.num_generations
    if not 0 <= low <= high <= n:
        problems.add(
            "keep",
            f"keep.at_least = {low} and keep.at_most = {high} must satisfy "
            f"0 <= at_least <= at_most <= rollout.num_generations = {n}",
        )
