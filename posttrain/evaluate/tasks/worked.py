"""Arithmetic worked out in writing (`12*34=` -> `360+48=408`), scored by the final number of a sampled reply.

Only the outcome counts: a correct number after wrong steps is correct, as in RLVR with the same reward. Left
out: a verdict on the steps.
"""

from __future__ import annotations

from typing import Any

from posttrain.evaluate.tasks.arithmetic import Arithmetic
from posttrain.evaluate.tasks.base import TASKS, Sampled
from posttrain.recipe import schema
from posttrain.rewards import bind


@TASKS.register("worked_arithmetic")
class WorkedArithmetic(Sampled, Arithmetic):
    """Products or sums of small numbers, worked out before the answer; the final number, compared exactly."""

    made = {"worked": True}

    def __init__(self, task: schema.Task, options: Any) -> None:
        super().__init__(task, options)
        # not mode `math`, which accepts the unsolved `360+48` or a copy of `12*34` as equal to the answer
        self.reward = bind("math", {"mode": "gsm8k", "extract": "last_number"})
