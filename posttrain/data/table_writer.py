"""`TableWriter`: tokenised rows, streamed to a table on disk; a kill loses the last seconds of the work.

A table is written under a temporary name and renamed when complete, so a folder of the right name is
complete. Left out: the format and reading it (table.py), making the rows (make_table.py).
"""

from __future__ import annotations

import json
import os
import shutil
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
        self._about: list[tuple[int, int, int, float]] = []
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
        counted = (1, len(marks), count, int(steps.sum()), int(row.p is not None))
        for name, more in zip(COUNTS, counted, strict=True):
            self._counts[name] += more
        p = float("nan") if row.p is None else row.p
        self._about.append((self._counts["tokens"], origin, count, p))
        self._held += len(marks)
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
            ids, marks = np.concatenate(self._ids), np.concatenate(self._marks)
            arrays = {IDS: ids, MARKS: marks, ROWS: np.array(self._about, ROW)}
            for name, array in arrays.items():
                self.append(name, array.tobytes())
        self._ids, self._marks, self._about, self._held = [], [], [], 0


def _hash_of(record: dict[str, Any]) -> str:
    return xxh3_128(json.dumps(record, sort_keys=True).encode()).hexdigest()
