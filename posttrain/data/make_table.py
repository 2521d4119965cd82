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

from posttrain.data.in_order import in_order, processes
from posttrain.data.order import key_of, permute_array
from posttrain.data.readers import Broken
from posttrain.data.shapes.catalogue import Shape
from posttrain.data.sources import Rows
from posttrain.data.table_writer import PARTIAL, TableWriter
from posttrain.data.tokens import RefusedRow, RowError, TokenRow, without_place
from posttrain.errors import RequestError
from posttrain.recipe import schema

CHUNK = 64
"""Rows that a process takes at a time."""
MARGIN = 1.05
"""Of rows read once more where some of the first were dropped."""
KEEP_S = 10.0
"""Seconds of work that a kill may cost."""
OLD_S = 7 * 24 * 3600.0
SHOWN = 5
"""Lost rows kept for each reason."""
EXAMPLES, COUNTED = "dropped_examples", ("ignored", "unused", "control_tokens")
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
    """What became of a row: its tokens, or why there are none."""

    number: int
    where: str
    tokens: list[TokenRow] = field(default_factory=list)
    beside: bytes | None = None
    """What the table keeps beside the tokens."""
    found: dict[str, set[str]] = field(default_factory=dict)
    """Name of `COUNTED` -> what of the row is counted under it."""
    lost: tuple[str, str] | None = None
    """Reason and detail."""
    refused: str | None = None
    """The sentence that ends the run."""


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
    lost, read, report = _Lost(), 0, reporting()
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
        for chunk in _results(rows, work, count, choice, lambda: lost.kept, read):
            for made in chunk:
                _keep(made, writer, beside, lost, source, data)
                read += 1
                if read % 256 == 0:
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
) -> Iterator[str]:
    """The sentence of every row that ends the run, of those that `make_table` reads first; without `choice`
    from row number `begin` on."""
    work, looked_at = partial(_made, source, data, loss, tokenizer, shape), _Lost()
    for chunk in _results(rows, work, processes(data.num_proc), choice, lambda: looked_at.kept, begin):
        for made in chunk:
            looked_at.kept += 1
            if made.refused is not None:
                yield made.refused


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
) -> Iterator[list[Made]]:
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


def _keep(
    made: Made, writer: TableWriter, beside: Any, lost: _Lost, source: schema.Source, data: schema.Data
) -> None:
    """Writes a row, or counts why it is lost."""
    if made.refused is not None:
        if source.on_error == "stop":
            raise RefusedRow(made.refused, source.name, made.number)
        made.lost = "unreadable", without_place(made.where, made.refused)
    if made.lost is not None:
        lost.add(made.lost[0], made.where, made.lost[1])
        return
    for tokens in made.tokens:
        writer.add(tokens, made.number)
    if beside is not None and made.beside is not None:
        beside.add(made.beside)
    lost.count(made)
    if any(tokens.truncated for tokens in made.tokens):
        lost.add("truncated", made.where, f"cut to {data.max_length} tokens")


def _made(
    source: schema.Source,
    data: schema.Data,
    loss: schema.Loss,
    tokenizer: Any,
    shape: Shape,
    chunk: list[tuple[int, str, dict[str, Any]]],
) -> list[Made]:
    """The work of a process."""
    return [
        _made_of(number, where, row, source, data, loss, tokenizer, shape) for number, where, row in chunk
    ]


def _made_of(number, where, row, source, data, loss, tokenizer, shape: Shape) -> Made:
    made = Made(number, where)
    if isinstance(row, Broken):
        made.refused = row.error
        return made
    try:
        examples = shape.read(row, source, where)
        tokens = [shape.tokenize(each, tokenizer, data, loss) for each in shape.parts(examples, data)]
        made.beside = shape.beside(examples, row, source)
        made.found = {
            "ignored": {key for example in examples for key in example.ignored},
            "unused": {key for example in examples for key in example.unused},
            "control_tokens": {token for each in tokens for token in each.control_tokens},
        }
        made.tokens = tokens
    except RowError as error:
        made.lost = error.reason, error.detail
    except RequestError as error:
        made.refused = str(error)
    return made


class _Lost:
    """The dropped and truncated rows of a source: how many for each reason, and the first few."""

    def __init__(self) -> None:
        self.kept = 0
        self.counts: Counter[str] = Counter()
        self.examples: list[dict[str, str]] = []
        self.found: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
        self.tokenised = 0

    def count(self, made: Made) -> None:
        """Count a row that is kept, what of it was ignored, which columns were not used, and which control
        tokens its texts spell."""
        self.kept += 1
        for name, what in made.found.items():
            self.found[name].update(what)
        self.tokenised += any(tokens.tokenised for tokens in made.tokens)

    def take_up(self, state: Any) -> bool:
        """Goes on with what `stats` gave; False if it is anything else, which changes nothing."""
        try:
            counts = {name: Counter(state.get(name, {})) for name in ("dropped", *COUNTED)}
            examples = [{key: each[key] for key in ("reason", "where", "detail")} for each in state[EXAMPLES]]
            numbers = [state[name] for name in ("read", "kept", "truncated", "tokenised")]
            numbers += [number for each in counts.values() for number in each.values()]
            if not all(type(number) is int and number >= 0 for number in numbers):
                return False
        except (LookupError, TypeError, ValueError, AttributeError):
            return False
        self.kept, self.tokenised, self.examples = state["kept"], state["tokenised"], examples
        self.counts = counts.pop("dropped")
        self.counts["truncated"] = state["truncated"]
        self.found = counts
        return True

    def add(self, reason: str, where: str, detail: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= SHOWN:
            self.examples.append({"reason": reason, "where": where, "detail": detail})

    def stats(self) -> dict[str, Any]:
        """What a table keeps of them."""
        dropped = {reason: n for reason, n in _ranked(self.counts).items() if reason != "truncated"}
        facts = {"dropped": dropped, "truncated": self.counts["truncated"], EXAMPLES: self.examples}
        found = {name: _ranked(each) for name, each in self.found.items()}
        facts |= {"control_tokens": found.pop("control_tokens"), "tokenised": self.tokenised}
        return facts | {name: counts for name, counts in found.items() if counts}


def _ranked(counts: Counter[str]) -> dict[str, int]:
    """The largest first; of equal ones, by name: sets have another order in every process."""
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))
