"""Rules of the sections that only the later stages have: `preference` of dpo; rewards, sampling and policy of the others."""

from __future__ import annotations

import math

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems, positive, share
from posttrain.recipe.recipes import DpoRecipe, PairsRecipe, PassRateRecipe, Recipe, RlvrRecipe, TrainRecipe
from posttrain.recipe.sections import LOWER_IS_BETTER, Preference


def preference(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, DpoRecipe):
        return
    given = recipe.preference
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
    for name in ("desirable_weight", "undesirable_weight"):
        at = f"preference.{name}"
        positive(problems, at, getattr(given, name), strict=False)
        if getattr(given, name) != 1 and given.loss != "kto":
            problems.add(at, f"{at} has no effect on {given.loss}; kto reads it")
    if given.loss == "kto":
        _unpaired(recipe, problems)
    _reference(given, problems)


def _unpaired(recipe: DpoRecipe, problems: Problems) -> None:
    if recipe.preference.sft_weight:
        at = "preference.sft_weight"
        problems.add(at, f"{at} has no effect on kto, whose rows have no chosen side")
    if recipe.train.global_batch_size < 2:
        problems.add(
            "train.global_batch_size",
            "train.global_batch_size must be at least 2 for kto: its KL estimate pairs a prompt with the reply to another one",
        )


def _reference(given: Preference, problems: Problems) -> None:
    for name, default in (("reference", "precomputed"), ("reference_model", None)):
        at = f"preference.{name}"
        if given.loss in ("simpo", "orpo") and getattr(given, name) != default:
            problems.add(at, f"{at} has no effect on {given.loss}, which reads no reference")
    if given.reference_revision is not None and given.reference_model is None:
        at = "preference.reference_revision"
        problems.add(at, f"{at} is read only with preference.reference_model")


def rewards(recipe: Recipe, problems: Problems) -> None:
    """Names and options are checked where the rewards are known (preflight)."""
    if not hasattr(recipe, "rewards"):
        return
    if not recipe.rewards:
        problems.add("rewards", "rewards is empty; name at least one")
    for i, reward in enumerate(recipe.rewards):
        if not math.isfinite(reward.weight):
            problems.add(f"rewards[{i}].weight", f"rewards[{i}].weight = {reward.weight}")
    if recipe.success is not None:
        share(problems, "success.at_least", recipe.success.at_least)


def rollout(recipe: Recipe, problems: Problems) -> None:
    if not hasattr(recipe, "rollout"):
        return
    r, d = recipe.rollout, recipe.data
    least = 1 if isinstance(recipe, PassRateRecipe) else 2
    positive(problems, "rollout.num_generations", r.num_generations, least, strict=False)
    for key in ("max_new_tokens", "batch_size", "deadline"):
        positive(problems, f"rollout.{key}", getattr(r, key))
    positive(problems, "rollout.temperature", r.temperature)
    if not 0 < r.top_p <= 1:
        problems.add("rollout.top_p", f"rollout.top_p = {r.top_p} must lie in (0, 1]")
    share(problems, "rollout.max_failed", r.max_failed)
    if d.overlong == "truncate":
        at = "data.overlong"
        problems.add(at, f"{at} = truncate would cut the question off; drop or error")
    if d.padding_free:
        problems.add("data.padding_free", "data.padding_free is for rows that are trained on whole")
    if d.weighting == "tokens":
        at = "data.weighting"
        problems.add(at, f"{at} = tokens counts trained tokens, which prompts have none of")
    if isinstance(recipe, RlvrRecipe):
        _train_rollout(recipe, problems)
    else:
        positive(problems, "max_prompts", recipe.max_prompts)
        if r.backend != "transformers":
            at = "rollout.backend"
            problems.add(at, f"{at} = {r.backend}: the {recipe.stage} stage samples with transformers only")


def _train_rollout(recipe: RlvrRecipe, problems: Problems) -> None:
    r, n = recipe.rollout, recipe.rollout.num_generations
    positive(problems, "rollout.steps_per_generation", r.steps_per_generation)
    positive(problems, "rollout.refill", r.refill, 0, strict=False)
    batch = recipe.train.global_batch_size * r.steps_per_generation
    if n > 0 and batch > 0 and batch % n:
        at = "rollout.num_generations"
        problems.add(
            at,
            f"{at} = {n} does not divide the batch: train.global_batch_size = {recipe.train.global_batch_size} completions"
            f" x rollout.steps_per_generation = {r.steps_per_generation} are no whole number of groups",
        )
    if r.truncated_reward and r.truncated != "penalise":
        at = "rollout.truncated_reward"
        problems.add(at, f"{at} is read only with rollout.truncated: penalise, not {r.truncated}")
    if r.top_p < 1 and r.backend != "transformers" and r.vllm.correction != "none":
        problems.add(
            "rollout.top_p",
            f"rollout.top_p = {r.top_p:g} biases the importance weights of rollout.vllm.correction; use 1, or none",
        )
    if recipe.evaluate.heldout is not None:
        at = "evaluate.heldout"
        problems.add(at, f"{at} measures a loss on rows; an rlvr stage is judged by evaluate.tasks")


