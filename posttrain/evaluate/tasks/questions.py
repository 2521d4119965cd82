"""Questions with reference answers from a file: solved in writing and judged, or answered directly and scored
exactly.

Reads any file or hub data set with a column of questions and one of answers; the defaults are those of MATH.
Columns with tools and `chat_template_kwargs` are given to the template, as in training rows.
Left out: several reference answers, few-shot prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from posttrain.data.shapes.columns import USUAL
from posttrain.data.shapes.rows import options_of, tools_of
from posttrain.data.sources import list_files, open_rows
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, what_is_there
from posttrain.evaluate.tasks.base import TASKS
from posttrain.recipe import schema
from posttrain.rewards import bind
from posttrain.types import Example, Problem


@dataclass(frozen=True)
class Columns:
    """Where the questions and answers are."""

    question: str = "problem"
    """Column of the question."""
    answer: str = "answer"
    """Column of the reference answer."""
    prompt: str = ""
    """Added after each question, on a line of its own. Empty: the question alone, as in training rows."""
    tools: str | None = None
    """Column of the tools. Not set: `tools`, else `functions`. Empty: none is read."""
    subset: str | None = None
    """Hub only."""
    split: str = "test"
    """Hub only."""


class Questions:
    """What these tasks share: a source, each row of which is a problem."""

    reads_path = True
    hub = "HuggingFaceH4/MATH-500"
    """The data set that is read if no path is given."""

    def __init__(self, task: schema.Task, options: Any) -> None:
        self.options, self.name = options, task.name
        self.source = schema.Source(
            name=task.name,
            path=task.path or self.hub,
            columns=schema.Columns(tools=options.tools or None),
            subset=options.subset,
            split=options.split,
            ignore=[*USUAL["tools"]] if options.tools == "" else [],
        )

    def check(self) -> None:
        list_files(self.source)

    def problems(self) -> list[Problem]:
        suffix = f"\n{self.options.prompt}" if self.options.prompt else ""
        found = []
        for index, (where, row) in enumerate(open_rows(self.source)):
            question, answer = (self._text(row, which, where) for which in ("question", "answer"))
            messages = [{"role": "user", "content": question + suffix}]
            gold = self._gold(answer, where)
            kept = {name: value for name, value in row.items() if name not in self.source.ignore}
            try:
                tools = tools_of(kept, self.source, where)
            except (RequestError, RowError) as error:
                place = f"{where}: " if isinstance(error, RowError) else ""
                advice = f"{self._advice('tools')}, or to '' where there is none"
                raise RequestError(f"{place}{error}; {advice}") from error
            options = options_of(kept, self.source, where)
            found.append(
                Problem(
                    id=f"{index:05d}", messages=messages, answer=gold, tools=tools, template_options=options
                )
            )
        return found

    def _gold(self, answer: str, where: str) -> str:
        """The text that a reply is compared with. Raises RequestError where no reply could be judged by
        it."""
        return answer

    def _text(self, row: dict[str, Any], which: str, where: str) -> str:
        return text_of(row, getattr(self.options, which), where, self._advice(which)).strip()

    def _advice(self, which: str) -> str:
        return f"set options.{which} of task {self.name} to the name of the column"


def text_of(row: dict[str, Any], column: str, where: str, advice: str) -> str:
    """The text in `column`. Raises RequestError, which ends with `advice`, where there is none."""
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value
    why = f"is {value!r}" if column in row else f"is missing{what_is_there(column, row)}"
    raise RequestError(f"{where}: column {column!r} {why}; {advice}")


@TASKS.register("math")
class Mathematics(Questions):
    """Mathematics problems; the final answer of a completion, compared with the reference in any notation."""

    kind = "sampled"

    @dataclass(frozen=True)
    class Options(Columns):
        """Settings of the task."""

        extract: Literal["any", "boxed", "last_number"] = "any"
        """Where the final answer is looked for, see rewards/math/extract.py."""

    def __init__(self, task: schema.Task, options: Options) -> None:
        super().__init__(task, options)
        self.reward = bind("math", {"extract": options.extract})

    def _gold(self, answer: str, where: str) -> str:
        self.reward.check_row(Example(answer=answer, where=where))
        return answer


@TASKS.register("direct_answers")
class DirectAnswers(Questions):
    """Questions answered directly: the exact probability of the reference answer as written, end of turn
    included."""

    kind = "exact"
    Options = Columns
