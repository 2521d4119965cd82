"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168), or any file with its columns, scored by the final number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from posttrain.data.sources import list_files, open_rows
from posttrain.errors import RequestError, did_you_mean
from posttrain.evaluate.tasks.base import TASKS
from posttrain.recipe import schema
from posttrain.rewards import bind
from posttrain.types import Problem


@TASKS.register("gsm8k")
class Gsm8k:
    """Grade-school word problems; the final number of a completion, compared exactly."""

    kind = "sampled"
    reads_path = True

    @dataclass(frozen=True)
    class Options:
        """Settings of the task."""

        prompt: str = ""
        """Put after each question, on a line of its own. Empty: the question alone, as in training rows."""
        extract: Literal["any", "last_number", "boxed"] = "any"
        """Where the final number stands, see rewards/math/extract.py."""
        subset: str = "main"
        """Hub only."""
        split: str = "test"
        """Hub only."""

    def __init__(self, task: schema.Task, options: Options) -> None:
        self.options = options
        self.reward = bind("math", {"mode": "gsm8k", "extract": options.extract})
        self.source = schema.Source(
            name=task.name,
            path=task.path or "openai/gsm8k",
            subset=options.subset,
            split=options.split,
        )

    def check(self) -> None:
        list_files(self.source)

    def problems(self) -> list[Problem]:
        from posttrain.rewards.math import plain_number

        suffix = f"\n{self.options.prompt}" if self.options.prompt else ""
        found = []
        for index, (where, row) in enumerate(open_rows(self.source)):
            question, answer = _text(row, "question", where), _text(row, "answer", where)
            gold = answer.rpartition("####")[2].strip()
            if plain_number(gold) is None:
                raise RequestError(f"{where}: the answer ends on {gold[:40]!r}, which is no number")
            messages = [{"role": "user", "content": question + suffix}]
            found.append(Problem(id=f"{index:05d}", messages=messages, answer=gold))
        return found


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value
    why = f"is {value!r}" if column in row else f"is missing{did_you_mean(column, row)}"
    raise RequestError(f"{where}: column {column!r} {why}; gsm8k needs a question and an answer")
