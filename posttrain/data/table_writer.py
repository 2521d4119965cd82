"""`TableWriter`: tokenised rows, streamed to a table on disk.

A table is written under a temporary name and renamed when complete, so a folder of the right name is
complete. Left out: the format and reading it (table.py), making the rows (cache.py).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.base.files import hash_of, plain, sync
from posttrain.base.temporary import temporary_name
from posttrain.data.table import (
    IDS,
    IN_SEGMENT,
    MARKS,
    ROW,
    ROWS,
    SEGMENT_START,
    TABLE,
    TRAINED,
    TokenTable,
    hash_of_facts,
)
from posttrain.data.tokens import IGNORED, TokenRow

BUFFER = 1 << 20
"""Tokens kept in memory before they are written."""


class TableWriter:
    """Streams rows to a folder of a temporary name, which `finish` renames to `folder`.

    As a context manager it removes what was not finished. Memory is bounded by BUFFER tokens and one row.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.temporary = temporary_name(self.folder)
        self.temporary.mkdir(parents=True)
        self.rows = self.tokens = self.trained_tokens = self.segments = self.rows_with_p = 0
        self._ids: list[np.ndarray] = []
        self._marks: list[np.ndarray] = []
        self._about: list[tuple[int, int, int, float]] = []
        self._held = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)

    def add(self, row: TokenRow, origin: int) -> None:
        """Add row number `origin` of the source. Raises ValueError if it cannot be rebuilt from the files."""
        trained, in_segment = row.labels != IGNORED, row.segment_ids > 0
        steps = np.diff(row.segment_ids[in_segment], prepend=0)
        if (
            trained[0]
            or not np.array_equal(row.labels[trained], row.input_ids[trained])
            or (in_segment & ~trained).any()
            or (steps >> 1).any()  # a step is 0 or 1
        ):
            raise ValueError(f"row {origin}: labels or segments are not as TokenRow describes them")
        marks = trained * np.uint8(TRAINED) + in_segment * np.uint8(IN_SEGMENT)
        marks[in_segment] += (steps * SEGMENT_START).astype(np.uint8)
        self._ids.append(np.asarray(row.input_ids, dtype="<i4"))
        self._marks.append(marks)
        count = int(np.count_nonzero(trained))
        self.rows += 1
        self.tokens += len(marks)
        self.trained_tokens += count
        self.segments += int(steps.sum())
        self.rows_with_p += row.p is not None
        p = float("nan") if row.p is None else row.p
        self._about.append((self.tokens, origin, count, p))
        self._held += len(marks)
        if self._held >= BUFFER:
            self._flush()

    def finish(self, stats: dict[str, Any]) -> TokenTable:
        """Completes the table; `stats` are kept beside the counts of rows and tokens."""
        self._flush()
        counts = {
            "rows_kept": self.rows,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "segments": self.segments,
            "rows_with_p": self.rows_with_p,
        }
        hashes = {file.name: hash_of(file) for file in self.temporary.iterdir()}
        described = plain(stats | counts | {"hashes": hashes})
        described["hashes"][TABLE] = hash_of_facts(described)
        (self.temporary / TABLE).write_text(json.dumps(described, indent=2), encoding="utf-8")
        for path in self.temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sync(self.temporary)
        try:
            os.rename(self.temporary, self.folder)
        except OSError:
            if not self.folder.is_dir():  # otherwise another process made the same table first
                raise
        sync(self.folder.parent)
        return TokenTable(self.folder)

    def _flush(self) -> None:
        if self._about:
            ids, marks = np.concatenate(self._ids), np.concatenate(self._marks)
            arrays = {IDS: ids, MARKS: marks, ROWS: np.array(self._about, ROW)}
            for name, array in arrays.items():
                with open(self.temporary / name, "ab") as file:
                    file.write(array.tobytes())
        self._ids, self._marks, self._about, self._held = [], [], [], 0
