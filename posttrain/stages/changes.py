"""What changed between the start of a run and its resumption: its recipe, and the rows of its sources.

A resumed run must see the rows that an uninterrupted one would have seen. Left out: damaged files of
checkpoints (`rundir/proof.py`); stages that sample, which compare their rows themselves (`sample.py`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.base.files import read_json
from posttrain.data.cache import cache_root
from posttrain.data.prepare import Prepared
from posttrain.data.table import TokenTable
from posttrain.errors import RequestError, WorkError
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.directory import REMEDY, RunDir

log = logging.getLogger(__name__)


def refuse_changed_rows(run: RunDir, prepared: Prepared) -> None:
    """Compares the rows of a resumed run with those it began with, as mixture.json has them.

    Raises:
        RequestError: a source has changed, and data.on_change is refuse; the message names it and what
            changed.
    """
    trained = [c for c in ckpt.all_complete(run.checkpoints) if c.step]
    before = _manifest(run)
    if not trained or before.get("fingerprint", prepared.mixture.fingerprint) == prepared.mixture.fingerprint:
        return
    changes = "; ".join(_changes(before, prepared)) or "the order of the rows has changed"
    what = f"{run.path}: its sources have changed since it began: {changes}"
    if prepared.data.on_change == "refuse":
        raise RequestError(
            f"{what}. Restore them; or {REMEDY}; or set data.on_change=accept to train the remaining steps "
            "on the new rows"
        )
    log.warning("%s (accepted by data.on_change)", what)


def _manifest(run: RunDir) -> dict[str, Any]:
    try:
        found = read_json(run.mixture)
        return found if isinstance(found, dict) else {}
    except (OSError, WorkError):
        return {}


def _changes(before: dict[str, Any], prepared: Prepared) -> list[str]:
    old = {source["name"]: source for source in before.get("sources", [])}
    found = []
    for source, table in zip(prepared.data.sources, prepared.tables, strict=True):
        was = old.get(source.name)
        if was is None or was["fingerprint"] == table.fingerprint:
            continue
        read = table.stats["rows_read"]
        what = (
            f"{was['rows_read']:,} -> {read:,} rows"
            if read != was["rows_read"]
            else f"{read:,} rows as before"
        )
        row = _first_difference(cache_root(prepared.data) / was["fingerprint"], table)
        found.append(
            f"source {source.name!r}: {what}" + ("" if row is None else f", the first other is row {row}")
        )
    return found


def _first_difference(old: Path, table: Any) -> int | None:
    """The number, from 0, of the first row of the source that differs; None where the old rows are gone."""
    if not isinstance(table, TokenTable) or not old.is_dir():
        return None
    try:
        was = TokenTable(old)
    except WorkError:
        return None
    for i in range(min(len(was), len(table))):
        a, b = was[i], table[i]
        same = was.origin(i) == table.origin(i) and np.array_equal(a.input_ids, b.input_ids)
        if not same or not np.array_equal(a.labels, b.labels):
            return min(was.origin(i), table.origin(i))
    longer = was if len(was) > len(table) else table
    return longer.origin(min(len(was), len(table))) if len(was) != len(table) else None
