"""Rows of a source whose templates stand for several questions each, in the columns of the released
GSM-Symbolic files. A row that is no template (no `question_annotated`) stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from posttrain.errors import RequestError
from posttrain.evaluate.tasks.symbolic.template import Template

QUESTION, SOLUTION = "question_annotated", "answer_annotated"


def questions(row: dict[str, Any], where: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """The first `count` questions of a template, or the row itself where it is none. Raises RequestError."""
    if QUESTION not in row:
        yield row
        return
    for key in (QUESTION, SOLUTION):
        if not isinstance(row.get(key), str):
            raise RequestError(f"{where}: {key} of a template must be a text")
    of = {"id": row.get("id_shuffled"), "original_id": row.get("id_orig")}
    of |= {f"original_{key}": row.get(key) for key in ("question", "answer")}
    for instance, made in enumerate(_made(row[QUESTION], row[SOLUTION], where, count, seed)):
        yield of | {"instance": instance, "question": made[0], "answer": made[1]}


@lru_cache(maxsize=1024)  # the problems of a task are asked for several times
def _made(question: str, solution: str, where: str, count: int, seed: int) -> list[tuple[str, str]]:
    found = Template(question, solution, where).instances(count, seed)
    return [(each.question, each.solution) for each in found]
