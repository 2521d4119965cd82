"""Multiple choice: the probability of each option as the continuation of the prompt; nothing is sampled.

A letter after a question that lists the options, or the text of an option after the question alone. Left out:
questions with several right options; the forward passes (`choice.py` of evaluate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from posttrain.data.json_rows import as_text
from posttrain.errors import RequestError
from posttrain.evaluate.tasks.expressions import LETTERS
from posttrain.evaluate.tasks.file_task import FileTask
from posttrain.evaluate.tasks.files import TaskFile
from posttrain.evaluate.tasks.reading import TaskRow
from posttrain.evaluate.values import CHOICE_METRICS, Row, choice_values
from posttrain.recipe.schema import Task
from posttrain.types import Problem


@dataclass
class ChoiceFile(TaskFile):
    """Keys of a task whose options are compared. `answer`: the index of the right option from 0, its letter,
    or its text."""

    choices: str = "choices"
    """The options: a column with a list, or an expression that gives one."""
    continuation: Literal["letter", "text"] = "letter"
    """What follows the prompt: the letter of an option, or the option itself."""
    form: str = "{}"
    """How it is written: `({})`."""
    space: Literal["auto", "always", "never"] = "auto"
    """Whether a space stands between the prompt and what follows. auto: where the prompt does not end in
    white space, as that of most chat templates does."""
    unconditional: str = ""
    """Another prompt, without the question, `Answer:`; `acc_uncond` compares what the question adds to the
    log-probability of each option."""
    blank: str = ""
    """A text with a gap, `___`: a column, or a template. Each option is put into it, and `acc_blank` takes
    the one with the lowest perplexity of the whole text. Texts without a gap, or with several, have no
    value."""


class Choice(FileTask):
    """The probability of each option."""

    File: ClassVar[type[TaskFile]] = ChoiceFile
    kind: ClassVar[Literal["choice"]] = "choice"
    keys: ClassVar[tuple[str, ...]] = (*FileTask.keys, "choices", "blank")

    @property
    def space(self) -> str:
        return self.spec.space

    @property
    def unconditional(self) -> str:
        return self.spec.unconditional

    @property
    def macro(self) -> tuple[str, ...]:
        return ("acc", "acc_norm") if self.spec.group else ()

    @property
    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in super().identity.items() if key not in ("choices", "blank")}

    def metrics(self, task: Task) -> list[str]:
        asked = {"acc_uncond": self.unconditional, "acc_blank": self.spec.blank}
        asked |= {"blank_perplexity": self.spec.blank, "valid_mass": self.spec.continuation == "letter"}
        return [metric for metric in CHOICE_METRICS if asked.get(metric, True)]

    def values(self, rows: list[Row], task: Task, at: int) -> dict[str, list[float | None]]:
        found = choice_values(rows, at)
        return {metric: found[metric] for metric in self.metrics(task)}

    def check(self) -> None:
        if "{}" not in self.spec.form:
            raise RequestError(f"{self.path.name}: form = {self.spec.form!r} must contain {{}}")
        super().check()

    def problem(self, row: TaskRow) -> Problem:
        options = self._options(row)
        problem = super().problem(row)
        problem.extra = {"right": self._right(options, row), "choices": options}
        problem.extra["continuations"] = self._continuations(options)
        if "blank" in self.expressions:
            problem.extra["blank"] = self.text("blank", row)
        return problem

    def answer(self, row: TaskRow) -> str:
        """What the right reply says."""
        options = self._options(row)
        return self._continuations(options)[self._right(options, row)]

    def _continuations(self, options: list[str]) -> list[str]:
        each = LETTERS[: len(options)] if self.spec.continuation == "letter" else options
        return [self.spec.form.replace("{}", one) for one in each]

    def _options(self, row: TaskRow) -> list[str]:
        given, at = self.value("choices", row), self.expressions["choices"].at
        if not isinstance(given, list | tuple):
            raise RequestError(f"{row.where}: choices is {str(given)[:60]!r}; it must be a list ({at})")
        if not 2 <= len(given) <= len(LETTERS):
            raise RequestError(f"{row.where}: {len(given)} choices; there must be 2 to {len(LETTERS)} ({at})")
        options = [as_text(option) or "" for option in given]
        if blank := [i for i, option in enumerate(options) if not option.strip()]:
            i = blank[0]
            raise RequestError(
                f"{row.where}: choice {LETTERS[i]} is {given[i]!r}; it must be text or a number ({at})"
            )
        return options

    def _right(self, options: list[str], row: TaskRow) -> int:
        given = self.value("answer", row)
        answer, at = self.expressions["answer"], self.expressions["answer"].at
        try:
            right = index_of(given, options)
            if answer.is_column and isinstance(given, int) and options[right] != str(given) in options:
                raise ValueError(
                    f"may be an index or the text of a choice; write '{{{{ {answer.text} }}}}' for the index,"
                    f" '{{{{ {answer.text} | string }}}}' for the text"
                )
            return right
        except ValueError as error:
            raise RequestError(f"{row.where}: the answer {str(given)[:60]!r} {error} ({at})") from None


def index_of(answer: Any, options: list[str]) -> int:
    """The index of the right option, from its index from 0, its letter or its text.

    Raises:
        ValueError: why `answer` does not name one option.
    """
    count = len(options)
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < count:
            return answer
        raise ValueError(f"is no index of {count} choices, 0 to {count - 1}")
    if not isinstance(answer, str):
        raise ValueError("must be an index from 0, a letter or the text of a choice")
    said = answer.strip()
    bare = said.strip("()[].").upper()
    by_letter = {LETTERS.index(bare)} if len(bare) == 1 and bare in LETTERS[:count] else set()
    by_text = {i for i, option in enumerate(options) if option.strip() == said}
    if len(found := by_letter | by_text) == 1:
        return found.pop()
    if found:
        names = " and ".join(LETTERS[i] for i in sorted(found))
        raise ValueError(f"may be {names}, by letter or by text; give the index: 'ABCD'.index(answer)")
    raise ValueError(f"is neither a letter from A to {LETTERS[count - 1]} nor the text of a choice")
