"""Open replies, scored by a language model with a rubric: the reward `judge`, or another that gives shares.

`score` is the mean over problems of the mean score of their replies, from 0 to 1. Where a judge is down or
gives no scores, replies are left out and do not count as 0. Left out: scores by the probabilities of digits,
and how far judges agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from posttrain.errors import RequestError
from posttrain.evaluate.tasks.files import TaskFile
from posttrain.evaluate.tasks.kinds.generate import Generate, GenerateFile, Reward
from posttrain.evaluate.tasks.reading import TaskRow
from posttrain.evaluate.values import Row, judged_of, mean_value
from posttrain.recipe import schema


@dataclass
class JudgeFile(GenerateFile):
    """Keys of a task with open replies. `answer`, where it is set, is shown to the judge as the reference."""

    answer: str = ""
    reward: Reward = field(default_factory=lambda: Reward("judge"))


class Judge(Generate):
    """Replies are sampled, and a model scores them."""

    File: ClassVar[type[TaskFile]] = JudgeFile

    def check(self) -> None:
        if self.task.k not in (None, [1]):
            raise RequestError(
                f"k = {self.task.k} has no effect: {self.task.name} measures a mean score over all samples"
            )
        super().check()

    def answer(self, row: TaskRow) -> str:
        return super().answer(row) if self.spec.answer else ""

    def metrics(self, task: schema.Task) -> list[str]:
        return ["score", "truncated", "parsed", "tokens_mean"]

    def values(self, rows: list[Row], task: schema.Task, at: int) -> dict[str, list[float | None]]:
        found = super().values(rows, task, at)
        found["score"] = [*map(mean_value, judged_of(rows))]
        return {metric: found[metric] for metric in self.metrics(task)}
