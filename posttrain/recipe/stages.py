"""One dataclass a stage, and the pipeline that chains stages. `STAGES` is the list a new stage joins.

`dpo` and `rlvr` hold what is known of them today: their recipes load and are checked; the trainers are not
here yet, and `posttrain run` says so by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.recipe.schema import (
    Checkpoints,
    Data,
    Evaluate,
    Guard,
    Loss,
    Model,
    Train,
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
class Preference:
    """The preference loss of a DPO stage; formulas and papers in losses/preference.py."""

    loss: Literal["dpo", "dpo_norm", "ipo", "cdpo", "robust", "wpo", "simpo", "orpo", "kto"] = (
        "dpo_norm"
    )
    beta: float | None = None
    """Default by loss: dpo_norm 5 (Tulu 3, arXiv 2411.15124, table 20), simpo 2, the others 0.1."""
    label_smoothing: float = 0.0
    """cdpo and robust: the chance in [0, 0.5) that a pair is labelled the wrong way round."""
    gamma: float = 0.5
    """simpo: the margin."""
    sft_weight: float = 0.0
    """Weight of a supervised term on the chosen side, a token. 0: none."""
    sft_n: float = 1.0
    """N of that term's confidence-limited loss; 1 is cross-entropy."""


@dataclass
class DpoRecipe:
    """Preference optimisation on pairs (prompt, chosen, rejected)."""

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
class Reward:
    """A component of the reward."""

    name: str
    """A registered reward (`posttrain rewards list`), or `package.module:function`."""
    weight: float = 1.0
    label: str | None = None
    """Its name in logs and in a row's `rewards` column. Default: `name`; needed where one reward stands twice."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Success:
    """What counts as solved: the 0/1 of pass@k, of success rates and of pass@k-style advantages."""

    reward: str
    """Label of a verifier."""
    at_least: float = 1.0


@dataclass
class Rollout:
    """How completions are sampled for RL."""

    num_generations: int = 16
    """Completions a prompt (the group)."""
    temperature: float = 1.0
    max_new_tokens: int = 2048


@dataclass
class RlvrRecipe:
    """Reinforcement learning with verifiable rewards."""

    stage: Literal["rlvr"]
    name: str
    model: Model
    data: Data
    train: Train
    rewards: list[Reward]
    success: Success | None = None
    """Default: the first verifier at 1.0."""
    rollout: Rollout = field(default_factory=Rollout)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluate: Evaluate = field(default_factory=Evaluate)
    guard: Guard = field(default_factory=Guard)
    output_dir: str = "runs"


Recipe = SftRecipe | DpoRecipe | RlvrRecipe
STAGES: dict[str, type[SftRecipe] | type[DpoRecipe] | type[RlvrRecipe]] = {
    "sft": SftRecipe,
    "dpo": DpoRecipe,
    "rlvr": RlvrRecipe,
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
