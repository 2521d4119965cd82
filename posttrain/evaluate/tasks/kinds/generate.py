"""Sampled replies, judged by a reward of the registry, the same function as in training.

Left out: the reward (`posttrain/rewards/`), and sampling (`score.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from posttrain.evaluate.tasks.base import Sampled
from posttrain.evaluate.tasks.expressions import Expression
from posttrain.evaluate.tasks.file_task import FileTask
from posttrain.evaluate.tasks.files import TaskFile
from posttrain.evaluate.tasks.reading import TaskRow
from posttrain.rewards import Bound, bind
from posttrain.types import Example, Problem

THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*?</think>", re.DOTALL)


@dataclass
class Reward:
    """A reward, by its name or as `package.module:function`, and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class GenerateFile(TaskFile):
    """Keys of a task whose replies are sampled."""

    reward: Reward = field(default_factory=lambda: Reward("math"))
    columns: dict[str, str] = field(default_factory=dict)
    """Column that the reward reads -> where the row has it."""
    reply: str = ""
    """What is judged, a template over the row and `completion`. Default: `prefill` and the completion."""
    stop: list[str] = field(default_factory=list)
    """The completion ends before the first of these texts."""
    thinking: Literal["keep", "strip"] = "keep"
    """Whether the reward sees the part between <think> and </think>; most leave it out themselves."""
    samples: int = 1
    k: list[int] = field(default_factory=lambda: [1])
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512


class Generate(Sampled, FileTask):
    """Replies are sampled, and a reward judges them."""

    File: ClassVar[type[TaskFile]] = GenerateFile

    @cached_property
    def reward(self) -> Bound:
        given = self.spec.reward
        return bind(given.name, given.options, f"{self.path.name}: reward")

    @property
    def macro(self) -> tuple[str, ...]:
        return tuple(f"pass@{k}" for k in self.task.k or self.spec.k) if self.spec.group else ()

    @property
    def stop(self) -> list[str]:
        return self.spec.stop

    @property
    def identity(self) -> dict[str, Any]:
        found = super().identity | {"reward": {"name": self.reward.name, "options": self.reward.options}}
        return {key: value for key, value in found.items() if key not in SAMPLED and key != "columns"}

    def check(self) -> None:
        _ = self.reward, self._columns, self._reply
        super().check()

    def problem(self, row: TaskRow) -> Problem:
        problem = super().problem(row)
        problem.extra = {
            key: found(row.columns, row.where, **row.known) for key, found in self._columns.items()
        }
        declared = {name for column in self.reward.spec.columns for name in column.split("|")}
        named = declared or row.columns  # a reward that declares none may read any
        problem.extra = {name: row.columns[name] for name in named if name in row.columns} | problem.extra
        example = Example(prompt=problem.prompt, answer=problem.answer, where=row.where, extra=problem.extra)
        self.reward.check_row(example)
        return problem

    def judged(self, completion: str, problem: Problem) -> str:
        """What the reward sees of a completion."""
        text = problem.prefill + completion
        if self.spec.thinking == "strip":
            text = THOUGHT.sub("", text).strip()
        if self._reply is None:
            return text
        return str(self._reply(problem.extra, problem.id, completion=text, answer=problem.answer))

    @cached_property
    def _reply(self) -> Expression | None:
        return self.expression("reply", self.spec.reply) if self.spec.reply else None

    @cached_property
    def _columns(self) -> dict[str, Expression]:
        return {key: self.expression(f"columns.{key}", text) for key, text in self.spec.columns.items()}


SAMPLED = ("samples", "k", "temperature", "top_p", "max_new_tokens")
