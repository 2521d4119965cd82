"""Solved questions before the question: rows of a file, or a text.

A shot is never the row that is scored: with shots from the scored rows themselves that one is left out, and a
row of another file that is one of its shots is refused. Left out: choosing shots by likeness or at random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.data.sources import list_files
from posttrain.errors import RequestError
from posttrain.evaluate.tasks.expressions import Expression
from posttrain.evaluate.tasks.files import Shots, place
from posttrain.evaluate.tasks.reading import TaskRow, as_source, read_rows
from posttrain.types import Message, Problem

NAMED = "the shots of task {}"


class Shot(NamedTuple):
    """A solved row. `same`: its question as it is shown, and as the task would ask it, by which a scored row
    is known."""

    where: str
    asked: str
    reply: str
    same: tuple[str, str]


@dataclass
class Shown:
    """The shots of a task. `rows`: group ("" where it does not count) -> those that may be chosen."""

    spec: Shots | None = None
    rows: dict[str, list[Shot]] = field(default_factory=dict)
    text: Expression | None = None
    same_source: bool = False

    def before(self, row: TaskRow, problem: Problem) -> tuple[list[Message], str]:
        """The turns before the question of `problem`, and what stands before it in its own turn."""
        if self.spec is None:
            return [], ""
        if self.text is not None:
            return [], _read(Path(str(self.text(row.columns, row.where, **row.known))), self.spec.after, row)
        chosen = self._chosen(row, problem)
        if self.spec.form == "text":
            return [], "".join(f"{asked}{self.spec.between}{reply}\n\n" for _, asked, reply, _ in chosen)
        turns = [
            ({"role": "user", "content": asked}, {"role": "assistant", "content": reply})
            for _, asked, reply, _ in chosen
        ]
        return [message for pair in turns for message in pair], ""

    def _chosen(self, row: TaskRow, problem: Problem) -> list[Shot]:
        group = problem.group if self.spec.of_group else ""
        there = self.rows.get(group, [])
        mine = squeezed(problem.prompt)
        others = (shot for shot in there if shot.where != row.where and mine not in shot.same)
        chosen = list(islice(others, self.spec.n))
        first = there[: self.spec.n]
        if not self.same_source and (same := [shot for shot in first if mine in shot.same]):
            raise RequestError(
                f"{row.where}: this question is the shot {same[0].where} too; take the shots from other rows"
            )
        if len(chosen) < self.spec.n:
            of = f" of group {group!r}" if group else ""
            raise RequestError(
                f"{row.where}: {self.spec.n} shots are asked for, but there are {len(chosen)}{of}"
            )
        return chosen


def shots_of(task: Any) -> Shown:
    """The shots of a `FileTask`; of rows, all that may be chosen from. Raises RequestError."""
    spec = task.spec.shots
    if spec is None:
        return Shown()
    if spec.n < 0 or bool(spec.text) == bool(spec.n):
        raise RequestError(f"{task.path.name}: shots must have either n, the number of rows, or text, a file")
    if spec.n and spec.form == "turns" and not task.spec.chat:
        raise RequestError(f"{task.path.name}: shots.form = turns needs chat: true; set shots.form to text")
    if spec.text:
        root = place(Shots(file=spec.text), task.path, None, NAMED.format(task.task.name))
        return Shown(spec, text=Expression(root, f"{task.path.name}: shots.text"))
    own = spec.file is None and spec.hub is None
    source = task.spec.source if own else spec
    path = task.place if own else place(spec, task.path, None, NAMED.format(task.task.name))
    list_files(as_source(task.task.name, source, path))
    here = task.spec.source
    same = path == task.place and (source.subset, source.split) == (here.subset, here.split)
    return Shown(spec, _Lazy(task, source, path), same_source=same)


class _Lazy(dict):
    """The rows, read when they are first asked for: `posttrain check` reads none."""

    def __init__(self, task: Any, source: Any, path: str) -> None:
        super().__init__()
        self._task, self._source, self._path = task, source, path

    def get(self, group: str, default: Any = None) -> Any:
        if not self:
            self._read()
        return super().get(group, default)

    def _read(self) -> None:
        task, spec = self._task, self._task.spec.shots
        asked = task.expression("shots.prompt", spec.prompt) if spec.prompt else task.expressions["prompt"]
        replied = task.expression("shots.answer", spec.answer) if spec.answer else None
        grouped = task.expressions.get("group") if spec.of_group else None
        for row in read_rows(task.task.name, self._source, self._path):
            question = str(asked(row.columns, row.where, **row.known))
            try:
                same = str(task.expressions["prompt"](row.columns, row.where, **row.known))
            except RequestError:  # rows of another form: their own question tells
                same = question
            reply = replied(row.columns, row.where, **row.known) if replied else task.answer(row)
            group = str(grouped(row.columns, row.where, **row.known)) if grouped else ""
            self.setdefault(group, []).append(
                Shot(row.where, question, str(reply), (squeezed(question), squeezed(same)))
            )


def squeezed(text: str | None) -> str:
    """A question without what may differ where it is the same: white space."""
    return " ".join(str(text).split())


def _read(path: Path, after: str, row: TaskRow) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{row.where}: the shots {path} cannot be read: {error}") from None
    if after and after not in text:
        raise RequestError(f"{path}: has no {after!r}, behind which the shots begin")
    return text.partition(after)[2].strip() + "\n\n" if after else text.strip() + "\n\n"