def policy(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, RlvrRecipe):
        return
    p, n = recipe.policy, recipe.rollout.num_generations
    positive(problems, "policy.beta", p.beta, 0, strict=False)
    positive(problems, "policy.epsilon", p.epsilon)
    positive(problems, "policy.epsilon_high", p.epsilon_high)
    positive(problems, "policy.num_iterations", p.num_iterations)
    positive(problems, "policy.k", p.k)
    if recipe.guard.on_spike != "ignore":
        at = "guard.on_spike"
        problems.add(
            at, f"{at} = {recipe.guard.on_spike}: the loss of a policy lies around 0; gates watch the scores"
        )
    if p.reference is not None and not p.beta:
        at = "policy.reference"
        problems.add(at, f"{at} is read only with policy.beta above 0")
    if p.loss == "cispo" and p.epsilon is not None:
        at = "policy.epsilon"
        problems.add(at, f"{at} has no effect on cispo; epsilon_high caps its weights")
    if p.advantage in ("pkpo", "pass_at_k") and p.k > n:
        problems.add("policy.k", f"policy.k = {p.k} is above rollout.num_generations = {n}: no pass@k of {n}")
    if p.advantage == "confidence" and p.k > 2 * n:
        problems.add(
            "policy.k",
            f"policy.k = {p.k} (N of confidence) is above 2 x rollout.num_generations = {2 * n}: the smallest success "
            f"rate a group can show is 1/{n}, where F is already gone",
        )
    if p.advantage not in ("pkpo", "pass_at_k", "confidence") and p.k != 1:
        problems.add("policy.k", f"policy.k has no effect on advantage = {p.advantage}")


def sampling(recipe: Recipe, problems: Problems) -> None:
    """`pairing` and `keep`."""
    if isinstance(recipe, PairsRecipe):
        p = recipe.pairing
        positive(problems, "pairing.per_prompt", p.per_prompt)
        positive(problems, "pairing.min_gap", p.min_gap, 0, strict=False)
        positive(problems, "pairing.continuations", p.continuations)
        if p.per_prompt > 1 and p.strategy != "correct_incorrect":
            at = "pairing.per_prompt"
            problems.add(at, f"{at} is for correct_incorrect; {p.strategy} makes one pair a prompt")
        if p.strategy == "cross_model" and p.teacher is None:
            at = "pairing.teacher"
            problems.add(at, f"pairing.strategy = cross_model needs {at}, the model that corrects")
        if p.strategy != "cross_model" and p.teacher is not None:
            at = "pairing.teacher"
            problems.add(at, f"{at} is read only with pairing.strategy: cross_model")
        if not p.step_delimiter:
            problems.add("pairing.step_delimiter", "pairing.step_delimiter is empty")
    if isinstance(recipe, PassRateRecipe):
        low, high, n = recipe.keep.at_least, recipe.keep.at_most, recipe.rollout.num_generations
        if not 0 <= low <= high <= n:
            problems.add(
                "keep",
                f"keep = {low} to {high} right of rollout.num_generations = {n}: want 0 <= at_least <= at_most <= {n}",
            )


"""Metrics of tasks that fall as a model gets better."""


def gates(recipe: TrainRecipe, problems: Problems) -> None:
    """Adds what is wrong with `evaluate.gates`."""
    tasks = [task.name for task in recipe.evaluate.tasks]
    for i, gate in enumerate(recipe.evaluate.gates):
        at = f"evaluate.gates[{i}]"
        if gate.task not in tasks:
            near = did_you_mean(gate.task, tasks)
            problems.add(f"{at}.task", f"{at}.task = {gate.task!r} is no task of evaluate.tasks{near}")
        if not (math.isfinite(gate.max_drop) and gate.max_drop >= 0):
            problems.add(f"{at}.max_drop", f"{at}.max_drop = {gate.max_drop} must be a number of at least 0")
        if gate.greater_is_better and gate.metric in LOWER_IS_BETTER:
            problems.add(
                f"{at}.greater_is_better",
                f"{at}: {gate.metric} is better when it is lower; set greater_is_better: false",
            )
        if gate.against == "start" and not recipe.evaluate.at_start:
            problems.add(
                f"{at}.against",
                f"{at}.against = start needs the score of the start model: set evaluate.at_start, or against: best",
            )
