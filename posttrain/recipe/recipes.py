"""A dataclass for the recipe of each stage, and the pipeline of several stages.

`STAGES` lists the stages; a new one is a class and a line there.

Three stages train (sft, dpo, rlvr); three sample completions and judge them (rlvr, pairs, pass_rate).
"""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from posttrain.recipe.schema import Checkpoints, Data, Evaluate, Loss, Model, Train
from posttrain.recipe.sections import (
    TOOL_LOOPS,
    Guard,
    Keep,
    Pairing,
    Policy,
    Preference,
    Reward,
    Rollout,
    Success,
    TrainRollout,
)

C = TypeVar("C", bound=type)
KEYS = (
    *("stage", "name", "model", "data", "train", "loss", "preference"),
    *("rewards", "success", "rollout", "policy", "pairing", "keep", "max_prompts", "seed"),
    *("checkpoints", "evaluate", "guard", "output_dir"),
)
"""The order of the keys in a resolved recipe.yaml and in messages, whichever class declares them."""


def in_key_order(cls: C) -> C:
    """Sort the fields of a dataclass by `KEYS`; inherited fields would otherwise all come first."""
    cls.__dataclass_fields__ = {f.name: f for f in sorted(dataclasses.fields(cls), key=_place)}
    return cls


def _place(f: dataclasses.Field) -> int:
    return KEYS.index(f.name)


class AsWritten:
    """What knows which of its values resolvers gave."""

    written = types.MappingProxyType({})
    """Path -> (value, expression); set by `load`. No field: it is not part of the recipe."""


@dataclass(kw_only=True)
class Recipe(AsWritten):
    """What the recipes of all stages have in common."""

    stage: str
    name: str
    """The run directory is `<output_dir>/<name>`."""
    model: Model
    data: Data
    output_dir: str = "runs"


@dataclass(kw_only=True)
class TrainRecipe(Recipe):
    """What the recipes of the stages that train have in common."""

    train: Train
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluate: Evaluate = field(default_factory=Evaluate)
    guard: Guard = field(default_factory=Guard)


@dataclass(kw_only=True)
class RolloutRecipe(Recipe):
    """What the recipes of the stages that sample completions and judge them have in common."""

    REFUSED: ClassVar[dict[str, str]] = TOOL_LOOPS

    rewards: list[Reward]
    success: Success | None = None
    """Default: the first verifier at 1.0."""
    rollout: Rollout = field(default_factory=Rollout)


@dataclass(kw_only=True)
class SampleRecipe(RolloutRecipe):
    """What the recipes of the stages that sample and do not train have in common."""

    max_prompts: int | None = None
    """At most this many prompts, from the start of the mixture. Default: each once."""
    seed: int = 0


@in_key_order
@dataclass(kw_only=True)
class SftRecipe(TrainRecipe):
    """Supervised fine-tuning on prompt/completion rows or conversations."""

    stage: Literal["sft"]
    loss: Loss = field(default_factory=Loss)


@dataclass
class PairData(Data):
    """The mixture of a dpo stage."""

    train_on: Literal["assistant", "last"] = "last"
    """Which turns of a conversation count in the log-probability of a side and in its length: the last reply,
    in which the sides differ, or every assistant turn, as in Tulu 3. `assistant` is refused with
    preference.loss = kto. losses/README.md says what the turns that both sides share do.
    """


@in_key_order
@dataclass(kw_only=True)
class DpoRecipe(TrainRecipe):
    """Preference optimisation on pairs (prompt, chosen, rejected), or with `kto` on labelled replies."""

    stage: Literal["dpo"]
    data: PairData
    preference: Preference = field(default_factory=Preference)


@in_key_order
@dataclass(kw_only=True)
class RlvrRecipe(TrainRecipe, RolloutRecipe):
    """Reinforcement learning with verifiable rewards. `train.global_batch_size` counts completions."""

    stage: Literal["rlvr"]
    rollout: TrainRollout = field(default_factory=TrainRollout)
    policy: Policy = field(default_factory=Policy)


@in_key_order
@dataclass(kw_only=True)
class PairsRecipe(SampleRecipe):
    """Samples completions, judges them by the rewards and writes preference pairs to `<run>/pairs.jsonl`."""

    stage: Literal["pairs"]
    pairing: Pairing = field(default_factory=Pairing)


@in_key_order
@dataclass(kw_only=True)
class PassRateRecipe(SampleRecipe):
    """Measures how often each prompt is solved.

    `<run>/prompts.jsonl` has the rate as column p, `kept.jsonl` the rows that are neither too easy nor too
    hard.
    """

    stage: Literal["pass_rate"]
    keep: Keep = field(default_factory=Keep)


STAGES: dict[str, Any] = {
    "sft": SftRecipe,
    "dpo": DpoRecipe,
    "rlvr": RlvrRecipe,
    "pairs": PairsRecipe,
    "pass_rate": PassRateRecipe,
}


@dataclass
class PipelineStage:
    """One stage of a pipeline: a recipe file and the stages it waits for."""

    name: str
    recipe: str
    """Path of the stage's recipe, relative to the pipeline file."""
    overrides: list[str] = field(default_factory=list)
    """`key=value`, as on the command line."""
    after: list[str] = field(default_factory=list)
    """Stages that must have finished. A stage always waits for the stages that its models and source files
    come from."""


@dataclass
class Pipeline(AsWritten):
    """A chain of stages: `runs/<pipeline>/` contains a run directory for each, and one report."""

    pipeline: str
    stages: list[PipelineStage]
    parallel: int = 1
    """Stages that may run at the same time; the CPU threads are divided among them."""
    output_dir: str = "runs"
