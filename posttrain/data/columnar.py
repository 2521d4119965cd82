"""The rows of Parquet and Arrow files, in pieces of at most 1,024 rows.

Where only some rows are asked for, row groups and batches without any of them are skipped. Columns of the
type JSON, in which `datasets` keeps objects of several shapes, are parsed. Left out: text formats
(readers.py), what nulls inside structs mean (nested.py).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.nested import has_nulls, has_structs, row_reader
from posttrain.data.opening import File
from posttrain.data.remote import RemoteFile
from posttrain.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

Row = tuple[str, dict[str, Any]]
END = b"\xff\xff\xff\xff\0\0\0\0"
"""The end of a stream."""
PIECE, BYTES = 1024, 16 << 20
"""Rows that are Python objects at one time, and bytes that they take, unless one takes more."""


def parquet_file(path: File):
    """The open `pyarrow.parquet.ParquetFile`. Raises RequestError where it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path.open() if isinstance(path, RemoteFile) else path)
    except pyarrow.ArrowException as error:
        raise RequestError(f"{path}: not a Parquet file: {error}") from None


def parquet_rows(path: File, only: np.ndarray | range | None = None) -> Iterator[Row]:
    """The rows of a Parquet file; `only` as in `readers.read`."""
    with parquet_file(path) as table:
        yield from _rows(path, _groups(table, only), only)


def arrow_rows(path: File, only: np.ndarray | range | None = None) -> Iterator[Row]:
    """The rows of an Arrow file; `only` as in `readers.read`."""
    yield from _rows(path, _numbered(_arrow_batches(path)), only)


def arrow_count(path: File) -> int:
    """How many rows an Arrow file has."""
    import pyarrow

    try:
        return sum(batch.num_rows for batch in _arrow_batches(path))
    except pyarrow.ArrowException as error:
        raise RequestError(f"{path}: broken: {error}") from None


def differs_from_columns(path: File, kind: str) -> bool:
    """Whether `nested.py` may change a row: there is a map, or a null inside a struct. Of files in a store
    only what is at their end or head is read.

    Raises RequestError where the file is damaged.
    """
    import pyarrow

    try:
        if kind == "parquet":
            with parquet_file(path) as table:
                return _may_have_nulls(table)
        for batch in _arrow_batches(path):
            if isinstance(path, RemoteFile):
                return any(has_structs(field.type) for field in batch.schema)
            if any(has_nulls(column) for column in batch.columns):
                return True
    except pyarrow.ArrowException as error:
        raise RequestError(f"{path}: broken: {error}") from None
    return False


def _may_have_nulls(table: Any) -> bool:
    """Of a Parquet file, by the statistics at its end; true where they are missing."""
    nested = {field.name for field in table.schema_arrow if has_structs(field.type)}
    for group in range(table.metadata.num_row_groups if nested else 0):
        facts = table.metadata.row_group(group)
        for column in map(facts.column, range(facts.num_columns)):
            if column.path_in_schema.split(".")[0] in nested:
                counted = column.statistics
                if counted is None or not counted.has_null_count or counted.null_count:
                    return True
    return False


def _arrow_batches(path: File) -> Iterator[Any]:
    """The batches of Arrow IPC: the file format, or the stream format that `datasets` writes."""
    import pyarrow

    opened = pyarrow.memory_map(str(path)) if isinstance(path, Path) else pyarrow.PythonFile(path.open(), "r")
    with opened as file:
        try:
            table = pyarrow.ipc.open_file(file)
            batches = (table.get_batch(index) for index in range(table.num_record_batches))
        except pyarrow.ArrowInvalid:
            try:
                file.seek(0)
                batches = iter(pyarrow.ipc.open_stream(file))
            except pyarrow.ArrowException as error:
                raise RequestError(f"{path}: not an Arrow file: {error}") from None
            yield from batches
            _check_end(path, file)
            return
        yield from batches


def _check_end(path: File, file: Any) -> None:
    """Of a stream that was read to its end: pyarrow takes the end of a file for the end of the stream."""
    end = file.tell()
    file.seek(max(0, end - len(END)))
    if file.read(len(END)) != END:
        raise RequestError(f"{path}: broken: the stream does not end; the file was cut off")
    if file.read(1):
        raise RequestError(f"{path}: broken: the stream ends at byte {end}, but the file goes on")


def _groups(table: Any, only: np.ndarray | range | None) -> Iterator[tuple[int, Any]]:
    """(number of the first row, batch) of the row groups that have a row of `only`."""
    start = 0
    for group in range(table.num_row_groups):
        size = table.metadata.row_group(group).num_rows
        if only is None or len(_within(only, start, size)):
            piece = _piece(table.metadata.row_group(group).total_byte_size, size)
            for first, batch in _numbered(table.iter_batches(batch_size=piece, row_groups=[group])):
                yield start + first, batch
        start += size


def _piece(size: int, rows: int) -> int:
    """Of rows that take `size` bytes, how many are Python objects at one time."""
    return max(1, min(PIECE, BYTES * rows // max(size, 1)))


def _numbered(batches: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    start = 0
    for batch in batches:
        yield start, batch
        start += batch.num_rows


def _within(only: np.ndarray | range, start: int, size: int) -> np.ndarray | range:
    """The numbers of `only` from `start` to `start + size - 1`."""
    return only[bisect_left(only, start) : bisect_left(only, start + size)]


def _rows(path: File, batches: Iterator[tuple[int, Any]], only: np.ndarray | range | None) -> Iterator[Row]:
    import pyarrow

    index, decode = 0, None
    try:
        for start, batch in batches:
            index = start
            if decode is None and (twice := repeated(batch.schema.names)):
                raise RequestError(f"{path}: has several columns of the name {twice!r}")
            decode = decode or row_reader(batch.schema)
            for row in _pieces(batch, None if only is None else _within(only, start, batch.num_rows), start):
                index, columns = row
                yield f"{path}[{index}]", decode(columns)
            index = start + batch.num_rows
            if only is not None and (not len(only) or index > only[-1]):
                return
    except pyarrow.ArrowException as error:
        raise RequestError(f"{path}: broken after row {index}: {error}") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}[{index}]: broken JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, times out of Python's range
        raise RequestError(f"{path}: broken after row {index}: {error}") from None


def repeated(names: list[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def _pieces(batch: Any, only: np.ndarray | range | None, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number in the file, columns) of the rows of a batch; a batch may be the whole file."""
    if only is None:
        size = _piece(batch.nbytes, batch.num_rows)
        for first in range(0, batch.num_rows, size):
            for place, row in enumerate(batch.slice(first, size).to_pylist(), start + first):
                yield place, row
        return
    for number in only:
        (row,) = batch.slice(int(number) - start, 1).to_pylist()
        yield int(number), row
