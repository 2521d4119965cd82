"""The rows of a source, read, tokenised on all cores and written as a table; what was lost is counted.

The table is the same to the byte for any number of processes. Left out: where tables are kept and who makes
them (cache.py), the order of results (in_order.py).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data.encode import all_at_once, one_core
from posttrain.data.in_order import in_order, processes
from posttrain.data.lost import COUNTED, Lost
from posttrain.data.order import key_of, permute_array
from posttrain.data.readers import Broken
from posttrain.data.shapes.catalogue import Shape
from posttrain.data.sources import Rows
from posttrain.data.table_writer import PARTIAL, Packed, TableWriter, pack
from posttrain.data.tokens import RefusedRow, RowError, TokenRow, without_place
from posttrain.errors import PosttrainError, RequestError
from posttrain.recipe import schema
from posttrain.types import Example

CHUNK = 64
"""Rows that a process takes at a time."""
MARGIN = 1.05
"""Factor on what is still missing after a round, for rows of the next that are dropped, too."""
REPORT = 256
"""Rows after which progress is shown."""
KEEP_S = 10.0
"""Seconds of work that a kill may cost."""
OLD_S = 7 * 24 * 3600.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Some rows of a source: the first `limit` that are kept, in an order that is drawn by `seed` and the
    source's name."""

    limit: int
    seed: int
    name: str

    def rounds(self, size: int, kept: Callable[[], int]) -> Iterator[np.ndarray]:
        """Numbers of rows to read, sorted int64, of a source of `size`; `kept()` says how many so far are of
        use."""
        done = 0
        while done < size and (missing := self.limit - kept()) > 0:
            more = missing if done == 0 else int(missing * MARGIN) + 1
            stop = min(size, done + more)
            key = key_of(self.seed, self.name, "cap")
            yield np.sort(permute_array(np.arange(done, stop), size, key))
            done = stop


@dataclass(slots=True)
class Made:
    """What became of the rows of a chunk: their tokens, or why there are none."""

    first: int
    """Number of the first of them in the source."""
    read: int
    kept: int = 0
    tokenised: int = 0
    packed: Packed | None = None
    beside: list[bytes] = field(default_factory=list)
    """What the table keeps beside the tokens, for each row that is kept."""
    found: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COUNTED})
    """Name of `COUNTED` -> in how many rows what is found."""
    lost: list[tuple[str, str, str]] = field(default_factory=list)
    """Reason, where and detail of rows that are dropped or truncated."""
    refused: list[tuple[int, str]] = field(default_factory=list)
    """Number and sentence of rows that end the run."""


def make_table(
    folder: Path,
    rows: Rows,
    source: schema.Source,
    data: schema.Data,
    loss: schema.Loss,
    tokenizer: Any,
    reporting: Callable[[], Callable[[int], Any]],
    shape: Shape,
    choice: Choice | None = None,
) -> None:
    """Writes every row of a source, or those of `choice`, as tokens; both sides of a pair or neither.

    `reporting()` begins to show progress, and gives what takes the number of rows done.

    Raises:
        RefusedRow: a row does not fit, and `source.on_error` is `stop`.
        RequestError: a row cannot be read, likewise.
        WorkError: a process was ended from outside.
    """
    began, kept_at = time.perf_counter(), time.monotonic()
    remove_old(folder.parent)
    lost, read, report = Lost(), 0, reporting()
    with TableWriter(folder, resumable=True) as writer:
        beside = shape.writer(writer)
        if writer.kept is not None and (choice is not None or not lost.take_up(writer.kept)):
            writer.begin_again()
        if writer.kept is not None:
            read = writer.kept["read"]
            log.info("source %r: goes on after row %d, where it was stopped", source.name, read)
        already = read
        work = partial(_made, source, data, loss, tokenizer, shape)
        count = processes(data.num_proc)
        for made in _results(rows, work, count, choice, lambda: lost.kept, read):
            _keep(made, writer, beside, lost, source)
            read += made.read
            if read // REPORT > (read - made.read) // REPORT:
                report(read)
            if choice is None and time.monotonic() - kept_at > KEEP_S:
                if beside is not None:
                    beside.flush()
                writer.keep(lost.stats() | {"read": read, "kept": lost.kept})
                kept_at = time.monotonic()
        report(read)
        if beside is not None:
            beside.flush()
        facts = {"fingerprint": folder.name, "files": rows.files, "rows_read": read, **lost.stats()}
        writer.finish(facts | ({"rows_in_source": len(rows)} if choice else {}))
    seconds = time.perf_counter() - began
    rate = (read - already) / seconds
    log.info("source %r: %d rows in %.1f s (%.0f rows/s)", source.name, read - already, seconds, rate)


