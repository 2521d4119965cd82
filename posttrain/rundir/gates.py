"""`gates.jsonl` of a run: one row for each gate that a checkpoint failed.

A file of its own because `rundir/checkpoints.py` reads this format and `training/gates.py` writes it.
Left out: the check itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.base.files import plain, read_jsonl, write_jsonl
from posttrain.errors import WorkError

GATES = "gates.jsonl"


def gated(run: Path) -> set[str]:
    """Names of the checkpoints that failed a gate, as judged when the run was last started.

    Raises:
        WorkError: a line is damaged, and so may name a checkpoint that must not be chosen.
    """
    rows = read_jsonl(run / GATES)
    if not all(isinstance(row, dict) and isinstance(row.get("checkpoint"), str) for row in rows):
        raise WorkError(f"{run / GATES} is damaged; start the run again to check its gates again")
    return {row["checkpoint"] for row in rows}


def record(run: Path, failures: list[dict[str, Any]]) -> list[bool]:
    """Replaces gates.jsonl by `failures`; returns for each whether it is new.

    Raises:
        WorkError: the file cannot be written (disk full).
    """
    path, rows = run / GATES, [plain(row) for row in failures]
    try:
        known = read_jsonl(path)
    except WorkError:  # damaged: it is written again
        known = [None]
    if rows != known:
        write_jsonl(path, rows)
    return [row not in known for row in rows]
