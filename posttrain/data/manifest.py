"""mixture.json: what a run was trained on, source by source, in numbers that can be checked.

It has counts, and the places of a few dropped rows with the reason, but no contents. Left out: overlap with
test sets, for which it says "not measured".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.base.files import counted, write_json
from posttrain.data.prepare import Prepared
from posttrain.data.table import Table
from posttrain.recipe import schema


def manifest(prepared: Prepared, total_examples: int) -> dict[str, Any]:
    """The contents of mixture.json for a run of `total_examples` (optimizer steps times global batch).

    Shares are in units of `weighting`: of the examples, or of the trained tokens (mean tokens of a row times
    examples). `examples_seen` and `repeats` (1.0: every row once) are those at the end of the run.
    `table` is the name of the source's table in the cache, `fingerprint` that of the rows that are trained
    on. `rows_kept`, `tokens` and `trained_tokens` count what was read: the complete source, or with
    `max_examples` about as many of its `rows_in_source`; under `train_on: each` what is
    kept are the examples that rows give. `rows_used` counts the rows that caps and the held-out share
    leave. `dropped_examples`: reason -> [{"where", "detail"}], the first few rows dropped for
    each reason and, under `truncated`, those that were cut; null where the cached table was made before they
    were kept. `control_tokens`: special token -> rows whose texts spell it; null likewise.
    `tokenised` counts the rows that were tokens already, of which no proof was made.
    """
    mixture = prepared.mixture
    seen, repeats = mixture.counts(total_examples), mixture.repeats(total_examples)
    realised = mixture.realised(total_examples)
    sources = []
    for s, (source, table) in enumerate(zip(prepared.data.sources, prepared.tables, strict=True)):
        sources.append(
            described(source, table)
            | {
                "table": prepared.fingerprints[s],
                "rows_used": mixture.sizes[s],
                "share_asked": mixture.weights[s],
                "share_realised": realised[s],
                "examples_seen": seen[s],
                "repeats": repeats[s],
            }
        )
    return {
        "fingerprint": mixture.fingerprint,
        "examples_per_epoch": len(mixture),
        "examples_total": total_examples,
        "seed": mixture.seed,
        "weighting": mixture.weighting,
        "temperature": mixture.temperature,
        "rounding": mixture.rounding,
        "sources": sources,
        **_heldout(prepared),
        "overlap": "not measured",
    }


def write_manifest(path: str | Path, account: dict[str, Any]) -> None:
    """Writes mixture.json in one step. Raises WorkError where the disk refuses."""
    write_json(path, account)


def described(source: schema.Source, table: Table) -> dict[str, Any]:
    """What mixture.json says about a source, whatever its share."""
    stats = table.stats
    kept = ("rows_read", "rows_kept", "dropped", "truncated", "tokens", "trained_tokens")
    return {
        "name": source.name,
        "path": source.path or source.generator,
        "files": stats["files"],
        "rows_in_source": stats.get("rows_in_source", stats["rows_read"]),
        **{name: stats[name] for name in kept},
        "dropped_examples": _dropped_examples(stats),
        "ignored": stats.get("ignored", {}),
        "unused": stats.get("unused", {}),
        "control_tokens": stats.get("control_tokens"),
        "tokenised": stats.get("tokenised", 0),
        "fingerprint": table.fingerprint,
    }


def _dropped_examples(stats: dict[str, Any]) -> dict[str, list[dict[str, str]]] | None:
    """The lost rows that a table names, by reason; None if it lost some but does not record them."""
    kept = stats.get("dropped_examples")
    if kept is None:
        return None if stats["dropped"] or stats["truncated"] else {}
    found: dict[str, list[dict[str, str]]] = {}
    for lost in kept:
        found.setdefault(lost["reason"], []).append({"where": lost["where"], "detail": lost["detail"]})
    return found


def _heldout(prepared: Prepared) -> dict[str, Any]:
    """The entry `heldout`, if rows are held out: how many of which source, and their trained tokens."""
    table, names = prepared.heldout_table, [*prepared.names, "heldout source"]
    if table is None:
        return {}
    parts = [
        {
            "name": names[s],
            "examples": len(part),
            "trained_tokens": int(part.trained.sum()),
            "fingerprint": part.fingerprint,
        }
        for s, part in zip(prepared.heldout_sources, table.tables, strict=True)
    ]
    return {"heldout": {"examples": len(table), "fingerprint": table.fingerprint, "sources": parts}}


def summary(account: dict[str, Any]) -> list[str]:
    """A line for each source: rows kept, and how many were dropped or truncated for which reason; and one
    where texts spell control tokens."""
    lines = []
    for source in account["sources"]:
        read, dropped, examples = source["rows_read"], source["dropped"], source["rows_kept"]
        kept = read - sum(dropped.values())
        parts = [f"source {source['name']!r}: {kept:,} of {counted(read, 'row')} kept"]
        if examples != kept:  # data.train_on: each
            parts[0] += f" as {counted(examples, 'example')}"
        for what, count in [*dropped.items(), ("truncated", source["truncated"])]:
            if count:
                parts.append(f"{count:,} {what} ({count / read:.2%})")
        for what in ("ignored", "unused"):
            if source[what]:
                parts.append(f"{what}: {', '.join(source[what])}")
        if source["tokenised"]:
            parts.append(f"{source['tokenised']:,} tokenised already")
        lines.append("; ".join(parts))
        if spelt := source["control_tokens"]:
            rows = ", ".join(f"{token} in {counted(n, 'row')}" for token, n in spelt.items())
            lines.append(f"source {source['name']!r}: texts spell control tokens and become them: {rows}")
    return lines
