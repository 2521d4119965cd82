"""The rows of a task: every row of its files in order, or the questions that a template stands for, with the
stem of the file.

Left out: what is made of them (`file_task.py`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.data import readers
from posttrain.data.json_rows import Broken, parse_array, row_of
from posttrain.data.opening import File, open_bytes
from posttrain.data.paths import source_files
from posttrain.data.sources import open_rows
from posttrain.errors import RequestError, what_is_there
from posttrain.evaluate.tasks.files import Source
from posttrain.evaluate.tasks.symbolic.rows import questions
from posttrain.recipe import schema

ITSELF = "."
"""As `rows` of a source: the one object of a JSON file is a row."""


class TaskRow(NamedTuple):
    """A row, its number in the source, `file:line`, and the stem of its file."""

    index: int
    where: str
    stem: str
    columns: dict[str, Any]

    @property
    def known(self) -> dict[str, Any]:
        """What templates see besides the columns."""
        return {"file": self.stem, "index": self.index}


def read_rows(name: str, source: Source, path: str) -> Iterator[TaskRow]:
    """The rows of `path`, which is what `source` says or its replacement. Raises as `open_rows`."""
    index = 0
    for where, stem, row in _written(as_source(name, source, path), source):
        for each in questions(row, where, source.instances, source.instances_seed):
            yield TaskRow(index, where, stem, each)
            index += 1
    if not index:
        raise RequestError(f"task {name}: {path} has no rows")


def _written(given: schema.Source, source: Source) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """`file:line`, stem and columns of each row."""
    files = source_files(given)
    if files is None:
        for where, row in open_rows(given):
            yield where, str(source.subset or source.split), row
        return
    for file in files:
        stem = Path(str(file)).name.partition(".")[0]
        for where, row in _rows(file, source):
            yield where, stem, row


def as_source(name: str, source: Source, path: str) -> schema.Source:
    """As a source of the data room."""
    return schema.Source(
        name=name, path=path, subset=source.subset, split=source.split, revision=source.revision
    )


def _rows(file: File, source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    if source.header:
        return _headed(file, source.header)
    whole = bool(source.rows) and readers.kind_of(file) == "json"
    return _under(file, source.rows) if whole else readers.read(file)


def _under(file: File, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file that is one JSON object, which has them under `key` or is one."""
    with open_bytes(file) as raw:
        try:
            value, _ = parse_array(raw.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{file}: broken JSON: {error}") from None
    rows = [value] if key == ITSELF else value.get(key) if isinstance(value, dict) else None
    if not isinstance(rows, list):
        near = what_is_there(key, value) if isinstance(value, dict) else ""
        raise RequestError(f"{file}: has no array of rows under {key!r}{near}; see source.rows of the task")
    for index, row in enumerate(rows):
        where = f"{file}" if key == ITSELF else f"{file}: {key}[{index}]"
        if isinstance(found := row_of(row, where), Broken):
            raise RequestError(found.error)
        yield where, found


def _headed(file: File, header: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV without a header."""
    with open_bytes(file) as raw:
        lines = (line.decode("utf-8-sig") for line in raw)
        reader = csv.reader(lines, strict=True)
        for cells in reader:
            if len(cells) != len(header):
                raise RequestError(
                    f"{file}:{reader.line_num}: {len(cells)} cells, but the task names {len(header)} columns"
                )
            yield f"{file}:{reader.line_num}", dict(zip(header, cells, strict=True))
