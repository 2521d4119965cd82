"""A task that a YAML file describes: from rows to problems, whatever its kind.

A kind adds what is asked for besides a prompt and an answer, and how it is measured (`kinds/`). Left out:
shots (`shots.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from posttrain.data.json_rows import as_text
from posttrain.data.shapes.columns import USUAL
from posttrain.data.shapes.rows import options_of, tools_of
from posttrain.data.sources import list_files
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.evaluate.sets import SETS, VERSIONS
from posttrain.evaluate.tasks.expressions import Condition, Expression
from posttrain.evaluate.tasks.files import TaskFile, place
from posttrain.evaluate.tasks.reading import TaskRow, as_source, read_rows
from posttrain.evaluate.tasks.shots import shots_of
from posttrain.recipe import schema
from posttrain.types import Message, Problem

NOT_MEASURED = (
    *("about", "source", "published", "tools", "prompt", "answer", "where", "id", "group", "system"),
    *("sets", "versions"),
)
"""Keys that the problems show, or that change none of them."""


class FileTask:
    """`EvalTask` of a task file. `path` is the file, for messages and for what lies beside it."""

    File: ClassVar[type[TaskFile]] = TaskFile
    reads_path: ClassVar[bool] = True
    macro: tuple[str, ...] = ()

    def __init__(self, task: schema.Task, spec: Any, path: Path) -> None:
        self.task, self.spec, self.path = task, spec, path

    @cached_property
    def expressions(self) -> dict[str, Expression]:
        """Key of the file -> its expression, where it is not empty."""
        found = {key: getattr(self.spec, key) for key in self.keys}
        return {key: self.expression(key, given) for key, given in found.items() if given}

    keys: ClassVar[tuple[str, ...]] = (
        *("prompt", "answer", "where", "id", "group", "system", "prefill", "sets", "versions"),
    )
    """Keys of the file that are expressions."""

    def expression(self, key: str, given: str) -> Expression:
        """`given` as an expression; `where`, `system` and `prefill` are no names of columns."""
        if key == "where":
            return Condition(given, f"{self.path.name}: {key}")
        if key in ("system", "prefill") and "{{" not in given:
            given = f"{{% raw %}}{given}{{% endraw %}}"
        return Expression(given, f"{self.path.name}: {key}")

    @property
    def clusters(self) -> bool:
        return self.spec.clusters

    @property
    def ends(self) -> tuple[str, ...]:
        return SETS * bool(self.spec.sets) + VERSIONS * bool(self.spec.versions)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the values besides the problems and the sampler."""
        return {key: value for key, value in asdict(self.spec).items() if key not in NOT_MEASURED} | {
            "shots": None
        }

    def check(self) -> None:
        """Raises RequestError where an expression cannot be read or files are missing; reads no row."""
        if self.spec.clusters and not self.spec.group:
            raise RequestError(
                f"{self.path.name}: clusters = true needs group, which names the cluster of a row"
            )
        _ = self.expressions, self._files()
        shots_of(self)

    @property
    def is_local(self) -> bool:
        """Whether the rows are files, not on the hub. Raises RequestError where they are not at hand."""
        return bool(self._files())

    def stamps(self) -> list[tuple[str, int, int]]:
        """(path, bytes, time of the last change) of each file of the rows."""
        found = [(file["path"], file["bytes"], Path(file["path"])) for file in self._files()]
        return [(at, n, path.stat().st_mtime_ns if path.exists() else 0) for at, n, path in found]

    def _files(self) -> list[dict[str, Any]]:
        return list_files(as_source(self.task.name, self.spec.source, self.place))

    @cached_property
    def place(self) -> str:
        """The path or hub id of the rows. Raises RequestError where they are not at hand."""
        given = self.task.options.get("source")
        chosen = isinstance(given, dict) and "file" in given
        return place(
            self.spec.source, self.path, self.task.path, f"the rows of task {self.task.name}", chosen
        )

    def rows(self) -> Iterator[TaskRow]:
        """The rows that are asked. Raises RequestError."""
        wanted = self.expressions.get("where")
        for row in read_rows(self.task.name, self.spec.source, self.place):
            if wanted is None or wanted(row.columns, row.where, **row.known):
                yield row

    def problems(self) -> list[Problem]:
        """All problems, in the order of the rows. Raises RequestError, which names file and line."""
        shots = shots_of(self)
        found: dict[str, str] = {}
        problems = []
        for row in self.rows():
            problem = self.problem(row)
            if problem.id in found:
                raise RequestError(f"{row.where}: the id {problem.id!r} is that of {found[problem.id]} too")
            found[problem.id] = row.where
            before, leading = shots.before(row, problem)
            self._ask(problem, before, leading, row)
            problems.append(problem)
        return problems

    def problem(self, row: TaskRow) -> Problem:
        """A row without what it is asked after: `prompt` is the question."""
        group = self.value("group", row) if "group" in self.expressions else ""
        return Problem(
            id=self.text("id", row) if "id" in self.expressions else f"{row.index:05d}",
            answer=self.answer(row),
            prompt=self.text("prompt", row),
            group=str(group) if group is not None else "",
            set=self.text("sets", row) if "sets" in self.expressions else "",
            version_of=self.text("versions", row) if "versions" in self.expressions else "",
        )

    def gold_reply(self, problem: Problem) -> str | None:
        """A reply that is right, as a model writes it after `prefill`; None where none is known."""
        return None

    def spoiled_reply(self, problem: Problem) -> str | None:
        """A reply like the right one that is wrong; None where none is known."""
        return None

    def answer(self, row: TaskRow) -> str:
        """The reference answer: text, a number, a truth value, or a list of these."""
        return filled(self.value("answer", row), self.expressions["answer"], row, lists=True)

    def scoring(self) -> str:
        """What decides whether a reply is right, in a line."""
        return "the probability of the reference answer, its end included"

    def value(self, key: str, row: TaskRow) -> Any:
        """What the expression of `key` gives."""
        return self.expressions[key](row.columns, row.where, **row.known)

    def text(self, key: str, row: TaskRow) -> str:
        """As `value`, which must be text or a number."""
        return filled(self.value(key, row), self.expressions[key], row)

    def _ask(self, problem: Problem, before: list[Message], leading: str, row: TaskRow) -> None:
        """Makes the question of `problem` a conversation, or the text that is continued."""
        question, problem.prompt = leading + str(problem.prompt), None
        system = self.text("system", row) if "system" in self.expressions else ""
        problem.prefill = self.text("prefill", row) if "prefill" in self.expressions else ""
        if not self.spec.chat:
            problem.prompt, problem.plain = (f"{system}\n\n" if system else "") + question, True
            return
        asked: list[Message] = [{"role": "system", "content": system}] if system else []
        problem.messages = [*asked, *before, {"role": "user", "content": question}]
        self._beside(problem, row)

    @cached_property
    def _told(self) -> schema.Source:
        """The source, which says where rows have their tools."""
        tools, source = self.spec.tools, as_source(self.task.name, self.spec.source, self.place)
        source.columns.tools, source.ignore = tools or None, [*USUAL["tools"]] if tools == "" else []
        return source

    def _beside(self, problem: Problem, row: TaskRow) -> None:
        """Columns with tools and values for the chat template, as in training rows."""
        source = self._told
        kept = {name: value for name, value in row.columns.items() if name not in source.ignore}
        try:
            problem.tools = tools_of(kept, source, row.where)
        except (RequestError, RowError) as error:
            at = f"{row.where}: " if isinstance(error, RowError) else ""
            raise RequestError(
                f"{at}{error}; set options.tools of task {self.task.name} to the name of the column, or to ''"
                " where there is none"
            ) from error
        problem.template_options = options_of(kept, source, row.where)


def filled(value: Any, expression: Expression, row: TaskRow, lists: bool = False) -> str:
    """`value` as text, of lists only with `lists`. Raises RequestError where it is none or blank."""
    found = None if isinstance(value, list) and not lists else as_text(value)
    if found is None or not found.strip():
        what = f"column {expression.text!r}" if expression.is_column else expression.at
        kind = "empty" if isinstance(value, str) or value == [] else repr(value)[:60]
        must = "text, a number or a list of these" if lists else "text or a number"
        raise RequestError(f"{row.where}: {what} is {kind}; it must be {must} ({expression.at})")
    return found
