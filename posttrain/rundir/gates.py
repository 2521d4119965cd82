"""`gates.jsonl` of a run: one row for each gate that a checkpoint failed.

A file of its own because `rundir/checkpoints.py` reads this format and `training/gates.py` writes it.
Left out: the check itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.base.files import plain, read_jsonl, write_jsonl

GATES = "gates.jsonl"


def gated(run: Path) -> set[str]:
    """Names of the checkpoints that failed a gate, as judged when the run was last started."""
    rows = read_jsonl(run / GATES)
    return {row["checkpoint"] for row in rows if isinstance(row, dict) and "checkpoint" in row}


def record(run: Path, failures: list[dict[str, Any]]) -> list[bool]:
    """Replaces gates.jsonl by `failures`; returns for each whether it is new.

    Raises:
        WorkError: the file cannot be written (disk full).
    """
    path, rows = run / GATES, [plain(row) for row in failures]
    known = read_jsonl(path)
    if rows != known:
        write_jsonl(path, rows)
    return [row not in known for row in rows]
