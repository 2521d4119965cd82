"""From the `data` section of a recipe to what training reads: prepared tables, their mixture, rows held out.

`build` is called on every rank; it prepares each source once (tabulate.py, once.py) and then opens the same files
everywhere. Left out: batches (collate.py), the account of what was used (manifest.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.data.cache import Progress, prepare_source, prepare_sources
from posttrain.data.mixture import Mixture
from posttrain.data.order import key_of, permute_array, schedule
from posttrain.data.table import JoinedTable, SubsetTable, Table, TokenTable
from posttrain.data.tokens import TokenRow
from posttrain.errors import RequestError
from posttrain.recipe import schema

__all__ = ["HeldoutRows", "Prepared", "TrainRows", "build", "prepare_source", "prepare_sources"]


@dataclass
class Prepared:
    """The data of a run.

    tables           what is trained on of each source, held-out rows taken away
    mixture          the order of their rows
    heldout_table    rows never trained on, at most `max_examples`; None if none were asked for
    heldout_sources  for each part of heldout_table the index of its source; len(tables) is a source of its own
    fingerprints     of the sources' whole tables, that source of its own last
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
    """Prepares (or, where `is_main` is false, waits for) every source, and mixes them; `shape`: what a row is.

    Raises RequestError and WorkError as `prepare_sources` and `Mixture`; RequestError also where a held-out share
    leaves nothing to train on, or where `loss.p: external` meets rows without p.
    """
    sources = list(data.sources)
    own = heldout.source if heldout else None
    every = [*sources, own] if own else sources
    prepared = prepare_sources(every, data, loss, tokenizer, is_main, progress, shape)
    _check_p(every, prepared, loss)
    tables: list[Table] = list(prepared[: len(sources)])
    parts: dict[int, Table] = {}
    if heldout and own:
        (chosen,) = _choose([len(prepared[-1])], heldout.max_examples)
        order = _shuffled(len(prepared[-1]), heldout.seed, own.name)
        parts = {len(sources): SubsetTable(prepared[-1], np.sort(order[:chosen]))}
    elif heldout and heldout.share is not None:
        tables, parts = _split(tables, [s.name for s in sources], heldout)
    mixture = Mixture(
        [len(table) for table in tables],
        [s.name for s in sources],
        [s.weight for s in sources],
        seed=seed,
        shuffle=data.shuffle,
        caps=[s.max_examples for s in sources],
        max_repeats=[s.max_repeats for s in sources],
        weighting=data.weighting,
        mean_tokens=[float(table.trained.mean()) for table in tables],
        temperature=data.temperature,
        fingerprints=[table.fingerprint for table in tables],
    )
    joined = JoinedTable(list(parts.values())) if parts else None
    prints = [table.fingerprint for table in prepared]
    return Prepared(data, tables, mixture, joined, list(parts), prints)


class TrainRows:
    """Positions start .. start + total - 1 of a mixture as dataset rows, for a map-style loader.

    A row is {"input_ids", "labels", "segment_ids": int32 [L], "p": float or None, "source": int, "row": int};
    `row` is its number in the source as it was read, so that it can be looked up there. A preference pair is
    {"chosen": {...}, "rejected": {...}, "source", "row"}.
    """

    def __init__(self, prepared: Prepared, total: int, start: int = 0) -> None:
        self._mixture, self._tables = prepared.mixture, prepared.tables
        self._total, self._start = total, start

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < self._total:
            raise IndexError(f"example {i} of {self._total}")
        source, row = self._mixture[self._start + i]
        return _dataset_row(self._tables[source], row, source)

    def key(self, i: int) -> tuple[int, int]:
        """(source, row of the source) of row i, without reading it."""
        source, row = self._mixture[self._start + i]
        return source, self._tables[source].origin(row)


class HeldoutRows:
    """The held-out rows as dataset rows (see `TrainRows`), in a fixed order."""

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
    """Takes the share out of every table. What is trained on does not depend on `max_examples`: of the rows taken
    out at most so many are kept for measuring, spread over the sources by size."""
    share = heldout.share or 0.0
    if not 0 < share < 1:
        raise RequestError(f"evaluate.heldout.share = {share} must lie between 0 and 1, both excluded")
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
    """At most `most` rows in all, spread in proportion to `sizes`, within one of the exact share."""
    return schedule(tuple(sizes)).counts(min(most, sum(sizes)))


def _shuffled(n: int, seed: int, name: str) -> np.ndarray:
    return permute_array(np.arange(n), n, key_of(seed, name, "heldout"))


def _check_p(sources: Sequence[schema.Source], tables: Sequence[TokenTable], loss: schema.Loss) -> None:
    for source, table in zip(sources, tables, strict=True):
        if loss.p == "external" and table.stats["rows_with_p"] < len(table):
            raise RequestError(
                f"loss.p = external, but source {source.name!r} has rows without a probability; "
                "name its column under columns.p"
            )
