"""What changed between the start of a run and its resumption: the rows of its sources.

A resumed run must see the rows that an uninterrupted one would have seen. Which those are, the checkpoints
say (`data_fingerprint`); what has changed in them, mixture.json and the tables in the cache. Left out:
damaged files of checkpoints (`rundir/proof.py`), another recipe (`rundir/directory.py`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from posttrain.base.files import read_json
from posttrain.data.cache import cache_root
from posttrain.data.prepare import Prepared
from posttrain.data.table import Table, TokenTable, complete
from posttrain.errors import RequestError, WorkError
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.directory import REMEDY, RunDir

log = logging.getLogger(__name__)


def refuse_changed_rows(run: RunDir, prepared: Prepared, recipe_hash: str) -> None:
    """Compares the rows of a resumed run with those that its newest checkpoint of `recipe_hash` was trained
    on.

    Raises:
        RequestError: a source has changed, and data.on_change is refuse; the message names it and what
            changed.
    """
    last = newest_facts_of(run, recipe_hash)
    if last is None:
        return
    before, now = last.get("data_fingerprint"), prepared.mixture.fingerprint
    account = _account(run)
    if before in (None, now):
        _warn_of_other_heldout(run, account, prepared)
        return
    if account.get("fingerprint") == before:
        changes = changed_sources(account.get("sources"), prepared) or ["the order of the rows has changed"]
    else:
        changes = [f"{run.mixture}, which says what they were, is missing or damaged"]
    what = f"{run.path}: its sources have changed since it began: {'; '.join(changes)}"
    if prepared.data.on_change == "refuse":
        raise RequestError(
            f"{what}. Restore them; or {REMEDY}; or set data.on_change=accept to train the remaining steps "
            "on the new rows"
        )
    log.warning("%s (accepted by data.on_change)", what)


def refuse_other_rows(checkpoint: ckpt.Checkpoint, prepared: Prepared) -> None:
    """Raises `RequestError` where `checkpoint` was trained on other rows and data.on_change is refuse.

    It may be an older one than `refuse_changed_rows` saw, or one of another run.
    """
    before = checkpoint.facts().get("data_fingerprint")
    if prepared.data.on_change == "refuse" and before not in (None, prepared.mixture.fingerprint):
        raise RequestError(
            f"{checkpoint.path} was trained on other rows than those that its sources have now; restore "
            "them, or set data.on_change=accept to train the remaining steps on the new rows"
        )


def info_of_same(run: RunDir, recipe_hash: str) -> dict[str, Any]:
    """run.json of the run that is resumed; empty where there is none of this recipe."""
    info = run.info()
    return info if info.get("recipe_hash") == recipe_hash else {}


def refuse_changed_prompts(run: RunDir, prepared: Prepared, recipe_hash: str) -> None:
    """As `refuse_changed_rows`, for a stage that samples, whatever data.on_change says: chunks of several
    data sets are no data set.

    Raises:
        RequestError: the sources of a resumed run have changed.
    """
    before, now = info_of_same(run, recipe_hash), prepared.mixture.fingerprint
    if before.get("data_fingerprint", now) != now:
        changes = changed_sources(before.get("sources"), prepared) or ["other rows"]
        raise RequestError(
            f"{run.path}: its sources have changed since it began: {'; '.join(changes)}. Restore them, or "
            f"{REMEDY}"
        )


def changed_sources(before: Any, prepared: Prepared) -> list[str]:
    """What has changed in each source that is not as in `before`, a list like `sources` of mixture.json."""
    old = {s.get("name"): s for s in before if isinstance(s, dict)} if isinstance(before, list) else {}
    found = []
    for source, table in zip(prepared.data.sources, prepared.tables, strict=True):
        was = old.get(source.name, {})
        if was.get("fingerprint") in (None, table.fingerprint):
            continue
        read, count = table.stats["rows_read"], was.get("rows_read")
        what = f"{read} rows as before" if read == count else f"{count} -> {read} rows"
        folder = cache_root(prepared.data) / str(was.get("table", was["fingerprint"]))
        found.append(f"source {source.name!r}: {what}{_first_difference(folder, table)}")
    return found


def newest_facts_of(run: RunDir, recipe_hash: str) -> dict[str, Any] | None:
    """checkpoint.json of the newest checkpoint to resume from; None where there is none."""
    found = ckpt.newest_facts(run.checkpoints)
    return next((f for f in found if f.get("resumable") and f.get("recipe_hash") == recipe_hash), None)


def _account(run: RunDir) -> dict[str, Any]:
    """mixture.json; empty where it cannot be read."""
    try:
        found = read_json(run.mixture)
    except (OSError, WorkError):
        return {}
    return found if isinstance(found, dict) else {}


def _warn_of_other_heldout(run: RunDir, account: dict[str, Any], prepared: Prepared) -> None:
    """They are not trained on and may change, but losses before and after do not compare."""
    before, table = account.get("heldout"), prepared.heldout_table
    if isinstance(before, dict) and table is not None and before.get("fingerprint") != table.fingerprint:
        log.warning("%s: the held-out rows have changed, so held-out losses do not continue", run.path)


def _first_difference(old: Path, table: Table) -> str:
    """The end of a sentence: the number, from 0, of the first row of the source that differs.

    Empty where the old rows are no longer in the cache.
    """
    try:
        row = complete(table).first_difference(TokenTable(old))
    except WorkError:
        return ""
    return ", with the same tokens" if row is None else f", the first other is row {row}"
