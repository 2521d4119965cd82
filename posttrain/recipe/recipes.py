"""One dataclass a stage, and the pipeline that chains stages. `STAGES` is the list a new stage joins.

Three stages train (sft, dpo, rlvr), two sample and judge (pairs, pass_rate).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.recipe.schema import Checkpoints, Data, Evaluate, Guard, Loss, Model, Train
from posttrain.recipe.sections import (
    Keep,
    Pairing,
    Policy,
    Preference,
    Reward,
    Rollout,
    Success,
    TrainRollout,
)


@dataclass
class SftRecipe:
    """Supervised fine-tuning on prompt/completion rows or conversations."""

    stage: Literal["sft"]
    name: str
    """The run directory is `<output_dir>/<name>`."""
    model: Model
    data: Data
    train: Train
    loss: Loss = field(default_factory=Loss)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluate: Evaluate = field(default_factory=Evaluate)
    guard: Guard = field(default_factory=Guard)
    output_dir: str = "runs"


@dataclass
class DpoRecipe:
    """Preference optimisation on pairs (prompt, chosen, rejected), or with `kto` on labelled replies."""

    stage: Literal["dpo"]
    name: str
    model: Model
    data: Data
    train: Train
    preference: Preference = field(default_factory=Preference)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluate: Evaluate = field(default_factory=Evaluate)
    guard: Guard = field(default_factory=Guard)
    output_dir: str = "runs"


@dataclass
class RlvrRecipe:
    """Reinforcement learning with verifiable rewards. A step's `train.global_batch_size` counts completions."""

    stage: Literal["rlvr"]
    name: str
    model: Model
    data: Data
    train: Train
    rewards: list[Reward]
    success: Success | None = None
    """Default: the first verifier at 1.0."""
    rollout: TrainRollout = field(default_factory=TrainRollout)
    policy: Policy = field(default_factory=Policy)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluate: Evaluate = field(default_factory=Evaluate)
    guard: Guard = field(default_factory=Guard)
    output_dir: str = "runs"


@dataclass
class PairsRecipe:
    """Samples completions, lets the rewards judge them and writes preference pairs to `<run>/pairs.jsonl`."""

    stage: Literal["pairs"]
    name: str
    model: Model
    data: Data
    rewards: list[Reward]
    success: Success | None = None
    rollout: Rollout = field(default_factory=Rollout)
    pairing: Pairing = field(default_factory=Pairing)
    max_prompts: int | None = None
    """The first so many prompts of the mixture. Default: each once."""
    seed: int = 0
    output_dir: str = "runs"


@dataclass
class PassRateRecipe:
    """Measures how often each prompt is solved: `<run>/prompts.jsonl` has the rate as column p, `kept.jsonl` the rows
    that are neither too easy nor too hard."""

    stage: Literal["pass_rate"]
    name: str
    model: Model
    data: Data
    rewards: list[Reward]
    success: Success | None = None
    rollout: Rollout = field(default_factory=Rollout)
    keep: Keep = field(default_factory=Keep)
    max_prompts: int | None = None
    seed: int = 0
    output_dir: str = "runs"


TrainRecipe = SftRecipe | DpoRecipe | RlvrRecipe
SampleRecipe = PairsRecipe | PassRateRecipe
Recipe = TrainRecipe | SampleRecipe
STAGES: dict[str, Any] = {
    "sft": SftRecipe,
    "dpo": DpoRecipe,
    "rlvr": RlvrRecipe,
    "pairs": PairsRecipe,
    "pass_rate": PassRateRecipe,
}


@dataclass
class PipelineStage:
    """One stage of a pipeline: a recipe file and what it waits for."""

    name: str
    recipe: str
    """Path of the stage's recipe, relative to the pipeline file."""
    overrides: list[str] = field(default_factory=list)
    """`key=value`, as on the command line."""
    after: list[str] = field(default_factory=list)
    """Stages that must have finished. A stage whose `model.init` names another waits for it anyway."""


@dataclass
class Pipeline:
    """Stages that belong together: `runs/<pipeline>/` holds one run directory each and one report."""

    pipeline: str
    stages: list[PipelineStage]
    parallel: int = 1
    """Stages that may run at the same time; each gets its share of the CPU threads."""
    output_dir: str = "runs"
