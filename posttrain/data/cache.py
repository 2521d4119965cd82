"""Sources to tables of tokens, in a cache under the hash of everything that decides their content.

Rows that cannot be trained on are dropped, counted by reason and shown; too many of them are an error. Left out:
who does the work and who waits (once.py), mixing (mixture.py), tokenising on several cores.
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

from posttrain.base.files import cache_home
from posttrain.base.progress import ProgressBars
from posttrain.data.make_once import make_once, wait_for
from posttrain.data.shapes.catalogue import SHAPES, Shape
from posttrain.data.sources import Rows, open_rows
from posttrain.data.table import Table, TableWriter, TokenTable
from posttrain.data.template import load_template
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe import schema

CODE = 1
"""Raise this when the same rows give other tokens: tables of an older code are left alone and made anew."""
FIRST_COLUMNS = ("messages", "prompt", "completion", "text", "system", "answer", "p")
"""Columns named in every table's key; later ones only where they are set, so that older tables keep their names."""
SHOWN = 5
"""Dropped rows named in a message."""
Progress = Callable[[str, int, int], None]
"""Called with (source, rows done, rows in all)."""
log = logging.getLogger(__name__)

ADVICE = {
    "overlong": "raise data.max_length (now {data.max_length}) or set data.overlong: truncate",
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

    `progress` replaces the progress bar. `shape`: what a row is (shapes.py).

    Raises:
        RequestError: too many rows dropped or truncated, no row left, or the source itself is wrong.
        WorkError: the disk refuses, or data.prepare_timeout is over.
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
            if not folder.is_dir() and is_main:
                report = _report(progress, bars, source.name, rows)
                make = partial(_make, folder, rows, source, data, loss, tokenizer, report, form)
                make_once(folder, make, what, deadline)
            elif not folder.is_dir():
                wait_for(folder, what, deadline)
            table = form.table(folder)
            _check_drops(what, data, loss, table.stats)
            tables.append(table)
    return tables


def prepare_source(
    source: schema.Source,
    data: schema.Data,
    loss: schema.Loss,
    tokenizer,
    *,
    progress: Progress | None = None,
) -> TokenTable:
    """The table of one source, from the cache or made now; see `prepare_sources`."""
    return prepare_sources([source], data, loss, tokenizer, True, progress)[0]


def cache_root(data: schema.Data) -> Path:
    """data.cache_dir, else $POSTTRAIN_CACHE, else ~/.cache/posttrain; the tables lie in `tables`."""
    return (Path(data.cache_dir).expanduser() if data.cache_dir else cache_home()) / "tables"


def tokenizer_fingerprint(tokenizer) -> str:
    """SHA-256 of what a fast tokenizer does: vocabulary, merges, normaliser, special tokens, chat template."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation"):  # left behind by earlier calls; of no effect on rows
        backend.pop(state, None)
    return _digest([backend, tokenizer.special_tokens_map, tokenizer.chat_template])


def _key(rows: Rows, source, data, loss, tokenizer, fingerprint: str, shape: Shape) -> str:
    """The name of a table: the hash of what decides its content."""
    templates = []
    for name in (data.template, "plain"):
        try:
            templates.append(load_template(name, tokenizer).source)
        except RequestError:  # plain text needs none; where one is needed, tokenising says so
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
    )[:32]


def _set_columns(source: schema.Source) -> dict[str, str | None]:
    """The named columns."""
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
    folder: Path, rows: Rows, source, data, loss, tokenizer, report: Callable[[int], None], shape: Shape
) -> None:
    """Reads, maps, tokenises and writes every row of a source; of a pair both sides or neither."""
    began = time.perf_counter()
    dropped: Counter[str] = Counter()
    shown: list[str] = []
    read = truncated = 0
    with TableWriter(folder) as writer:
        beside = shape.writer(writer, source)
        for where, row in rows:
            lost = ""
            try:
                examples = shape.read(row, source, where)
                made = [shape.tokenize(each, tokenizer, data, loss) for each in examples]
                for tokens in made:
                    writer.add(tokens, read)
                if beside is not None:
                    beside.add(examples, row)
                if any(tokens.truncated for tokens in made):
                    truncated += 1
                    lost = "truncated"
            except RowError as error:
                dropped[error.reason] += 1
                lost = str(error)
            if lost and len(shown) < SHOWN:
                shown.append(f"{where}: {lost}")
            read += 1
            if read % 256 == 0:
                report(read)
        report(read)
        if beside is not None:
            beside.finish()
        writer.finish(
            {
                "fingerprint": folder.name,
                "files": rows.files,
                "rows_read": read,
                "dropped": dict(dropped.most_common()),
                "truncated": truncated,
                "examples_of_drops": shown,
            }
        )
    seconds = time.perf_counter() - began
    log.info("source %r: %d rows in %.1f s (%.0f rows/s)", source.name, read, seconds, read / seconds)


def _check_drops(what: str, data: schema.Data, loss: schema.Loss, stats: dict[str, Any]) -> None:
    """Refuses a source of which too much is lost.

    Judged on the finished table: every rank says the same, and a larger data.max_drop_share costs no new work.
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
        f"{reasons}. First: {'; '.join(stats['examples_of_drops'])}. "
        f"Remedy: {'; or '.join(dict.fromkeys(advice))}"
    )
