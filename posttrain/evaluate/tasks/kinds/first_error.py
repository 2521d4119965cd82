"""The first wrong step of a solution, or -1 where it has none (ProcessBench, arXiv 2412.06559).

`answer` is its index, counted from 0, and `steps` the column with the steps. A reply ends with the index in a
box; one without is wrong. `acc_err` is the share of right replies to solutions with a wrong step, `acc_cor`
that to right solutions, `f1` their harmonic mean. Left out: a verdict on every step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from posttrain.errors import RequestError
from posttrain.evaluate import metrics
from posttrain.evaluate.tasks.files import TaskFile
from posttrain.evaluate.tasks.kinds.generate import Generate, GenerateFile, Reward
from posttrain.evaluate.tasks.reading import TaskRow
from posttrain.evaluate.values import Row, judged_of, mean_value
from posttrain.recipe import schema
from posttrain.rewards import Bound
from posttrain.rewards.registry import Spec
from posttrain.types import Example, Problem, Verdict

BOX = re.compile(r"\\boxed\{([^}]*)\}")
NONE = "-1"


def first_error(completion: str, example: Example) -> Verdict:
    """Whether the last box of a reply holds the index of the first wrong step."""
    boxes = BOX.findall(completion)
    try:
        found = str(int(boxes[-1]))
    except (IndexError, ValueError):
        return Verdict(0.0, "unparseable", "no index in a box")
    reason = "" if found == example.answer else f"{found} instead of {example.answer}"
    return Verdict(float(not reason), reason=reason, details={"answer": found})


@dataclass
class FirstErrorFile(GenerateFile):
    """Keys of a task on solutions in steps. `steps`: a column, or a template, that gives the list of them."""

    reward: Reward = field(default_factory=lambda: Reward("first_error"))
    steps: str = "steps"


class FirstError(Generate):
    """Replies name the first wrong step."""

    File: ClassVar[type[TaskFile]] = FirstErrorFile
    keys: ClassVar[tuple[str, ...]] = (*Generate.keys, "steps")

    @cached_property
    def reward(self) -> Bound:
        if self.spec.reward != Reward("first_error"):
            raise RequestError(f"{self.path.name}: reward cannot be set: the kind first_error has its own")
        return Bound(Spec("first_error", first_error, runs="inline"), {})

    def metrics(self, task: schema.Task) -> list[str]:
        found = super().metrics(task)
        return [*found[:-3], "f1", "acc_err", "acc_cor", *found[-3:]]

    def problem(self, row: TaskRow) -> Problem:
        problem, steps = super().problem(row), self.value("steps", row)
        if not isinstance(steps, list) or not steps:
            raise RequestError(f"{row.where}: the steps must be a list, not {steps!r:.60}")
        if problem.answer not in map(str, range(-1, len(steps))):
            raise RequestError(
                f"{row.where}: the first wrong step is {problem.answer!r}; it must be a number from 0 to "
                f"{len(steps) - 1}, or -1 where all {len(steps)} steps are right"
            )
        problem.extra = {"steps": steps}
        return problem

    def values(self, rows: list[Row], task: schema.Task, at: int) -> dict[str, list[float | None]]:
        found = super().values(rows, task, at)
        right = [*map(mean_value, judged_of(rows))]
        wrong_step = [row["answer"] != NONE for row in rows]
        found["acc_err"] = [v if err else None for v, err in zip(right, wrong_step, strict=True)]
        found["acc_cor"] = [None if err else v for v, err in zip(right, wrong_step, strict=True)]
        both = len({err for v, err in zip(right, wrong_step, strict=True) if v is not None}) == 2
        found["f1"] = metrics.of_known(metrics.harmonic, right, wrong_step) if both else [None] * len(rows)
        return {metric: found[metric] for metric in self.metrics(task)}

    def gold_reply(self, problem: Problem) -> str | None:
        return f"\\boxed{{{problem.answer}}}"

    def spoiled_reply(self, problem: Problem) -> str | None:
        return f"\\boxed{{{int(problem.answer) + 1}}}"
