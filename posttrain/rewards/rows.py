"""A plain row (JSON object) as the `Example` that rewards take, and files of such rows.

Left out: training rows; data/examples.py maps those by their recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.data import readers
from posttrain.errors import RequestError, did_you_mean
from posttrain.types import Example


def to_row(columns: dict[str, Any], where: str) -> Example:
    """`answer` as text, `prompt` and `messages` in their fields, every column in `extra`.

    A number as an answer keeps its spelling, true and false become `True` and `False`, a list its items with commas.
    """
    prompt, messages = columns.get("prompt"), columns.get("messages")
    return Example(
        prompt=prompt if isinstance(prompt, str) else None,
        messages=messages if isinstance(messages, list) else None,
        answer=_text(columns.get("answer"), where),
        where=where,
        extra={name: value for name, value in columns.items() if name != "answer"},
    )


def _text(answer: Any, where: str) -> str | None:
    if answer is None or isinstance(answer, str):
        return answer
    if isinstance(answer, bool | int | float):
        return str(answer)
    if isinstance(answer, list) and answer and not any(isinstance(a, list | dict) for a in answer):
        return ", ".join(str(item) for item in answer)
    raise RequestError(
        f"{where}: answer is {type(answer).__name__}; it takes text, a number or a list of these"
    )


def read_rows(
    path: Path, columns: dict[str, str] | None = None, completion: str = "completion"
) -> tuple[list[str], list[Example]]:
    """Completions and rows of a file of rollouts (JSONL, JSON, CSV, Parquet, Arrow, `.gz`).

    `columns` maps a name that a reward asks for to the file's own; `completion` is the column of the text to judge.

    Raises:
        RequestError: no such file, a broken line, a row without the column; with file and line.
    """
    if not path.is_file():
        there = path.parent.glob("*") if path.parent.is_dir() else ()
        raise RequestError(
            f"{path}: no such file{did_you_mean(path.name, [p.name for p in there])}"
        )
    if readers.kind_of(path) is None:
        kinds = ", ".join(readers.KINDS)
        raise RequestError(f"{path}: not a kind of file that is read ({kinds}, .gz)")
    completions, examples = [], []
    for where, row in readers.read(path):
        for name, own in (columns or {}).items():
            if own not in row:
                raise RequestError(f"{where}: no column {own!r}{did_you_mean(own, row)}")
            row[name] = row[own]
        text = row.pop(completion, None)
        if not isinstance(text, str):
            near = did_you_mean(completion, row) if text is None else f": {type(text).__name__}"
            raise RequestError(f"{where}: needs a column {completion!r} with text{near}")
        completions.append(text)
        examples.append(to_row(row, where))
    return completions, examples
