"""What the tests of `posttrain prepare` share: rows, the tables of a cache, what `--json` printed."""

from __future__ import annotations

import json
from pathlib import Path

LONG = {"prompt": "a", "completion": "x" * 300}
"""Above data.max_length = 256."""


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tables(folder: Path) -> dict[str, int]:
    """Every file of every table, with the time at which it was written."""
    found = (folder / "cache" / "tables").glob("*/*")
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in found}


def facts_of(answer) -> dict:
    assert answer.code == 0, answer
    return json.loads(answer.out)
