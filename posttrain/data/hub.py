"""A data set of the Hugging Face hub, read through `datasets` and its cache.

`datasets` writes its rows to Arrow files in its own cache (`$HF_DATASETS_CACHE`) and maps them, so memory
does not grow with the set, the number and order of the rows are known, any row can be read by its number, and
a run resumes without a network (`HF_HUB_OFFLINE=1`). Its streaming mode has none of these: it would save the
copy on disk. Left out: single files of the hub, `hf://datasets/org/name/file` (remote.py).
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from posttrain.data.nested import has_nulls, row_reader
from posttrain.data.readers import Row
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import schema

if TYPE_CHECKING:
    import numpy as np


class HubRows:
    """The rows of one split; `Rows` of sources.py."""

    def __init__(self, source: schema.Source) -> None:
        from datasets import load_dataset

        self.files: list[dict[str, Any]] = []
        self._path = str(source.path)
        wanted = f"{self._path} (split {source.split!r}, subset {source.subset!r})"
        try:
            self._data = load_dataset(self._path, source.subset, split=source.split, revision=source.revision)
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise RequestError(f"source {source.name!r}: hub data set {wanted}: {error}") from error
        except Exception as error:  # the hub client raises its own and httpx's errors alike
            raise WorkError(
                f"source {source.name!r}: hub data set {wanted} could not be loaded: {error}. "
                f"There is no local file or folder {self._path!r} either"
            ) from error
        columns = self._data.data
        self._read = row_reader(columns.schema, parse=False)  # of the type JSON, datasets parses the text
        changed = any(has_nulls(part) for column in columns.columns for part in column.chunks)
        described = json.dumps(
            [self._path, source.revision, self._data._fingerprint, *(["nested"] if changed else [])]
        )
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Row]:
        rows, index = iter(self._data), 0
        while True:
            with self._readable(index):
                if (row := next(rows, None)) is None:
                    return
                found = self._read(row)
            yield f"{self._path}[{index}]", found
            index += 1

    def chosen(self, numbers: np.ndarray) -> Iterator[tuple[int, str, dict[str, Any]]]:
        for number in numbers[: bisect_left(numbers, len(self))].tolist():
            with self._readable(number):
                row = self._read(self._data[number])
            yield number, f"{self._path}[{number}]", row

    @contextmanager
    def _readable(self, number: int) -> Iterator[None]:
        """Text that is not UTF-8, times out of Python's range."""
        try:
            yield
        except (ValueError, OverflowError) as error:
            raise RequestError(f"{self._path}[{number}]: cannot be read: {error}") from error
