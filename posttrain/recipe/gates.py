"""Scores that decide: which checkpoint is the best, and which scores must not fall (`evaluate.gates`), with the rule.

Left out: whether a task has the metric, which its catalogue knows (`posttrain/preflight.py`); the judgement itself
(`posttrain/training/gates.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems

if TYPE_CHECKING:
    from posttrain.recipe.stages import TrainRecipe

LOWER_IS_BETTER = ("nll", "truncated", "ece", "brier")
"""Metrics of tasks that fall as a model gets better."""


@dataclass
class BestBy:
    """Which score decides the best checkpoint."""

    task: str
    metric: str
    greater_is_better: bool = True


@dataclass
class Gate:
    """A score that must not fall while another one is trained for."""

    task: str
    """One of `evaluate.tasks`."""
    metric: str
    max_drop: float
    """How far the score may fall, in units of the metric (0.02 of pass@1 is two points); choose it above the noise."""
    against: Literal["start", "best"] = "start"
    """Below what: the score of the model the run starts from (step 0), or the best of the run so far."""
    action: Literal["stop", "mark"] = "mark"
    """A checkpoint that fails never counts as the best. `mark`: that is all. `stop`: the run ends besides, until the gate
    is changed."""
    greater_is_better: bool = True


def gates(recipe: TrainRecipe, problems: Problems) -> None:
    """Adds what is wrong with `evaluate.gates`."""
    tasks = [task.name for task in recipe.evaluate.tasks]
    for i, gate in enumerate(recipe.evaluate.gates):
        at = f"evaluate.gates[{i}]"
        if gate.task not in tasks:
            near = did_you_mean(gate.task, tasks)
            problems.add(
                f"{at}.task", f"{at}.task = {gate.task!r} is no task of evaluate.tasks{near}"
            )
        if not (math.isfinite(gate.max_drop) and gate.max_drop >= 0):
            problems.add(
                f"{at}.max_drop", f"{at}.max_drop = {gate.max_drop} must be a number of at least 0"
            )
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
