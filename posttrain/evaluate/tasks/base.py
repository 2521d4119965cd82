"""What a task is, and the registry of those that are generated rather than read.

A generated task is a class under `@TASKS.register(name)`, with a dataclass `Options`, which is built from
the recipe's `options`, and `__init__(task, options)`. All others are YAML files (`files.py`) of a kind
(`kinds/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Protocol

from posttrain.base.registry import Registry
from posttrain.evaluate.draws import further, further_values
from posttrain.evaluate.values import ATTEMPTS, Row, exact_values, sampled_values
from posttrain.recipe.schema import Task
from posttrain.rewards import Bound, score_batch
from posttrain.types import Problem, Verdict

SAMPLER: dict[str, Any] = {
    "samples": 1,
    "k": [1],
    "temperature": 1.0,
    "top_p": 1.0,
    "max_new_tokens": 512,
}
"""Field of the sampler -> its value where neither the recipe nor the task gives one."""


class EvalTask(Protocol):
    """Problems, and how replies to them are judged."""

    kind: ClassVar[Literal["sampled", "exact", "choice"]]
    """`sampled`: completions are drawn and judged by `reward`. `exact`: the probability of the reference
    answer, including the end of turn, is computed. `choice`: that of each option."""
    reads_path: ClassVar[bool]
    """Whether the task uses `path` of the recipe."""
    clusters: bool
    """Whether problems of one group are not independent."""
    macro: Sequence[str]
    """Metrics whose mean over groups is a metric too, `acc_macro` of `acc`."""
    ends: Sequence[str]
    """The first metric with these ends is a metric too, a number over sets or versions of problems."""

    def metrics(self, task: Task) -> list[str]:
        """The metrics of `values` for `task`, which is resolved, in order."""
        ...

    def values(self, rows: list[Row], task: Task, at: int) -> dict[str, list[float | None]]:
        """metric -> a value per problem, at the temperature of `task` (`at` 0) or number `at` of the others;
        None where a problem has none. Raises WorkError."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the values besides the problems and the sampler; it enters the settings hash."""
        ...

    def check(self) -> None:
        """Raises RequestError where settings exclude each other or a file is missing; reads no problem."""
        ...

    def problems(self) -> list[Problem]:
        """All problems, in a fixed order, with unique ids."""
        ...

    reward: Bound
    """What judges a completion, the same as in training; maj@k votes on `details["answer"]`. Sampled tasks
    only."""
    stop: list[str]
    """A completion ends before the first of these texts. Sampled tasks only."""

    def judged(self, completion: str, problem: Problem) -> str:
        """What the reward sees of a completion. Sampled tasks only."""
        ...

    def verdicts(self, completions: list[str], problems: list[Problem]) -> list[Verdict]:
        """That of each completion on the problem at its place. Sampled tasks only."""
        ...

    def noted(self, verdict: Verdict, problem: Problem) -> dict[str, Any]:
        """What the row of a completion keeps of its verdict beside the usual, as JSON, for `values`.
        Sampled tasks only."""
        ...


class Sampled:
    """What is measured where completions are sampled."""

    kind: ClassVar[Literal["sampled"]] = "sampled"
    also: Sequence[str] = ()
    """Of `draws.FURTHER`: what else is measured."""
    votes: ClassVar[bool] = True
    """Whether replies have answers that can be the same, which maj@k counts; programs have none."""
    reward: Bound

    def verdicts(self, completions: list[str], problems: list[Problem]) -> list[Verdict]:
        texts = [self.judged(text, problem) for text, problem in zip(completions, problems, strict=True)]
        return score_batch(self.reward, texts, problems)

    def metrics(self, task: Task) -> list[str]:
        votes = [f"maj@{k}" for k in task.k or [] if k > 1 and self.votes]
        found = [*(f"pass@{k}" for k in task.k or []), *votes, *further(self.also, task)]
        return [*found, "truncated", "parsed", "tokens_mean"]

    def values(self, rows: list[Row], task: Task, at: int) -> dict[str, list[float | None]]:
        found = sampled_values(rows, task) | further_values(rows, self.also, task)
        return {key: value for key, value in found.items() if self.votes or not key.startswith("maj@")}

    def noted(self, verdict: Verdict, problem: Problem) -> dict[str, Any]:
        return {}


class Exactly:
    """What is measured where the probability of the reference answer is known."""

    kind: ClassVar[Literal["exact"]] = "exact"

    def metrics(self, task: Task) -> list[str]:
        return [*(f"pass@{n}" for n in ATTEMPTS), "nll", "accuracy"]

    def values(self, rows: list[Row], task: Task, at: int) -> dict[str, list[float | None]]:
        return exact_values(rows, at)


class Generated:
    """What generated tasks share. `options`: an instance of the class's `Options`."""

    reads_path = False
    clusters = True
    macro: ClassVar[tuple[str, ...]] = ()
    ends: ClassVar[tuple[str, ...]] = ()
    stop: ClassVar[list[str]] = []
    options: Any

    @property
    def identity(self) -> dict[str, Any]:
        return asdict(self.options)

    def judged(self, completion: str, problem: Problem) -> str:
        return completion


TASKS: Registry[Any] = Registry("task")