def refused_rows(
    rows: Rows, begin: int, source: schema.Source, data: schema.Data, loss, tokenizer, shape: Shape, choice
) -> Iterator[Made]:
    """What becomes of the rows that `make_table` reads, a chunk at a time, where it goes on behind those that
    end the run; without `choice` from row number `begin` on."""
    work = partial(_made, source, data, loss, tokenizer, shape)
    of_use: Counter[str] = Counter()
    for made in _results(rows, work, processes(data.num_proc), choice, of_use.total, begin):
        of_use.update(kept=made.kept, refused=len(made.refused))  # as if these were mended
        yield made


def remove_old(folder: Path) -> None:
    """Removes parts of tables in `folder` that nobody has taken up for a week, and notes (make_once.py) as
    old."""
    for pattern in (f"{PARTIAL}*", "*.failed", "*.holder"):
        for part in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - part.lstat().st_mtime > OLD_S:
                    shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()


def _results(
    rows: Rows, work: Callable, count: int, choice: Choice | None, kept: Callable[[], int], done: int
) -> Iterator[Made]:
    if choice is None:
        numbered: Any = ((number, *row) for number, row in islice(enumerate(rows), done, None))
        yield from in_order(work, numbered, CHUNK, count, "data.num_proc", _weight)
        return
    for numbers in choice.rounds(len(rows), kept):
        yield from in_order(work, rows.chosen(numbers), CHUNK, count, "data.num_proc", _weight)


def _weight(item: tuple[int, str, dict[str, Any]]) -> int:
    """About the bytes that a row takes on its way to a process."""
    total, inside = 0, [item[2]]
    while inside:
        value = inside.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, dict):
            total += 8 * len(value)
            inside.extend(value.values())
        elif isinstance(value, list):
            total += 8 * len(value)
            if value and not isinstance(value[0], int | float):  # tokens need not be looked at
                inside.extend(value)
    return total


def _keep(made: Made, writer: TableWriter, beside: Any, lost: Lost, source: schema.Source) -> None:
    """Writes the rows of a chunk, and counts what is lost and why."""
    if made.refused:
        number, sentence = made.refused[0]
        raise RefusedRow(sentence, source.name, number)
    for each in made.lost:
        lost.add(*each)
    if made.packed is not None:
        writer.add_packed(made.packed)
    for each in made.beside if beside is not None else ():
        beside.add(each)
    lost.count(made.kept, made.tokenised, made.found)


def _made(
    source: schema.Source,
    data: schema.Data,
    loss: schema.Loss,
    tokenizer: Any,
    shape: Shape,
    chunk: list[tuple[int, str, dict[str, Any]]],
) -> Made:
    """The work of a process."""
    made = Made(chunk[0][0], len(chunk))
    read = [_read(each, source, data, shape) for each in chunk]
    works = [
        shape.tokenizing(part, tokenizer, data, loss)
        for each in read
        if not isinstance(each, PosttrainError)
        for part in each[1]
    ]
    with one_core():
        all_tokens = iter(all_at_once(works, tokenizer))
    tokens: list[TokenRow] = []
    origins: list[int] = []
    for (number, where, row), each in zip(chunk, read, strict=True):
        try:
            if isinstance(each, PosttrainError):
                raise each
            examples, parts = each
            found = list(islice(all_tokens, len(parts)))
            for failed in found:
                if isinstance(failed, PosttrainError):
                    raise failed
            beside = shape.beside(examples, row, source)
        except RowError as error:
            made.lost.append((error.reason, where, without_place(where, error.detail)))
            continue
        except RequestError as error:
            if source.on_error == "stop":
                made.refused.append((number, str(error)))
            else:
                made.lost.append(("unreadable", where, without_place(where, str(error))))
            continue
        tokens += found
        origins += [number] * len(found)
        made.kept += 1
        made.tokenised += any(row.tokenised for row in found)
        if beside is not None:
            made.beside.append(beside)
        noted = {(name, key) for each in examples for name in COUNTED[:2] for key in getattr(each, name)}
        noted |= {(COUNTED[2], token) for each in found for token in each.control_tokens}
        for name, key in noted:
            made.found[name][key] += 1
        if any(row.truncated for row in found):
            made.lost.append(("truncated", where, f"cut to {data.max_length} tokens"))
    made.packed = pack(tokens, origins) if tokens else None
    return made


def _read(
    numbered: tuple[int, str, dict[str, Any]], source: schema.Source, data: schema.Data, shape: Shape
) -> tuple[tuple[Example, ...], tuple[Example, ...]] | RowError | RequestError:
    """The examples that a row means, and those that are tokenised; or why there are none."""
    _, where, row = numbered
    try:
        if isinstance(row, Broken):
            raise RequestError(row.error)
        examples = shape.read(row, source, where)
        return examples, shape.parts(examples, data)
    except (RowError, RequestError) as error:
        return error
