"""`gates.jsonl` of a run: which checkpoints failed a gate, a row a failure.

Left out: the judgement (`training/gates.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.base.files import plain, read_jsonl, write_jsonl

GATES = "gates.jsonl"


def gated(run: Path) -> set[str]:
    """Names of the checkpoints that failed a gate (see training/gates.py), as the last start of the run judged them."""
    rows = read_jsonl(run / GATES)
    return {row["checkpoint"] for row in rows if isinstance(row, dict) and "checkpoint" in row}


def record(run: Path, failures: list[dict[str, Any]]) -> list[bool]:
    """Makes gates.jsonl say `failures`; which of them it did not say before. Raises `WorkError` (disk full)."""
    path, rows = run / GATES, [plain(row) for row in failures]
    known = read_jsonl(path)
    if rows != known:
        write_jsonl(path, rows)
    return [row not in known for row in rows]
