"""Sources to tables of tokens, in a cache under the hash of everything that decides their content.

A source that loses too many rows is an error. Left out: reading and tokenising (make_table.py), which process
works and which wait (make_once.py), mixing (mixture.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from posttrain.base.files import cache_home, counted, size_text
from posttrain.base.progress import ProgressBars
from posttrain.data.lost import SHOWN
from posttrain.data.make_once import make_once, wait_for
from posttrain.data.make_table import Choice, make_table
from posttrain.data.reasons import remedy
from posttrain.data.rendering import dates
from posttrain.data.shapes.catalogue import SHAPES, Shape
from posttrain.data.shapes.rows import is_conversation
from posttrain.data.sources import Rows, open_rows
from posttrain.data.table import Table, damaged_file
from posttrain.data.template import known_as, load_template
from posttrain.data.tokenizers import backend_rules, unicode_form
from posttrain.errors import RequestError
from posttrain.recipe import schema

READER = 5
"""As `CODE`, of rows that are conversations."""
CODE = 1
"""Raise this when the same rows give other tokens: tables of older code are then no longer found."""
LOOKED_AT = 64
"""Rows by which it is told whether a source has conversations."""
FIRST_COLUMNS = ("messages", "prompt", "completion", "text", "system", "answer", "p")
"""Columns that every key has; later ones only if set, so that older tables keep their names."""
PLACE = re.compile(r"(?s)(.*?)(:\d+|\[\d+\]|)$")
"""File and place of a row: `rows.jsonl` `:1`, `rows.arrow` `[0]`."""
PROVED_BYTES, PROVED_S = 256 * 2**20, 1.0
"""What proving a finished table takes is logged from this size or time on."""
MAX_CHARACTERS = schema.Data(sources=[]).max_characters
"""The default, which is not in the names of tables."""
Progress = Callable[[str, int, int], None]
"""Called with (source, rows done, rows in all)."""
log = logging.getLogger(__name__)


class TooManyDropped(RequestError):
    """A source loses too many rows. `brief` is the sentence without the first of them, for readers who see
    them anyway; `table` has the rows that are left."""

    def __init__(self, message: str, brief: str, source: str, table: Table) -> None:
        super().__init__(message)
        self.brief, self.source, self.table = brief, source, table


def prepare_sources(
    sources: Sequence[schema.Source],
    data: schema.Data,
    loss: schema.Loss,
    tokenizer,
    is_main: bool = True,
    progress: Progress | None = None,
    shape: str = "rows",
    choices: Sequence[Choice | None] = (),
) -> list[Table]:
    """The tables of `sources`, in order. Call it on every rank: where `is_main` is false it only waits.

    `progress` replaces the progress bar. `shape` is the name of the shape that the rows have. `choices`: of
    each source, which rows are read; None or left out for all of them.

    Raises:
        TooManyDropped: too many rows are dropped or truncated, or no row is left.
        RequestError: the source itself is wrong.
        WorkError: the disk refuses, or data.prepare_timeout has run out.
    """
    deadline = time.monotonic() + 60 * data.prepare_timeout
    fingerprint = tokenizer_fingerprint(tokenizer)
    form = SHAPES[shape]
    tables = []
    with ProgressBars("row", main=is_main and progress is None) as bars:
        for source, choice in zip_longest(sources, choices):
            rows = open_rows(source)
            key = _key(rows, source, data, loss, tokenizer, fingerprint, form, choice)
            folder = cache_root(data) / key
            what = f"source {source.name!r}"
            if is_main:
                report = partial(_report, progress, bars, source.name, rows, choice)
                make = partial(make_table, folder, rows, source, data, loss, tokenizer, report, form, choice)
                make_once(folder, make, what, deadline, _damaged)
            else:
                wait_for(folder, what, deadline, _damaged)
            table = form.table(folder)
            _check_drops(source.name, data, loss, table)
            tables.append(table)
    return tables


def _damaged(folder: Path) -> str | None:
    """`damaged_file`, with what it took in the log where it is worth a line."""
    began = time.perf_counter()
    found = damaged_file(folder)
    if found is None:
        size = sum(file.stat().st_size for file in folder.iterdir())
        seconds = time.perf_counter() - began
        if size >= PROVED_BYTES or seconds >= PROVED_S:
            log.info("%s proved: %s in %.1f s", folder, size_text(size), seconds)
    return found


def cache_root(data: schema.Data) -> Path:
    """The folder `tables` in data.cache_dir, else in $POSTTRAIN_CACHE, else in ~/.cache/posttrain."""
    return (Path(data.cache_dir).expanduser() if data.cache_dir else cache_home()) / "tables"


def tokenizer_fingerprint(tokenizer) -> str:
    """SHA-256 of what a fast tokenizer does: vocabulary, merges, normaliser, special tokens, template."""
    template = known_as(tokenizer.chat_template)
    return _digest([backend_rules(tokenizer), tokenizer.special_tokens_map, template])


def _key(
    rows: Rows, source, data, loss, tokenizer, fingerprint: str, shape: Shape, choice: Choice | None = None
) -> str:
    """The name of a table: the hash of what decides its content."""
    looked_at = islice(rows, LOOKED_AT)
    named = source.columns.tools or source.columns.reasoning
    told = named is not None or any(is_conversation(row) for _, row in looked_at)
    templates, written = [], ()
    for name in (data.template, "plain"):
        try:
            options = data.template_options if name == data.template else None
            template = load_template(name, tokenizer, options).source
            written += dates(template, tokenizer)
            templates.append(template if told else known_as(template))
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
        | _later_keys(told, source, tokenizer)
        | ({"dates": written} if written else {})
        | ({"choice": asdict(choice)} if choice else {})
        | ({} if data.max_characters == MAX_CHARACTERS else {"max_characters": data.max_characters})
    )[:32]


def _later_keys(told: bool, source, tokenizer) -> dict[str, Any]:
    """What decides the content of a table and is not in the name of older ones, where it makes a difference.
    `told`: the rows are conversations."""
    found: dict[str, Any] = {"reader": READER} if told else {}
    if told or source.roles != "strict":  # conversations may come later
        found["roles"] = source.roles
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


def _report(
    progress: Progress | None, bars: ProgressBars, name: str, rows: Rows, choice: Choice | None
) -> Callable[[int], None]:
    """Takes the number of rows done; rows are counted in advance only where their total is shown."""

    def total() -> int:
        return len(rows) if choice is None else min(choice.limit, len(rows))

    if progress is not None:
        return lambda done: progress(name, done, total())
    task = f"preparing {name}"
    bars.add(task, total() if bars.drawn else None)
    return lambda done: bars.update(task, done)


def _check_drops(name: str, data: schema.Data, loss: schema.Loss, table: Table) -> None:
    """Refuses a source that loses too many rows.

    It reads the finished table, so every rank decides the same, and a larger data.max_drop_share needs no new
    table.
    """
    stats = table.stats
    lost = Counter(stats["dropped"])
    if stats["truncated"]:
        lost["truncated"] = stats["truncated"]
    read, count, kept = stats["rows_read"], lost.total(), stats["rows_kept"]
    if kept and count <= data.max_drop_share * read:
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in lost.most_common())
    if kept:
        allow = ". Or allow it with data.max_drop_share"
        excess = f"more than data.max_drop_share = {data.max_drop_share:g}"
    else:
        allow, excess = "", "so none is left to train on"
    said = f"source {name!r}: {count} of {counted(read, 'row')} ({count / max(read, 1):.1%}) "
    said += f"{'is' if count == 1 else 'are'} dropped or truncated, {excess}: {reasons}. "
    remedies = _remedies([reason for reason, _ in lost.most_common()], data, loss) + allow
    first = f"First: {'; '.join(_first_lost(stats))}. "
    raise TooManyDropped(said + first + remedies, said + remedies, name, table)


def _remedies(reasons: Sequence[str], data: schema.Data, loss: schema.Loss) -> str:
    """What to do about `reasons`; where there are several, each remedy behind those that it is for."""
    advice: dict[str, list[str]] = {}
    for reason in reasons:
        if text := remedy(reason, data, loss):
            advice.setdefault(text, []).append(reason)
    if len(advice) < 2:
        return f"Remedy: {next(iter(advice), 'check data.sources.columns')}"
    return "Remedies: " + "; ".join(f"{', '.join(of)}: {text}" for text, of in advice.items())


def _first_lost(stats: dict[str, Any]) -> list[str]:
    """Place and reason of the first lost rows, with the places of equal reasons together; tables made before
    `dropped_examples` have them as text."""
    if "dropped_examples" not in stats:
        return stats["examples_of_drops"]
    places: dict[tuple[str, str], list[str]] = {}
    for each in stats["dropped_examples"][:SHOWN]:
        said = ": ".join(filter(None, (each["reason"], each["detail"])))
        file, place = PLACE.match(each["where"]).groups()
        places.setdefault((file, said), []).append(place)
    return [f"{file}{', '.join(found)}: {said}" for (file, said), found in places.items()]
