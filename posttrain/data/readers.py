"""The rows of one file: JSONL, JSON, CSV, Parquet and Arrow, each read by a generator of `(where, row)`.

A row is a dict of columns; `where` is `file:line` or `file[index]`. JSONL, CSV, Parquet and Arrow are
streamed; a JSON array is parsed at once, because `json` has no other way. CSV is read by the standard
library, not by pyarrow: every cell stays text, so an answer `0408` keeps its zero; one with messages carries
them (cells.py). A broken file is a `RequestError` that names the file and the line. Left out: Parquet and
Arrow (columnar.py), which files make up a source, what the columns mean, how JSON becomes a row
(json_rows.py).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain.data import columnar
from posttrain.data.cells import cell_value
from posttrain.data.columnar import Row, arrow_count, arrow_rows, parquet_file, parquet_rows
from posttrain.data.json_rows import DECODER, Broken, entry, parse_array, parse_line, row_of, type_name
from posttrain.data.opening import File, compression, open_bytes, readable
from posttrain.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

BOM = b"\xef\xbb\xbf"
HEAD = 1 << 20
"""Bytes of a JSON array in which its first row is looked for."""
OTHER_SEPARATORS = (";", "\t", "|")
"""What stands between the cells of files that are named `.csv` and have no commas."""
WRAPS = ("data", "rows", "examples", "instances", "items", "records", "train")
"""Keys under which a file that is one object may have its rows."""
T = TypeVar("T")


def kind_of(path: File) -> str | None:
    """The kind of a file by its suffix (`.jsonl.gz` is jsonl); None if no reader knows it."""
    packed = compression(path) is not None
    suffixes = path.suffixes[:-1] if packed else path.suffixes
    kind = KINDS.get(suffixes[-1].lower()) if suffixes else None
    return None if packed and kind in ("parquet", "arrow") else kind


def read(path: File, only: np.ndarray | range | None = None, keep_broken: bool = False) -> Iterator[Row]:
    """The rows of one file, in file order.

    only: int64 [n], the numbers of the rows that are wanted, from 0, ascending, none twice. The other rows
    are not parsed where the format allows it, so their mistakes are not found; reading ends with the last
    one. Numbers behind the end of the file give nothing.
    keep_broken: a broken line of JSON lines (also under `.json`), and an entry of an array that is no row,
    is a row, `Broken`, and no error.

    Raises:
        RequestError: the file cannot be read, or a row is broken or not an object; with the line.
    """
    kind = kind_of(path) or "none"
    with readable(path):
        if keep_broken and kind in ("json", "jsonl"):
            yield from (_json if kind == "json" else _jsonl)(path, only, keep_broken)
        else:
            yield from READERS[kind](path, only)


def first(path: File, pass_broken: bool = False) -> Row | None:
    """The first row, None if there is none; the rest of a JSON array need not be parsed, nor be right.

    pass_broken: of lines of JSON the first row that is not broken.

    Raises as `read`.
    """
    if kind_of(path) == "json":
        with readable(path), open_bytes(path) as file:
            head = file.read(HEAD).removeprefix(BOM).decode(errors="ignore").lstrip()
        with suppress(ValueError, RecursionError):
            row, _ = DECODER.raw_decode(head[1:].lstrip()) if head[:1] == "[" else (None, 0)
            if isinstance(row, dict):
                return f"{path}[0]", row
    if not pass_broken:
        return next(read(path, range(1)), None)
    return next((row for row in read(path, None, True) if not isinstance(row[1], Broken)), None)


def differs_from_columns(path: File) -> bool:
    """As `columnar.differs_from_columns`; false for kinds without columns."""
    kind = kind_of(path)
    with readable(path):
        return kind in ("parquet", "arrow") and columnar.differs_from_columns(path, kind)


def count(path: File, keep_broken: bool = False) -> int:
    """How many rows `read` would give, without parsing them where the format allows it."""
    kind = kind_of(path)
    with readable(path):
        if kind == "parquet":
            with parquet_file(path) as table:
                return table.metadata.num_rows
        if kind == "arrow":
            return arrow_count(path)
        if kind == "jsonl":
            return sum(1 for _ in _lines(path))
    return sum(1 for _ in read(path, None, keep_broken))


def _lines(path: File) -> Iterator[tuple[int, bytes]]:
    """(1-based number, bytes) of every line that is not blank, without byte-order mark and line end."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM).strip() if number == 1 else line.strip()
            if line:
                yield number, line


