"""What a task is, and the registry of tasks.

A task is a class with the fields of `EvalTask`. Its settings are a dataclass `Options`, which is built from
the recipe's `options`; unknown keys are refused. `catalogue` lists the files.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

from posttrain.base.registry import Registry
from posttrain.recipe import schema
from posttrain.rewards import Bound
from posttrain.types import Problem


class EvalTask(Protocol):
    """Problems, and how replies to them are judged."""

    kind: ClassVar[Literal["sampled", "exact"]]
    """`sampled`: completions are drawn and judged by `reward`. `exact`: the probability of the reference
    answer, including the end of turn, is computed."""
    reads_path: ClassVar[bool]
    """Whether the task uses `path` of the recipe."""
    Options: ClassVar[type]
    options: Any
    """An `Options`; every field of it enters the settings hash, but for `tools`, a column of the problems."""

    def __init__(self, task: schema.Task, options: Any) -> None: ...

    def check(self) -> None:
        """Raises RequestError where settings exclude each other or a file is missing; reads no problem."""
        ...

    def problems(self) -> list[Problem]:
        """All problems, in a fixed order, with unique ids."""
        ...

    reward: Bound
    """What judges a completion, the same as in training; maj@k votes on `details["answer"]`. Sampled tasks
    only."""


TASKS: Registry[type[EvalTask]] = Registry("task")
