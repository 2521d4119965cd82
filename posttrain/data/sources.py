"""The rows of a source: files here or in a store, a data set of the hub or a generator, behind one small
interface.

`open_rows(source)` has a length, yields `(where, row)` in a fixed order, lists its files and carries a
fingerprint of the content. `list_files` serves `posttrain check` without reading a row; importing this module
imports neither torch nor datasets nor pyarrow. Left out: what the columns mean (shapes/).
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

from posttrain.data import readers
from posttrain.data.forms import check_forms
from posttrain.data.hub import HubRows
from posttrain.data.opening import File
from posttrain.data.paths import source_files
from posttrain.data.problems import catalogue
from posttrain.data.remote import RemoteFile
from posttrain.errors import PosttrainError, RequestError, WorkError, did_you_mean
from posttrain.recipe import schema

if TYPE_CHECKING:
    import numpy as np

FILE_OPTIONS = {"strip_calculator"}
"""Keys that `options` of a file or hub source may contain: see shapes/rows.py."""
SAMPLE = 64
"""Files of a store whose first row is looked at before they are read."""


Chosen = Iterator[tuple[int, str, dict[str, Any]]]
"""(number of the row in the source, where, columns)."""


class Rows(Protocol):
    """The rows of a source. `files` is [{"path", "bytes"}], empty for a generator or the hub."""

    files: list[dict[str, Any]]
    fingerprint: str

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[readers.Row]: ...

    def chosen(self, numbers: np.ndarray) -> Chosen:
        """The rows with these numbers, in their order, each as `(number, where, row)`.

        numbers: int64 [n], ascending, none twice; row number k is what iterating gives as the k-th, from 0.
        The other rows are not parsed where the format allows it. Numbers of `len(self)` and above give
        nothing.
        """
        ...


def open_rows(source: schema.Source) -> Rows:
    """The rows of `source`; files are streamed and not kept in memory.

    Raises:
        RequestError: no such file, an unknown suffix, no rows, a broken first row, files of several shapes,
            unknown options.
        WorkError: the hub or a store cannot be reached.
    """
    _check(source)
    if source.generator:
        return GeneratorRows(source)
    files = source_files(source)
    rows = HubRows(source) if files is None else FileRows(source, files)
    if files is None:
        empty = not len(rows)
    else:
        skip = source.on_error == "skip"
        firsts = [(file, found[1]) for file in _sample(files) if (found := readers.first(file, skip))]
        check_forms(source, firsts)
        empty = not firsts
        if empty and (broken := next(iter(rows), None)):
            raise RequestError(f"source {source.name!r}: no row can be read: {broken[1].error}")
    if empty:
        raise RequestError(f"source {source.name!r}: {source.path} has no rows")
    return rows


def list_files(source: schema.Source) -> list[dict[str, Any]]:
    """[{"path", "bytes"}] of a source, without reading it; [] for a generator or a hub id.

    `bytes` is 0 where a server does not say it.

    Raises as `open_rows`, as far as names and options show it.
    """
    _check(source)
    files = None if source.generator else source_files(source)
    return _sizes(files or [])


def first_row(rows: Rows) -> readers.Row:
    """The first row that is not broken."""
    return next(row for row in rows if not isinstance(row[1], readers.Broken))


class FileRows:
    """Files, one after the other; with `on_error: skip` a broken line is a `Broken` row."""

    def __init__(self, source: schema.Source, paths: list[File]) -> None:
        self.files = _sizes(paths)
        self._paths, self._list = paths, partial(source_files, source)
        self._skip = source.on_error == "skip"
        self._stamps: list[Any] = []

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the digests of the files, in order; their names do not count.

        The digest of a remote file is that of its mark: see remote.py. Files of which nulls are left out
        have another name than they had when the nulls were read (nested.py).
        """
        total = hashlib.sha256()
        self._stamps = _stamps(self._paths)
        for path in self._paths:
            if readers.differs_from_columns(path):
                total.update(b"nested")
            if isinstance(path, RemoteFile):
                total.update(path.digest())
                continue
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    @cached_property
    def _counts(self) -> list[int]:
        return [readers.count(path, self._skip) for path in self._paths]

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[readers.Row]:
        with self._unchanged():
            for path in self._paths:
                yield from readers.read(path, None, self._skip)

    def chosen(self, numbers: np.ndarray) -> Chosen:
        start = 0
        with self._unchanged():
            for path, count in zip(self._paths, self._counts, strict=True):
                here = numbers[bisect_left(numbers, start) : bisect_left(numbers, start + count)]
                if len(here):
                    rows = readers.read(path, here - start, self._skip)
                    for number, (where, row) in zip(here.tolist(), rows, strict=True):
                        yield number, where, row
                start += count

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Raises `WorkError` where files are no longer what they were when the fingerprint was taken, or when
        reading began, also in place of what that made wrong with them."""
        before = self._stamps or _stamps(self._paths)
        try:
            yield
        except (PosttrainError, ValueError):
            self._check(before)
            raise
        self._check(before)
        if isinstance(self._paths[0], RemoteFile):
            changed = {str(file) for file in set(self._list()) ^ set(self._paths)}
            if changed:
                raise WorkError(f"{min(changed)} changed while the source was read; start again")

    def _check(self, before: list[Any]) -> None:
        for path, then, now in zip(self._paths, before, _stamps(self._paths), strict=True):
            if then != now:
                raise WorkError(f"{path} changed while it was read; start again")


class GeneratorRows:
    """Rows made by a generator.

    Name and options stand for the rows of a built-in one. The code of other functions may change under the
    same name, so their fingerprint covers the rows themselves.
    """

    def __init__(self, source: schema.Source) -> None:
        self.files: list[dict[str, Any]] = []
        self._name = source.generator or ""
        self._rows = catalogue.generate(self._name, source.options)
        plain_function = isinstance(catalogue.find(self._name), catalogue.FunctionGenerator)
        content = [self._rows] if plain_function else []
        described = json.dumps([self._name, source.options, *content], sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[readers.Row]:
        for index, row in enumerate(self._rows):
            yield f"{self._name}[{index}]", row

    def chosen(self, numbers: np.ndarray) -> Chosen:
        for number in numbers[: bisect_left(numbers, len(self))].tolist():
            yield number, f"{self._name}[{number}]", self._rows[number]


def _sample(files: list[File]) -> list[File]:
    """The files whose first rows are compared: of a store, where each is a request, at most `SAMPLE`."""
    if len(files) <= SAMPLE or not isinstance(files[0], RemoteFile):
        return files
    return [files[k * len(files) // SAMPLE] for k in range(SAMPLE)]


def _check(source: schema.Source) -> None:
    """Refuses a source with two origins or none, and options that its origin does not know."""
    named = f"source {source.name!r}"
    if bool(source.generator) == (source.path is not None):
        raise RequestError(f"{named}: set either path or generator")
    if source.generator:
        catalogue.check(source.generator, source.options)
        return
    for key, value in source.options.items():
        if key not in FILE_OPTIONS:
            raise RequestError(f"{named}: unknown option {key!r}{did_you_mean(key, FILE_OPTIONS)}")
        if not isinstance(value, bool):
            raise RequestError(f"{named}: options.{key} must be true or false, not {value!r}")


def _stamps(paths: list[File]) -> list[tuple[int, int, int] | None]:
    """What changes with the content of each file here: size, time of the last change, number of the node."""
    found = []
    for path in paths:
        stamp = None  # of files that are missing, or in a store
        if not isinstance(path, RemoteFile):
            with suppress(OSError):
                facts = path.stat()
                stamp = facts.st_size, facts.st_mtime_ns, facts.st_ino
        found.append(stamp)
    return found


def _sizes(paths: list[File]) -> list[dict[str, Any]]:
    return [
        {"path": str(path), "bytes": path.bytes if isinstance(path, RemoteFile) else path.stat().st_size}
        for path in paths
    ]
