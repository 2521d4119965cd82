"""Arithmetic worked out in writing (`12*34=` -> `360+48=408`), scored by the final number of a sampled reply.

Only the outcome counts: a right number after a wrong chain is right, as in RLVR with the same reward. Left out: a
verdict on the steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from posttrain.data import generators
from posttrain.evaluate.tasks.base import TASKS
from posttrain.recipe import schema
from posttrain.rewards import bind
from posttrain.types import Problem


@TASKS.register("worked_arithmetic")
class WorkedArithmetic:
    """Products or sums of small numbers, worked out before the answer; the final number, compared exactly."""

    kind = "sampled"
    reads_path = False

    @dataclass(frozen=True)
    class Options(generators.ArithmeticOptions):
        """Those of the generator; `train_size` and `seed` as in training keep the two sets apart."""

        split: str = "test"
        generator: str = "multiplication"

    def __init__(self, task: schema.Task, options: Options) -> None:
        self.options = options
        # not mode `math`: there the unsolved `360+48`, or the copied `12*34`, is worth the answer
        self.reward = bind("math", {"mode": "gsm8k", "extract": "last_number"})

    def check(self) -> None:
        generators.check(*self._generator())

    def problems(self) -> list[Problem]:
        rows = generators.generate(*self._generator())
        return [Problem(id=r["id"], prompt=r["prompt"], answer=r["answer"]) for r in rows]

    def _generator(self) -> tuple[str, dict[str, Any]]:
        options = asdict(self.options)
        return options.pop("generator"), options | {"worked": True}
