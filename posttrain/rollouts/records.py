"""Rollouts on disk: one JSON line a completion, a file a batch, written whole, so that a batch done again after a kill
replaces its file. Left out: reading them back for people (evaluate/rollouts.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.files import plain, sync_folder, write_text
from posttrain.rollouts.collect import Group

Row = dict[str, Any]


def rows_of(group: Group, number: int, text: str) -> list[Row]:
    """A line for each completion of group `number`; `text` is the prompt as the model read it."""
    prompt = group.prompt
    about = {
        "group": number,
        "round": group.round,
        "position": prompt.position,
        "source": prompt.source,
        "row": prompt.row,
        "where": prompt.asked.where,
        "prompt": text,
        "answer": prompt.asked.example().answer,
    }
    found = []
    for completion, graded in zip(group.completions, group.graded, strict=True):
        components = {
            label: {k: v for k, v in asdict(verdict).items() if k != "details"}
            for label, verdict in graded.components.items()
        }
        found.append(
            about
            | {
                "sample": completion.sample_index,
                "completion": completion.text,
                "tokens": len(completion.token_ids),
                "finish": completion.finish,
                "reward": graded.value,
                "success": graded.success,
                "components": components,
                "trained": False,
            }
        )
    return found


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replaces `path` in one step."""
    lines = [json.dumps(plain(row), ensure_ascii=False, allow_nan=False) for row in rows]
    text = "".join(line + "\n" for line in lines)
    # half a character (a lone surrogate) as JSON spells it: UTF-8 cannot
    write_text(path, text.encode(errors="backslashreplace").decode())


@contextlib.contextmanager
def lines_to(path: Path) -> Iterator[Callable[[Row], None]]:
    """A function that adds a row to a file of any size; `path` is replaced when the block ends, untouched where it fails."""
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:

            def add(row: Row) -> None:
                line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False, default=str)
                file.write(line + "\n")

            yield add
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by group, in order."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return list(found.values())