def _chosen(items: Iterable[T], only: np.ndarray | range | None) -> Iterator[T]:
    """The items at the places `only`, all if it is None; ends with the last of them."""
    if only is None:
        yield from items
        return
    wanted = iter(only)
    place = next(wanted, None)
    if place is None:
        return
    for number, item in enumerate(items):
        if number == place:
            yield item
            if (place := next(wanted, None)) is None:
                return


def _jsonl(path: File, only: np.ndarray | range | None = None, keep_broken: bool = False) -> Iterator[Row]:
    name = str(path)
    for number, line in _chosen(_lines(path), only):
        where = f"{name}:{number}"
        row = parse_line(line, where)
        if number == 1 and isinstance(row, Broken) and line.startswith(b"["):
            row = Broken(f"{row.error}; a file that is an array is named .json")
        yield where, _unbroken(row, keep_broken)


def _unbroken(row: dict[str, Any] | Broken, keep_broken: bool) -> dict[str, Any]:
    if isinstance(row, Broken) and not keep_broken:
        raise RequestError(row.error)
    return row


def _json(path: File, only: np.ndarray | range | None = None, keep_broken: bool = False) -> Iterator[Row]:
    """An array of objects, or one object per line under the suffix `.json`, as AQuA-RAT has it."""
    first = next(_lines(path), None)
    if first is None:
        return
    if not first[1].startswith(b"["):
        if not keep_broken:
            _refuse_one_object(path, first[1])
        yield from _jsonl(path, only, keep_broken)
        return
    value, twice = _parse_at_once(path)
    for index, row in _chosen(enumerate(value), only):
        where = f"{path}[{index}]"
        yield where, _unbroken((entry if twice else row_of)(row, where), keep_broken)


def _refuse_one_object(path: File, line: bytes) -> None:
    """Raises RequestError unless the first line of a file is a row of its own."""
    try:
        value = json.loads(line)
        if not _wrapped(value):
            return
    except (ValueError, RecursionError):
        value, _ = _parse_at_once(path)
    if key := _wrapped(value):
        raise RequestError(f"{path}: the rows stand under {key!r}; write them, an array, as the whole file")
    raise RequestError(
        f"{path}: contains {'one object' if isinstance(value, dict) else type_name(value)}; "
        "rows must be an array of objects, or one object per line"
    )


def _wrapped(value: Any) -> str | None:
    """The key under which `value`, an object, has a list of rows; None where it has none, or is a row: a list
    of messages is a column."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        rows = isinstance(inner, list) and inner and isinstance(inner[0], dict)
        if rows and (key in WRAPS or len(value) == 1) and not {"role", "from"} & inner[0].keys():
            return key
    return None


def _parse_at_once(path: File) -> tuple[Any, bool]:
    """As `parse_array`."""
    with open_bytes(path) as file:
        raw = file.read().removeprefix(BOM)
    try:
        return parse_array(raw.decode())
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{path}:{number}: not UTF-8; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{path}:{error.lineno}: broken JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: broken JSON: {error}") from None


def _csv(path: File, only: np.ndarray | range | None = None) -> Iterator[Row]:
    """Rows under a header line; every cell is text, which may carry messages."""
    yield from _chosen(_csv_rows(path), only)


def _csv_rows(path: File) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with open_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            _refuse_other_separator(path, header)
            _refuse_names(path, header)
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise RequestError(
                        f"{where}: {len(cells)} cells, but the header has {len(header)} columns"
                    )
                yield where, dict(zip(header, map(cell_value, cells), strict=True))
        except UnicodeDecodeError:
            raise RequestError(f"{path}:{_bad_line(path)}: not UTF-8; convert the file to UTF-8") from None
        except csv.Error as error:
            raise RequestError(f"{path}:{reader.line_num}: broken CSV: {error}") from None


def _refuse_names(path: File, header: list[str]) -> None:
    """Raises RequestError where a column has no name, or that of another."""
    if "" in header:
        raise RequestError(
            f"{path}:1: column {header.index('') + 1} of the header has no name; name it, or leave it out "
            "(pandas writes its index so: df.to_csv(path, index=False))"
        )
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise RequestError(f"{path}:1: the header has the column {twice!r} twice; rename one of them")


def _refuse_other_separator(path: File, header: list[str]) -> None:
    """Raises RequestError where the cells of `header` seem to be separated by something else than commas."""
    found = [mark for mark in OTHER_SEPARATORS if len(header) == 1 and mark in header[0]]
    if found:
        raise RequestError(
            f"{path}:1: the header is the one column {header[0]!r}; is the separator {found[0]!r}? Write the "
            "file with commas"
        )


def _bad_line(path: File) -> int:
    """The first line that is not UTF-8; the decoder reads in blocks and does not know."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
READERS: dict[str, Callable[[File, np.ndarray | range | None], Iterator[Row]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
}
