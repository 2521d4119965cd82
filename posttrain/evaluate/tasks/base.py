"""What a task is, and the registry its class joins.

A task is a class with the fields of `EvalTask`; its settings are a dataclass `Options`, which a recipe's
`options` fill strictly. `catalogue` lists the files.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

from posttrain.base.registry import Registry
from posttrain.recipe import schema
from posttrain.rewards import Bound
from posttrain.types import Problem


class EvalTask(Protocol):
    """Problems and how replies to them are judged. The class docstring's first line describes it to users."""

    kind: ClassVar[Literal["sampled", "exact"]]
    """`sampled`: completions are drawn and judged by `reward`. `exact`: the probability of the answer, with the
    end of turn, is computed."""
    reads_path: ClassVar[bool]
    """Whether `path` of the recipe means anything to it."""
    Options: ClassVar[type]
    options: Any
    """An `Options`: all of it enters the settings hash."""

    def __init__(self, task: schema.Task, options: Any) -> None: ...

    def check(self) -> None:
        """Raise RequestError where settings exclude each other or a file is missing; reads no problem."""
        ...

    def problems(self) -> list[Problem]:
        """All problems, in a fixed order, with unique ids."""
        ...

    reward: Bound
    """What judges a completion, the same as in training; `details["answer"]` is what maj@k votes on. Sampled
    tasks only."""


TASKS: Registry[type[EvalTask]] = Registry("task")
