"""Tokenised rows on disk, read through memory maps.

A table is a folder: `input_ids.bin` (int32 for each token), `marks.bin` (one byte for each token, from which
labels and segments are rebuilt), `rows.bin` (28 bytes for each row) and `table.json` (counts). It is written
under a temporary name and renamed when complete, so a folder of the right name is complete. It takes five
bytes per token on disk and none in memory. Left out: making the rows (cache.py), appending to a table.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from posttrain.base.files import hash_of, plain, sync
from posttrain.data.tokens import IGNORED, TokenRow
from posttrain.errors import WorkError

IDS, MARKS, ROWS, TABLE = "input_ids.bin", "marks.bin", "rows.bin", "table.json"
TRAINED, IN_SEGMENT, SEGMENT_START = 1, 2, 4
ROW = np.dtype([("end", "<i8"), ("origin", "<i8"), ("trained", "<i4"), ("p", "<f8")])
"""`end`: one past the last token. `origin`: the number of the row in the source. `p`: NaN if none."""
BUFFER = 1 << 20
"""Tokens kept in memory before they are written."""


class Table(Protocol):
    """What training reads: a `TokenTable`, a `PairTable` or a part of one."""

    fingerprint: str
    stats: dict[str, Any]

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> TokenRow | tuple[TokenRow, TokenRow]: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def trained(self) -> np.ndarray: ...
    def origin(self, i: int) -> int: ...


class TokenTable:
    """The table in `folder`. `lengths` and `trained` (tokens of each row) are arrays [rows].

    Raises WorkError where the folder is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.stats: dict[str, Any] = json.loads((self.folder / TABLE).read_text("utf-8"))
            self.stats.pop("hashes", None)
            rows, tokens = self.stats["rows_kept"], self.stats["tokens"]
            self._ids = _map(self.folder / IDS, np.dtype("<i4"), tokens)
            self._marks = _map(self.folder / MARKS, np.dtype("u1"), tokens)
            self._rows = _map(self.folder / ROWS, ROW, rows)
        except (OSError, ValueError, KeyError) as error:
            raise WorkError(
                f"the prepared rows in {self.folder} are damaged ({error}); "
                "delete the folder to prepare them again"
            ) from error
        self.fingerprint: str = self.stats["fingerprint"]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> TokenRow:
        """Row i as a copy. `truncated` is not kept for each row; `stats` counts it."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        span = slice(int(self._rows["end"][i - 1]) if i else 0, int(self._rows["end"][i]))
        ids, marks, p = np.array(self._ids[span]), self._marks[span], float(self._rows["p"][i])
        labels = np.where(marks & TRAINED, ids, np.int32(IGNORED))
        numbers = np.cumsum(marks & SEGMENT_START > 0, dtype=np.int32)
        segment_ids = np.where(marks & IN_SEGMENT, numbers, np.int32(0))
        return TokenRow(ids, labels, segment_ids, None if np.isnan(p) else p)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self._rows["end"], prepend=0)

    @property
    def trained(self) -> np.ndarray:
        return np.array(self._rows["trained"])

    @property
    def p(self) -> np.ndarray:
        """The `p` of each row, NaN where there is none; for labelled rows the label, 0 or 1."""
        return np.array(self._rows["p"])

    def origin(self, i: int) -> int:
        """The number of row i in the source, where dropped rows count too."""
        return int(self._rows["origin"][i])

    def __reduce__(self) -> tuple:
        """Worker processes open the files themselves, because a memory map would be sent by value."""
        return type(self), (self.folder,)


class PairTable:
    """Preference pairs: rows 2i and 2i + 1 of `table` are the chosen and the rejected side of pair i."""

    def __init__(self, table: TokenTable) -> None:
        self.table, self.fingerprint = table, table.fingerprint
        kept = table.stats["rows_kept"]
        self.stats = table.stats | {"rows_kept": kept // 2}

    def __len__(self) -> int:
        return len(self.table) // 2

    def __getitem__(self, i: int) -> tuple[TokenRow, TokenRow]:
        """(chosen, rejected) as copies."""
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        return self.table[2 * i], self.table[2 * i + 1]

    @property
    def lengths(self) -> np.ndarray:
        return self.table.lengths.reshape(-1, 2).sum(1)

    @property
    def trained(self) -> np.ndarray:
        return self.table.trained.reshape(-1, 2).sum(1)

    def origin(self, i: int) -> int:
        return self.table.origin(2 * i)


class SubsetTable:
    """Some rows of a table, in the given order. `stats` are those of the complete table."""

    def __init__(self, table: Table, rows: np.ndarray) -> None:
        self.table, self.rows = table, np.asarray(rows, dtype=np.int64)
        digest = hashlib.sha256(table.fingerprint.encode() + self.rows.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()
        self.stats = table.stats

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> TokenRow:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return self.table[int(self.rows[i])]

    @property
    def lengths(self) -> np.ndarray:
        return self.table.lengths[self.rows]

    @property
    def trained(self) -> np.ndarray:
        return self.table.trained[self.rows]

    @property
    def p(self) -> np.ndarray:
        return self.table.p[self.rows]

    def origin(self, i: int) -> int:
        return self.table.origin(int(self.rows[i]))


class JoinedTable:
    """Tables one after the other; `locate(i)` gives the table and the row of it."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = list(tables)
        self._ends = np.cumsum([len(table) for table in self.tables])
        prints = json.dumps([table.fingerprint for table in self.tables])
        self.fingerprint = hashlib.sha256(prints.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, i: int) -> tuple[int, int]:
        """(table, row) of row i."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        t = int(np.searchsorted(self._ends, i, side="right"))
        return t, i - (int(self._ends[t - 1]) if t else 0)

    def __getitem__(self, i: int) -> TokenRow:
        t, row = self.locate(i)
        return self.tables[t][row]


def damaged_file(folder: Path) -> str | None:
    """The name of a file of the table in `folder` that is not as it was written; None where all are.

    Reads every byte. Tables of an earlier version have no hashes and pass.
    """
    try:
        facts = json.loads((folder / TABLE).read_text("utf-8"))
        hashes = facts.get("hashes")
        if hashes is None:
            return None
        if hashes.get(TABLE) != _hash_of_facts(facts):
            return TABLE
    except (OSError, ValueError, AttributeError):
        return TABLE
    for name, value in hashes.items():
        try:
            if name != TABLE and hash_of(folder / name) != value:
                return name
        except OSError:
            return name
    return None


def _hash_of_facts(facts: dict[str, Any]) -> str:
    """Of the content of table.json but this hash itself."""
    hashes = {name: value for name, value in facts["hashes"].items() if name != TABLE}
    text = json.dumps(facts | {"hashes": hashes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class TableWriter:
    """Streams rows to `<folder>.tmp-<pid>`, which `finish` renames to `folder`.

    As a context manager it removes what was not finished. Memory is bounded by BUFFER tokens and one row.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.temporary = self.folder.with_name(f"{self.folder.name}.tmp-{os.getpid()}")
        shutil.rmtree(self.temporary, ignore_errors=True)  # left by an earlier process with this id
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
        described["hashes"][TABLE] = _hash_of_facts(described)
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


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """A read-only map of `count` items. Raises ValueError if the file has another size."""
    if not count:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    size = path.stat().st_size
    if size != count * dtype.itemsize:
        raise ValueError(f"{path.name} has {size} bytes, not {count * dtype.itemsize}")
    return np.memmap(path, dtype=dtype, mode="r")
