"""Sources to tables of tokens, in a cache under the hash of everything that decides their content.

Rows that cannot be used are dropped and counted by reason, the first few of each with their place; too many
of them are an error. Left out: which process works and which wait (make_once.py), mixing (mixture.py),
tokenising on several cores.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.base.files import cache_home, size_text
from posttrain.base.progress import ProgressBars
from posttrain.data.make_once import make_once, wait_for
from posttrain.data.shapes.catalogue import SHAPES, Shape
from posttrain.data.shapes.rows import is_conversation
from posttrain.data.sources import Rows, open_rows
from posttrain.data.table import Table, damaged_file
from posttrain.data.table_writer import TableWriter
from posttrain.data.template import load_template
from posttrain.data.tokenizers import backend_rules, unicode_form
from posttrain.data.tokens import RowError, TokenRow
from posttrain.errors import RequestError
from posttrain.recipe import schema
from posttrain.types import Example

READER = 2
"""As `CODE`, of rows that are conversations."""
CODE = 1
"""Raise this when the same rows give other tokens: tables of older code are then no longer found."""
FIRST_COLUMNS = ("messages", "prompt", "completion", "text", "system", "answer", "p")
"""Columns that every key has; later ones only if set, so that older tables keep their names."""
MAX_CHARACTERS = schema.Data(sources=[]).max_characters
"""The default, which is not in the names of tables either."""
SHOWN = 5
"""Lost rows kept for each reason, and lost rows named in a message."""
Progress = Callable[[str, int, int], None]
"""Called with (source, rows done, rows in all)."""
log = logging.getLogger(__name__)

ADVICE = {
    "overlong": "raise data.max_length (now {data.max_length}) or set data.overlong: truncate",
    "too_long_text": "raise data.max_characters (now {data.max_characters:,})",
    "truncated": "raise data.max_length (now {data.max_length})",
    "no_answer_marker": "correct loss.answer_marker (now {loss.answer_marker!r})",
    "mask_mismatch": "choose another data.template (now {data.template})",
    "template_error": "choose another data.template (now {data.template})",
    "unknown_text": "choose a tokenizer that knows the text",
}


def prepare_sources(
    sources: Sequence[schema.Source],
    data: schema.Data,
    loss: schema.Loss,
    tokenizer,
    is_main: bool = True,
    progress: Progress | None = None,
    shape: str = "rows",
) -> list[Table]:
    """The tables of `sources`, in order. Call it on every rank: where `is_main` is false it only waits.

    `progress` replaces the progress bar. `shape` is the name of the shape that the rows have.

    Raises:
        RequestError: too many rows are dropped or truncated, no row is left, or the source itself is wrong.
        WorkError: the disk refuses, or data.prepare_timeout has run out.
    """
    deadline = time.monotonic() + 60 * data.prepare_timeout
    fingerprint = tokenizer_fingerprint(tokenizer)
    form = SHAPES[shape]
    tables = []
    with ProgressBars("row", main=is_main and progress is None) as bars:
        for source in sources:
            rows = open_rows(source)
            key = _key(rows, source, data, loss, tokenizer, fingerprint, form)
            folder = cache_root(data) / key
            what = f"source {source.name!r}"
            if is_main:
                report = partial(_report, progress, bars, source.name, rows)
                make = partial(_make, folder, rows, source, data, loss, tokenizer, report, form)
                make_once(folder, make, what, deadline, _damaged)
            else:
                wait_for(folder, what, deadline, _damaged)
            table = form.table(folder)
            _check_drops(what, data, loss, table.stats)
            tables.append(table)
    return tables


def _damaged(folder: Path) -> str | None:
    """`damaged_file`, with what it took in the log."""
    began = time.perf_counter()
    found = damaged_file(folder)
    if found is None:
        size = sum(file.stat().st_size for file in folder.iterdir())
        log.info("%s proved: %s in %.1f s", folder, size_text(size), time.perf_counter() - began)
    return found


def cache_root(data: schema.Data) -> Path:
    """The folder `tables` in data.cache_dir, else in $POSTTRAIN_CACHE, else in ~/.cache/posttrain."""
    return (Path(data.cache_dir).expanduser() if data.cache_dir else cache_home()) / "tables"


def tokenizer_fingerprint(tokenizer) -> str:
    """SHA-256 of what a fast tokenizer does: vocabulary, merges, normaliser, special tokens, template."""
    return _digest([backend_rules(tokenizer), tokenizer.special_tokens_map, tokenizer.chat_template])


def _key(rows: Rows, source, data, loss, tokenizer, fingerprint: str, shape: Shape) -> str:
    """The name of a table: the hash of what decides its content."""
    templates = []
    for name in (data.template, "plain"):
        try:
            options = data.template_options if name == data.template else None
            templates.append(load_template(name, tokenizer, options).source)
        except RequestError:  # plain text needs no template; for other rows tokenising raises this again
            templates.append(name)
    return _digest(
        {
            "code": CODE,
            "rows": rows.fingerprint,
            "columns": _set_columns(source),
            "system": source.system,
            "format": source.format,
            "options": source.options,
            "templates": templates,
            "train_on": data.train_on,
            "max_length": data.max_length,
            "overlong": data.overlong,
            "segment": loss.segment,
            "answer_marker": loss.answer_marker,
            "step_delimiter": loss.step_delimiter,
            "tokenizer": fingerprint,
        }
        | shape.key
        | _later_keys(rows, source, tokenizer)
        | ({} if data.max_characters == MAX_CHARACTERS else {"max_characters": data.max_characters})
    )[:32]


def _later_keys(rows: Rows, source, tokenizer) -> dict[str, Any]:
    """What decides the content of a table and is not in the name of older ones, where it makes a
    difference."""
    first = next(iter(rows), ("", {}))[1]
    found: dict[str, Any] = {"reader": READER, "roles": source.roles} if is_conversation(first) else {}
    if source.ignore:
        found["ignore"] = sorted(source.ignore)
    if source.on_error != "stop":
        found["on_error"] = source.on_error
    if form := unicode_form(tokenizer):
        found["form"] = form
    return found


def _set_columns(source: schema.Source) -> dict[str, str | None]:
    """The named columns, and null for those of `FIRST_COLUMNS` that are not."""
    columns = asdict(source.columns)
    return {k: v for k, v in columns.items() if v is not None or k in FIRST_COLUMNS}


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def _report(progress: Progress | None, bars: ProgressBars, name: str, rows: Rows) -> Callable[[int], None]:
    """Takes the number of rows done; rows are counted in advance only where their total is shown."""
    if progress is not None:
        return lambda done: progress(name, done, len(rows))
    task = f"preparing {name}"
    bars.add(task, len(rows) if bars.drawn else None)
    return lambda done: bars.update(task, done)


def _make(
    folder: Path, rows: Rows, source, data, loss, tokenizer, reporting: Callable[[], Any], shape: Shape
) -> None:
    """Reads, tokenises and writes every row of a source; both sides of a pair or neither.

    `reporting()` begins to show progress.
    """
    began = time.perf_counter()
    lost, read, report = _Lost(), 0, reporting()
    with TableWriter(folder) as writer:
        beside = shape.writer(writer, source)
        for where, row in rows:
            try:
                examples = shape.read(row, source, where)
                parts = shape.parts(examples, data)
                made = [shape.tokenize(each, tokenizer, data, loss) for each in parts]
                for tokens in made:
                    writer.add(tokens, read)
                if beside is not None:
                    beside.add(examples, row)
                lost.count(examples, made)
                if any(tokens.truncated for tokens in made):
                    lost.add("truncated", where, f"cut to {data.max_length} tokens")
            except RowError as error:
                lost.add(error.reason, where, error.detail)
            except RequestError as error:
                if source.on_error == "stop":
                    raise
                lost.add("unreadable", where, str(error).removeprefix(f"{where}: "))
            read += 1
            if read % 256 == 0:
                report(read)
        report(read)
        if beside is not None:
            beside.finish()
        writer.finish({"fingerprint": folder.name, "files": rows.files, "rows_read": read, **lost.stats()})
    seconds = time.perf_counter() - began
    log.info("source %r: %d rows in %.1f s (%.0f rows/s)", source.name, read, seconds, read / seconds)


class _Lost:
    """The dropped and truncated rows of a source: how many for each reason, and the first few."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[dict[str, str]] = []
        self.ignored: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.control: Counter[str] = Counter()
        self.tokenised = 0

    def count(self, examples: Sequence[Example], made: Sequence[TokenRow]) -> None:
        """Count what of a row that is kept was ignored, which columns were not used, and the control tokens
        that its texts spell."""
        self.control.update({token for row in made for token in row.control_tokens})
        self.tokenised += any(row.tokenised for row in made)
        self.ignored.update({key for example in examples for key in example.ignored})
        self.unused.update({key for example in examples for key in example.unused})

    def add(self, reason: str, where: str, detail: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= SHOWN:
            self.examples.append({"reason": reason, "where": where, "detail": detail})

    def stats(self) -> dict[str, Any]:
        """What a table keeps of them."""
        dropped = {reason: n for reason, n in self.counts.most_common() if reason != "truncated"}
        truncated = self.counts["truncated"]
        facts = {"dropped": dropped, "truncated": truncated, "dropped_examples": self.examples}
        facts |= {"control_tokens": dict(self.control.most_common()), "tokenised": self.tokenised}
        for name, counts in (("ignored", self.ignored), ("unused", self.unused)):
            if counts:
                facts[name] = dict(counts.most_common())
        return facts


def _check_drops(what: str, data: schema.Data, loss: schema.Loss, stats: dict[str, Any]) -> None:
    """Refuses a source that loses too many rows.

    It reads the finished table, so every rank decides the same, and a larger data.max_drop_share needs no new
    table.
    """
    lost = Counter(stats["dropped"])
    if stats["truncated"]:
        lost["truncated"] = stats["truncated"]
    read, count, kept = stats["rows_read"], lost.total(), stats["rows_kept"]
    if kept and count <= data.max_drop_share * read:
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in lost.most_common())
    advice = [ADVICE[r].format(data=data, loss=loss) for r, _ in lost.most_common() if r in ADVICE]
    if kept:
        advice.append("allow it with data.max_drop_share")
        excess = f"more than data.max_drop_share = {data.max_drop_share:g}"
    else:
        advice = advice or ["check data.sources.columns"]
        excess = "so none is left to train on"
    raise RequestError(
        f"{what}: {count} of {read} rows ({count / max(read, 1):.1%}) are dropped or truncated, {excess}: "
        f"{reasons}. First: {'; '.join(_first_lost(stats))}. "
        f"Remedy: {'; or '.join(dict.fromkeys(advice))}"
    )


def _first_lost(stats: dict[str, Any]) -> list[str]:
    """Place and reason of the first lost rows; tables made before `dropped_examples` have them as text."""
    if "dropped_examples" not in stats:
        return stats["examples_of_drops"]
    return [
        ": ".join(filter(None, (e["where"], e["reason"], e["detail"]))) for e in stats["dropped_examples"]
    ][:SHOWN]
