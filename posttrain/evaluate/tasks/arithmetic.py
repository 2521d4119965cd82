"""Arithmetic with direct answers, scored by the exact probability of the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from posttrain.data.problems import catalogue
from posttrain.data.problems.operands import ArithmeticOptions
from posttrain.evaluate.tasks.base import TASKS, Exactly, Generated
from posttrain.recipe import schema
from posttrain.types import Problem


@TASKS.register("arithmetic")
class Arithmetic(Exactly, Generated):
    """Products or sums of small numbers, answered directly: the exact probability of the answer."""

    made: ClassVar[dict[str, Any]] = {}
    """Options of the generator that the task sets itself."""

    @dataclass(frozen=True)
    class Options(ArithmeticOptions):
        """Those of the generator. With the `train_size` and `seed` of training, the two sets are disjoint."""

        split: str = "test"
        generator: str = "multiplication"

    def __init__(self, task: schema.Task, options: Options) -> None:
        self.options = options

    def check(self) -> None:
        catalogue.check(*self._generator())

    def problems(self) -> list[Problem]:
        rows = catalogue.generate(*self._generator())
        return [Problem(id=r["id"], prompt=r["prompt"], answer=r["answer"]) for r in rows]

    def _generator(self) -> tuple[str, dict[str, Any]]:
        options = asdict(self.options)
        return options.pop("generator"), options | self.made
