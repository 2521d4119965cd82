"""From the `data` section of a recipe to what training reads: tables, their mixture, held-out rows.

`build` is called on every rank. It prepares each source once (cache.py, make_once.py) and then opens the same
files on every rank. Left out: batches (collate.py), mixture.json (manifest.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from posttrain.data.cache import Progress, TooManyDropped, prepare_sources
from posttrain.data.make_table import Choice
from posttrain.data.mixture import MixedSource, Mixture
from posttrain.data.order import key_of, permute_array, schedule
from posttrain.data.refusals import Unprepared, refusals
from posttrain.data.table import JoinedTable, SubsetTable, Table, TokenTable
from posttrain.data.tokens import TokenRow
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """The data of a run.

    tables           the rows of each source that are trained on, without the held-out ones
    mixture          the order of their rows
    heldout_table    rows that are never trained on, at most `max_examples`; None if nothing is held out
    heldout_sources  the index of the source of each part of heldout_table; len(tables) for the source
                     of its own that the recipe names under `evaluate.heldout`
    fingerprints     of the complete tables of the sources, that of `evaluate.heldout.source` last
    """

    data: schema.Data
    tables: list[Table]
    mixture: Mixture
    heldout_table: JoinedTable | None
    heldout_sources: list[int]
    fingerprints: list[str]

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.data.sources]


def build(
    data: schema.Data,
    loss: schema.Loss,
    tokenizer,
    heldout: schema.Heldout | None = None,
    *,
    seed: int = 42,
    is_main: bool = True,
    progress: Progress | None = None,
    shape: str = "rows",
) -> Prepared:
    """Prepares every source, or waits for it where `is_main` is false, and mixes them.

    `shape` is the name of the shape that the rows have.

    Raises RequestError and WorkError as `prepare_sources` and `Mixture` do, `Unprepared` where `is_main` and
    a source is wrong; RequestError also where a held-out share leaves nothing to train on, and where `loss.p`
    is `external` but rows have no p.
    """
    sources = list(data.sources)
    own = heldout.source if heldout else None
    every = [*sources, own] if own else sources
    choices = [_choice(source, heldout, seed) for source in sources]
    try:
        prepared = prepare_sources(every, data, loss, tokenizer, is_main, progress, shape, choices)
    except TooManyDropped:
        raise
    except RequestError as error:
        if not is_main:
            raise
        look = partial(refusals, every, data, loss, tokenizer, progress, shape, choices)
        raise Unprepared(error, look) from error
    _check_p(every, prepared, loss)
    if is_main:
        _warn_of_typos(every, prepared)
    tables: list[Table] = list(prepared[: len(sources)])
    parts: dict[int, Table] = {}
    if heldout and own:
        (chosen,) = _choose([len(prepared[-1])], heldout.max_examples)
        order = _shuffled(len(prepared[-1]), heldout.seed, own.name)
        parts = {len(sources): SubsetTable(prepared[-1], np.sort(order[:chosen]))}
    elif heldout and heldout.share is not None:
        tables, parts = _split(tables, [s.name for s in sources], heldout)
    mixture = Mixture(
        [_mixed(source, table) for source, table in zip(sources, tables, strict=True)],
        seed=seed,
        shuffle=data.shuffle,
        weighting=data.weighting,
        temperature=data.temperature,
    )
    joined = JoinedTable(list(parts.values())) if parts else None
    prints = [table.fingerprint for table in prepared]
    return Prepared(data, tables, mixture, joined, list(parts), prints)


def _warn_of_typos(sources: list[schema.Source], tables: Sequence[Table]) -> None:
    """Says which keys of `ignore` no row has: one may be misspelt."""
    for source, table in zip(sources, tables, strict=True):
        for key in source.ignore:
            if key not in table.stats.get("ignored", {}):
                near = did_you_mean(key, table.stats.get("unused", {}))
                log.warning("source %r: ignore: [%s]: no row has it with content%s", source.name, key, near)


class TrainRows:
    """Positions 0 .. total - 1 of a mixture as a map-style data set.

    An item is {"input_ids", "labels", "segment_ids": int32 [L], "p": float or None, "source": int, "row":
    int}; `row` is its number in the source, by which it can be found there. The item of a preference pair is
    {"chosen": {...}, "rejected": {...}, "source", "row"}.
    """

    def __init__(self, prepared: Prepared, total: int) -> None:
        self._mixture, self._tables, self._total = prepared.mixture, prepared.tables, total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < self._total:
            raise IndexError(f"position {i} of {self._total}")
        source, row = self._mixture[i]
        return _dataset_row(self._tables[source], row, source)

    def key(self, i: int) -> tuple[int, int]:
        """(source, row of the source) of item i, without reading it."""
        source, row = self._mixture[i]
        return source, self._tables[source].origin(row)


class HeldoutRows:
    """The held-out rows in a fixed order, as items like those of `TrainRows`."""

    def __init__(self, prepared: Prepared) -> None:
        if prepared.heldout_table is None:
            raise ValueError("nothing is held out")
        self._table, self._sources = prepared.heldout_table, prepared.heldout_sources

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> dict[str, Any]:
        part, row = self._table.locate(i)
        return _dataset_row(self._table.tables[part], row, self._sources[part])

    def key(self, i: int) -> tuple[int, int]:
        """As `TrainRows.key`."""
        part, row = self._table.locate(i)
        return self._sources[part], self._table.tables[part].origin(row)


def _choice(source: schema.Source, heldout: schema.Heldout | None, seed: int) -> Choice | None:
    """Which rows are read of a source with `max_examples`: so many that those are left when the held-out
    share is taken out. Without a loss, they are the rows that the mixture would choose of all."""
    if source.max_examples is None:
        return None
    limit = source.max_examples
    share = heldout.share if heldout and heldout.share is not None and heldout.source is None else None
    if share is not None and 0 < share < 1:
        limit = max(limit, int((limit - 1) / (1 - share)))  # too few by a few at most, also after rounding
        while limit - max(1, round(share * limit)) < source.max_examples:
            limit += 1
    return Choice(limit, seed, source.name)


def _mixed(source: schema.Source, table: Table) -> MixedSource:
    return MixedSource(
        source.name,
        len(table),
        weight=source.weight,
        cap=source.max_examples,
        max_repeats=source.max_repeats,
        mean_tokens=float(table.trained.mean()),
        fingerprint=table.fingerprint,
    )


def _dataset_row(table: Table, i: int, source: int) -> dict[str, Any]:
    found, about = table[i], {"source": source, "row": table.origin(i)}
    if isinstance(found, TokenRow):
        return _fields(found) | about
    chosen, rejected = (_fields(side) | about for side in found)
    return {"chosen": chosen, "rejected": rejected} | about


def _fields(row: TokenRow) -> dict[str, Any]:
    return {"input_ids": row.input_ids, "labels": row.labels, "segment_ids": row.segment_ids, "p": row.p}


def _split(
    tables: Sequence[Table], names: Sequence[str], heldout: schema.Heldout
) -> tuple[list[Table], dict[int, Table]]:
    """Takes the share out of every table: (tables to train on, held-out part by index of the source).

    What is trained on does not depend on `max_examples`: of the rows taken out, at most that many are
    measured, spread over the sources by size.
    """
    share = heldout.share or 0.0
    if not 0 < share < 1:
        raise RequestError(f"evaluate.heldout.share = {share} must be above 0 and below 1")
    out = [max(1, round(share * len(table))) for table in tables]
    for table, name, n in zip(tables, names, out, strict=True):
        if n >= len(table):
            raise RequestError(
                f"evaluate.heldout.share = {share} leaves nothing of source {name!r} to train on: "
                f"it has {len(table)} rows"
            )
    train: list[Table] = []
    parts: dict[int, Table] = {}
    for s, measured in enumerate(_choose(out, heldout.max_examples)):
        order = _shuffled(len(tables[s]), heldout.seed, names[s])
        train.append(SubsetTable(tables[s], np.sort(order[out[s] :])))
        if measured:
            parts[s] = SubsetTable(tables[s], np.sort(order[:measured]))
    return train, parts


def _choose(sizes: list[int], most: int) -> list[int]:
    """At most `most` rows in total, spread in proportion to `sizes`, within one row of the exact share."""
    return schedule(tuple(sizes)).counts(min(most, sum(sizes)))


def _shuffled(n: int, seed: int, name: str) -> np.ndarray:
    return permute_array(np.arange(n), n, key_of(seed, name, "heldout"))


def _check_p(sources: Sequence[schema.Source], tables: Sequence[TokenTable], loss: schema.Loss) -> None:
    for source, table in zip(sources, tables, strict=True):
        if loss.p == "external" and table.stats["rows_with_p"] < len(table):
            raise RequestError(
                f"loss.p = external, but source {source.name!r} has rows without a probability; "
                "name the column under columns.p"
            )
