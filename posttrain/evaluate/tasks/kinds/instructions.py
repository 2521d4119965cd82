"""Instructions that a program can check (IFEval, IFBench): by prompt and by instruction, strict and loose.

`prompt_*` is the share of replies that follow all instructions of their prompt, `inst_*` the share of the
instructions that are followed; `*_loose` also tries a reply without its first or last line and without
asterisks. pass@k counts replies as `prompt_strict` does. Left out: the checks
(`posttrain/rewards/instructions/`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from posttrain.errors import RequestError
from posttrain.evaluate import metrics
from posttrain.evaluate.tasks.files import TaskFile
from posttrain.evaluate.tasks.kinds.generate import Generate, GenerateFile, Reward
from posttrain.evaluate.tasks.reading import TaskRow
from posttrain.evaluate.values import Row, judged_of
from posttrain.recipe import schema
from posttrain.rewards import Bound, bind
from posttrain.types import Problem, Verdict

MODES = {"strict": "followed", "loose": "loosely"}
"""End of a metric's name -> key in the details of a verdict."""
REPEATED = "combination:repeat_prompt"
"""The instruction that takes the question as an argument where the row leaves it out."""


@dataclass
class InstructionsFile(GenerateFile):
    """Keys of a task with `instruction_id_list` and `kwargs`. Both strictnesses are measured."""

    reward: Reward = field(default_factory=lambda: Reward("instructions"))


class Instructions(Generate):
    """Replies follow instructions or do not."""

    File: ClassVar[type[TaskFile]] = InstructionsFile
    votes: ClassVar[bool] = False

    @cached_property
    def reward(self) -> Bound:
        given, at = self.spec.reward, f"{self.path.name}: reward"
        if given.name != "instructions" or {"strictness", "grade"} & {*given.options}:
            raise RequestError(
                f"{at}: the kind instructions takes the reward instructions, without strictness and grade"
            )
        return bind(given.name, given.options | {"strictness": "both"}, at)

    def metrics(self, task: schema.Task) -> list[str]:
        passed, others = super().metrics(task)[:-3], super().metrics(task)[-3:]
        return [*passed, *(f"{of}_{mode}" for of in ("prompt", "inst") for mode in MODES), *others]

    def problem(self, row: TaskRow) -> Problem:
        problem = super().problem(row)
        if (ids := problem.extra.get("instruction_id_list")) is None:
            raise RequestError(f"{row.where}: the kind instructions needs column 'instruction_id_list'")
        problem.extra["kwargs"] = [
            {"prompt_to_repeat": problem.prompt} | _known(one) if id == REPEATED else one
            for id, one in zip(ids, problem.extra["kwargs"], strict=True)
        ]
        return problem

    def noted(self, verdict: Verdict, problem: Problem) -> dict[str, Any]:
        """Whether each instruction is followed; none is by a reply that is empty or too long to check."""
        found, rated = verdict.details.get("instructions"), super().noted(verdict, problem)
        if found is None:
            return rated | dict.fromkeys(MODES, [False] * len(problem.extra["instruction_id_list"]))
        return rated | {mode: [one[key] for one in found] for mode, key in MODES.items()}

    def values(self, rows: list[Row], task: schema.Task, at: int) -> dict[str, list[float | None]]:
        found = super().values(rows, task, at)
        judged = judged_of(rows)
        for mode in MODES:
            found[f"prompt_{mode}"] = [_mean([all(c[mode]) for c in part]) for part in judged]
            followed = [_mean([one for c in part for one in c[mode]]) for part in judged]
            sizes = [len(part[0][mode]) if part else 0 for part in judged]
            found[f"inst_{mode}"] = metrics.of_known(metrics.weighted, followed, sizes)
        return {metric: found[metric] for metric in self.metrics(task)}


def _known(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if value is not None}


def _mean(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None
