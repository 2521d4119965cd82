"""Tokenised rows on disk, read through memory maps.

A table is a folder: `input_ids.bin` (int32 for each token), `marks.bin` (one byte for each token, from which
labels and segments are rebuilt), `rows.bin` (28 bytes for each row) and `table.json` (counts, and the hashes
of the files). It takes five bytes per token on disk and none in memory. Left out: writing one
(table_writer.py), making the rows (make_table.py), appending to a table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from posttrain.base.files import hash_of
from posttrain.data.tokens import IGNORED, TokenRow
from posttrain.errors import WorkError

IDS, MARKS, ROWS, TABLE = "input_ids.bin", "marks.bin", "rows.bin", "table.json"
TRAINED, IN_SEGMENT, SEGMENT_START = 1, 2, 4
ROW = np.dtype([("end", "<i8"), ("origin", "<i8"), ("trained", "<i4"), ("p", "<f8")])
"""`end`: one past the last token. `origin`: the number of the row in the source. `p`: NaN if none."""
BLOCK = 1 << 20
"""Items that are compared at once."""


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
            self.fingerprint: str = self.stats["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkError(
                f"the prepared rows in {self.folder} are damaged ({error}); "
                "delete the folder to prepare them again"
            ) from error

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

    def first_difference(self, other: TokenTable) -> int | None:
        """The number, in the source, of the first row that is not that of `other`; None where all are."""
        rows = min(len(self), len(other))
        ours, theirs = self._rows[:rows], other._rows[:rows]
        found = [_first_other(ours[key], theirs[key]) for key in ("end", "origin", "p")]
        tokens = [(self._ids, other._ids), (self._marks, other._marks)]
        found += [int(np.searchsorted(ours["end"], _first_other(a, b), "right")) for a, b in tokens]
        row = min(found)
        longer = self if len(self) > len(other) else other
        if row < rows:
            return min(self.origin(row), other.origin(row))
        return None if len(self) == len(other) else longer.origin(rows)

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


def complete(table: Table) -> TokenTable:
    """All rows of the source that `table` is a part of; of pairs, the sides as rows of their own."""
    while not isinstance(table, TokenTable):
        table = table.table
    return table


def damaged_file(folder: Path) -> str | None:
    """The name of a file of the table in `folder` that is not as it was written; None where all are.

    Reads every byte. Of a table of an earlier version, which has no hashes, only the sizes are compared.
    """
    try:
        facts = json.loads((folder / TABLE).read_text("utf-8"))
        hashes = facts.get("hashes")
        if facts.get("fingerprint") != folder.name or (hashes and hashes.get(TABLE) != hash_of_facts(facts)):
            return TABLE
    except (OSError, ValueError, AttributeError):
        return TABLE
    if not hashes:
        return None if _opens(folder) else TABLE
    for name, value in hashes.items():
        try:
            if name != TABLE and hash_of(folder / name) != value:
                return name
        except OSError:
            return name
    return None


def _opens(folder: Path) -> bool:
    try:
        TokenTable(folder)
    except WorkError:
        return False
    return True


def hash_of_facts(facts: dict[str, Any]) -> str:
    """Of the content of table.json but this hash itself."""
    hashes = {name: value for name, value in facts["hashes"].items() if name != TABLE}
    text = json.dumps(facts | {"hashes": hashes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """A read-only map of `count` items. Raises ValueError if the file has another size."""
    size = path.stat().st_size if count != 0 or path.exists() else 0  # an empty table has no files
    if size != count * dtype.itemsize:
        raise ValueError(f"{path.name} has {size} bytes, not {count * dtype.itemsize}")
    return np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype)


def _first_other(a: np.ndarray, b: np.ndarray) -> int:
    """The first index at which `a` and `b` differ; the length of the shorter one where they do not."""
    length = min(len(a), len(b))
    for start in range(0, length, BLOCK):
        x, y = a[start : min(start + BLOCK, length)], b[start : min(start + BLOCK, length)]
        differs = (x != y) & ((x == x) | (y == y))  # NaN is equal to NaN
        if differs.any():
            return start + int(differs.argmax())
    return length
