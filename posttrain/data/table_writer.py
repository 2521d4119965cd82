"""`TableWriter`: tokenised rows, streamed to a table on disk; a kill loses the last seconds of the work.

A table is written under a temporary name and renamed when complete, so a folder of the right name is
complete. Left out: the format and reading it (table.py), making the rows (make_table.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_128

from posttrain.base.files import digest_of, plain, sync, write_json
from posttrain.base.temporary import temporary_name
from posttrain.data.in_order import Ended
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
from posttrain.errors import PosttrainError

PARTIAL, PROGRESS = ".partial-", "progress.json"
COUNTS = ("rows_kept", "tokens", "trained_tokens", "segments", "rows_with_p")
BUFFER = 1 << 20
"""Tokens kept in memory before they are written."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows as a table keeps them: int32 `ids` and uint8 `marks` [T], `about` ROW [R] with ends from 0, and
    what each of `COUNTS` gains."""

    ids: np.ndarray
    marks: np.ndarray
    about: np.ndarray
    counts: tuple[int, ...]


def pack(rows: Sequence[TokenRow], origins: Sequence[int]) -> Packed:
    """One or more rows, made of these rows of the source. Raises ValueError if one cannot be rebuilt."""
    ids = np.concatenate([row.input_ids for row in rows])
    labels = np.concatenate([row.labels for row in rows])
    segment_ids = np.concatenate([row.segment_ids for row in rows])
    ends = np.cumsum([len(row.input_ids) for row in rows])
    begins = np.concatenate([[0], ends[:-1]])
    trained, in_segment = labels != IGNORED, segment_ids > 0
    inside = np.flatnonzero(in_segment)
    steps = np.diff(segment_ids[inside], prepend=0)
    first = np.searchsorted(inside, begins)
    first = first[first < np.searchsorted(inside, ends)]  # the first of each row that has segments
    steps[first] = segment_ids[inside[first]]  # of each row, from 0
    wrong = trained & (labels != ids)
    wrong[begins] |= trained[begins]
    wrong |= in_segment & ~trained
    wrong[inside] |= (steps >> 1) != 0  # a step is 0 or 1
    if wrong.any():
        row = int(np.searchsorted(ends, np.argmax(wrong), "right"))
        raise ValueError(f"row {origins[row]}: labels or segments are not as TokenRow describes them")
    marks = trained * np.uint8(TRAINED) + in_segment * np.uint8(IN_SEGMENT)
    marks[inside] += (steps * SEGMENT_START).astype(np.uint8)
    about = np.empty(len(rows), ROW)
    about["end"], about["origin"] = ends, origins
    about["trained"] = np.add.reduceat(trained, begins, dtype=np.int64)
    about["p"] = [float("nan") if row.p is None else row.p for row in rows]
    with_p = sum(row.p is not None for row in rows)
    counts = (len(rows), len(ids), int(np.count_nonzero(trained)), int(steps.sum()), with_p)
    return Packed(ids.astype("<i4", copy=False), marks, about, counts)


class TableWriter:
    """Streams rows to a folder of a temporary name, which `finish` renames to `folder`.

    As a context manager it removes what was not finished. Memory is bounded by BUFFER tokens and one row.

    With `resumable` the name is `.partial-NAME`, which one process at a time may use, and the folder stays
    where the process, or one that it started, ends by anything but an error of ours or of the disk. What
    `keep` recorded last is then taken up by the next writer; `kept` is its state, None where there is none.
    """

    def __init__(self, folder: str | Path, resumable: bool = False) -> None:
        self.folder = Path(folder)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._ids: list[np.ndarray] = []
        self._marks: list[np.ndarray] = []
        self._about: list[np.ndarray] = []
        self._held = 0
        self._digests: dict[str, Any] = {}
        self.kept: Any = None
        self._resumable = resumable
        if not resumable:
            self.temporary = temporary_name(self.folder)
            self.temporary.mkdir(parents=True)
            return
        self.temporary = self.folder.with_name(PARTIAL + self.folder.name)
        if not self._take_up():
            self.begin_again()

    def begin_again(self) -> None:
        """Leaves what was taken up, and begins with an empty table."""
        if self.temporary.is_dir() and not self.temporary.is_symlink():
            shutil.rmtree(self.temporary)
        else:
            self.temporary.unlink(missing_ok=True)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._digests, self.kept = {}, None
        self.temporary.mkdir(parents=True)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        lost = kind is None or (issubclass(kind, PosttrainError | OSError) and not issubclass(kind, Ended))
        if lost or not self._resumable:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def add(self, row: TokenRow, origin: int) -> None:
        """Add row number `origin` of the source. Raises ValueError, see `pack`."""
        self.add_packed(pack([row], [origin]))

    def add_packed(self, packed: Packed) -> None:
        """Add rows as the table keeps them."""
        about = packed.about.copy()
        about["end"] += self._counts["tokens"]
        for name, more in zip(COUNTS, packed.counts, strict=True):
            self._counts[name] += more
        for held, more in ((self._ids, packed.ids), (self._marks, packed.marks), (self._about, about)):
            held.append(more)
        self._held += len(packed.marks)
        if self._held >= BUFFER:
            self._flush()

    def append(self, name: str, data: bytes) -> None:
        """Write `data` at the end of the file `name` of the table."""
        with open(self.temporary / name, "ab") as file:
            file.write(data)
        self._digests.setdefault(name, xxh3_128()).update(data)

    def keep(self, state: Any) -> None:
        """Records what is written, with `state`, so that a writer that comes after a kill goes on here."""
        self._flush()
        files = {}
        for name, digest in self._digests.items():
            sync(self.temporary / name)
            files[name] = {"bytes": (self.temporary / name).stat().st_size, "hash": digest.hexdigest()}
        record = {"table": self.folder.name, "files": files, "counts": self._counts, "state": plain(state)}
        write_json(self.temporary / PROGRESS, record | {"hash": _hash_of(record)})

    def _take_up(self) -> bool:
        """Cuts the files to what `keep` recorded last; False where they are damaged or there is no record."""
        if self.temporary.is_symlink():
            return False
        try:
            found = json.loads((self.temporary / PROGRESS).read_text("utf-8"))
            record = {key: found[key] for key in ("table", "files", "counts", "state")}
            if found["hash"] != _hash_of(record) or found["table"] != self.folder.name:
                return False
            counts, files = {name: found["counts"][name] for name in COUNTS}, found["files"]
            if not all(type(count) is int for count in counts.values()):
                return False
            paths = {name: self._own(name) for name in files}
            for name, path in paths.items():
                os.truncate(path, files[name]["bytes"])
                self._digests[name] = digest_of(path)
                if self._digests[name].hexdigest() != files[name]["hash"]:
                    return False
            for file in self.temporary.iterdir():
                if file.name not in paths and file.name != PROGRESS:
                    file.unlink()  # begun after the record
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False
        self._counts, self.kept = counts, found["state"]
        return self.kept is not None

    def _own(self, name: str) -> Path:
        """A file of the table by a name from a record. Raises ValueError if it is anything else."""
        path = self.temporary / name
        if path.parent != self.temporary or name in ("..", PROGRESS) or path.is_symlink():
            raise ValueError(name)
        if not path.is_file():
            raise ValueError(name)
        return path

    def finish(self, stats: dict[str, Any]) -> TokenTable:
        """Completes the table; `stats` are kept beside the counts of rows and tokens."""
        self._flush()
        (self.temporary / PROGRESS).unlink(missing_ok=True)
        hashes = {name: digest.hexdigest() for name, digest in self._digests.items()}
        described = plain(stats | self._counts | {"hashes": hashes})
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
            for name, arrays in ((IDS, self._ids), (MARKS, self._marks), (ROWS, self._about)):
                self.append(name, np.concatenate(arrays).tobytes())
        self._ids, self._marks, self._about, self._held = [], [], [], 0


def _hash_of(record: dict[str, Any]) -> str:
    return xxh3_128(json.dumps(record, sort_keys=True).encode()).hexdigest()
