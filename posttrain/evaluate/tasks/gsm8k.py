"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168), or any file with its columns, scored by the final number.

Left out: the steps before the number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from posttrain.evaluate.tasks.base import TASKS
from posttrain.evaluate.tasks.questions import Questions, text_of
from posttrain.recipe import schema
from posttrain.rewards import bind
from posttrain.types import Example


@TASKS.register("gsm8k")
class Gsm8k(Questions):
    """Grade-school word problems; the final number of a completion, compared exactly."""

    kind = "sampled"

    @dataclass(frozen=True)
    class Options:
        """Settings of the task."""

        prompt: str = ""
        """Added after each question, on a line of its own. Empty: the question alone, as in training rows."""
        extract: Literal["any", "last_number", "boxed"] = "any"
        """Where the final number is looked for, see rewards/math/extract.py."""
        tools: str | None = None
        """Column of the tools, as of `math`."""
        subset: str = "main"
        """Hub only."""
        split: str = "test"
        """Hub only."""

    hub = "openai/gsm8k"

    def __init__(self, task: schema.Task, options: Options) -> None:
        super().__init__(task, options)
        self.reward = bind("math", {"mode": "gsm8k", "extract": options.extract})

    def _gold(self, answer: str, where: str) -> str:
        gold = answer.rpartition("####")[2].strip()
        self.reward.check_row(Example(answer=gold, where=where))
        return gold

    def _text(self, row: dict[str, Any], which: str, where: str) -> str:
        return text_of(row, which, where, "gsm8k needs a question and an answer")
