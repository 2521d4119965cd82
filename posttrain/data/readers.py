"""The rows of one file: JSONL, JSON, CSV, Parquet and Arrow, each read by a generator of `(where, row)`.

A row is a dict of columns; `where` is `file:line` or `file[index]`. JSONL, CSV, Parquet and Arrow are
streamed; a JSON array is parsed at once, because `json` has no other way. CSV is read by the standard
library, not by pyarrow: every cell stays text, so an answer `0408` keeps its zero. A broken file is a
`RequestError` that names the file and the line. Left out: which files make up a source, and what the columns
mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from posttrain.errors import RequestError

Row = tuple[str, dict[str, Any]]
"""(where, columns)."""
BOM = b"\xef\xbb\xbf"


def kind_of(path: Path) -> str | None:
    """The kind of a file by its suffix (`.jsonl.gz` is jsonl); None if no reader knows it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gzipped = bool(suffixes) and suffixes[-1] == ".gz"
    suffix = suffixes[-2] if gzipped and len(suffixes) > 1 else (suffixes or [""])[-1]
    kind = KINDS.get(suffix)
    return None if gzipped and kind in ("parquet", "arrow") else kind


def read(path: Path) -> Iterator[Row]:
    """The rows of one file, in file order.

    Raises:
        RequestError: the file cannot be read, or a row is broken or not an object; with the line.
    """
    with _readable(path):
        yield from READERS[kind_of(path) or "none"](path)


def count(path: Path) -> int:
    """How many rows `read` would give, without parsing them where the format allows it."""
    kind = kind_of(path)
    with _readable(path):
        if kind == "parquet":
            with _parquet(path) as table:
                return table.metadata.num_rows
        if kind == "jsonl":
            return sum(1 for _ in _lines(path))
    return sum(1 for _ in read(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{path}: cannot be read: {reason}") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(1-based number, bytes) of every line that is not blank, without byte-order mark and line end."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM).strip() if number == 1 else line.strip()
            if line:
                yield number, line


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        yield where, _object(_parse(line, where), where)


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{where}: not UTF-8 (byte {error.start + 1} of the line); convert the file to UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{where}: broken JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: broken JSON: {error}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise RequestError(f"{where}: a row must be a JSON object, not {_json_type(value)}")


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _json(path: Path) -> Iterator[Row]:
    """An array of objects, or one object per line under the suffix `.json`, as AQuA-RAT has it."""
    first = next(_lines(path), None)
    if first is None:
        return
    if not first[1].startswith(b"["):
        try:
            json.loads(first[1])
        except ValueError:
            value = _parse_at_once(path)
            raise RequestError(
                f"{path}: contains {'one object' if isinstance(value, dict) else _json_type(value)}; "
                "rows must be an array of objects, or one object per line"
            ) from None
        yield from _jsonl(path)
        return
    value = _parse_at_once(path)
    for index, row in enumerate(value):
        where = f"{path}[{index}]"
        yield where, _object(row, where)


def _parse_at_once(path: Path) -> Any:
    with _open(path) as file:
        raw = file.read().removeprefix(BOM)
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{path}:{number}: not UTF-8; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{path}:{error.lineno}: broken JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: broken JSON: {error}") from None


def _csv(path: Path) -> Iterator[Row]:
    """Rows under a header line; every cell is text."""
    csv.field_size_limit(2**31 - 1)
    with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) < len(header) or "" in header:
                raise RequestError(f"{path}:1: the header has a repeated or an empty column name")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise RequestError(
                        f"{where}: {len(cells)} cells, but the header has {len(header)} columns"
                    )
                yield where, dict(zip(header, cells, strict=True))
        except UnicodeDecodeError:
            raise RequestError(f"{path}:{_bad_line(path)}: not UTF-8; convert the file to UTF-8") from None
        except csv.Error as error:
            raise RequestError(f"{path}:{reader.line_num}: broken CSV: {error}") from None


def _bad_line(path: Path) -> int:
    """The first line that is not UTF-8; the decoder reads in blocks and does not know."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _parquet(path: Path):
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise RequestError(f"{path}: not a Parquet file: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    with _parquet(path) as table:
        yield from _batches(path, table.iter_batches(batch_size=1024))


def _arrow_rows(path: Path) -> Iterator[Row]:
    """Arrow IPC: the file format, or the stream format that `datasets` writes."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as memory:
        try:
            table = pyarrow.ipc.open_file(memory)
            batches = (table.get_batch(index) for index in range(table.num_record_batches))
        except pyarrow.ArrowInvalid:
            try:
                batches = iter(pyarrow.ipc.open_stream(memory))
            except pyarrow.ArrowException as error:
                raise RequestError(f"{path}: not an Arrow file: {error}") from None
        yield from _batches(path, batches)


def _batches(path: Path, batches: Iterator[Any]) -> Iterator[Row]:
    import pyarrow

    index = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                yield f"{path}[{index}]", row
                index += 1
    except pyarrow.ArrowException as error:
        raise RequestError(f"{path}: broken after row {index}: {error}") from None


KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet_rows,
    "arrow": _arrow_rows,
}
