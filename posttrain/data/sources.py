"""The rows of a source: local files, a data set of the hub or a generator, behind one small interface.

`open_rows(source)` has a length, yields `(where, row)` in a fixed order, lists its files and carries a
fingerprint of the content. `list_files` serves `posttrain check` without reading a row; importing this module
imports neither torch nor datasets nor pyarrow. Left out: what the columns mean (shapes/).
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from posttrain.data import readers
from posttrain.data.problems import catalogue
from posttrain.errors import RequestError, WorkError, did_you_mean
from posttrain.recipe import schema

if TYPE_CHECKING:
    import numpy as np

FILE_OPTIONS = {"strip_calculator"}
"""Keys that `options` of a file or hub source may contain: see shapes/rows.py."""
SIDECARS = {"dataset_info.json", "state.json"}
"""What `datasets.save_to_disk` writes beside its .arrow files; they contain no rows."""


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
        RequestError: no such file, an unknown suffix, no rows, a broken row, unknown options.
        WorkError: the hub cannot be reached.
    """
    _check(source)
    if source.generator:
        return GeneratorRows(source)
    paths = _local_files(source)
    rows = HubRows(source) if paths is None else FileRows(paths)
    if next(iter(rows), None) is None:
        raise RequestError(f"source {source.name!r}: {source.path} has no rows")
    return rows


def list_files(source: schema.Source) -> list[dict[str, Any]]:
    """[{"path", "bytes"}] of a local source, without reading it; [] for a generator or a hub id.

    Raises:
        RequestError: as `open_rows`, as far as names and options show it.
    """
    _check(source)
    paths = None if source.generator else _local_files(source)
    return _sizes(paths or [])


class FileRows:
    """Local files, one after the other."""

    def __init__(self, paths: list[Path]) -> None:
        self.files = _sizes(paths)
        self._paths = paths

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the digests of the files, in order; their names do not count."""
        total = hashlib.sha256()
        for path in self._paths:
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    @cached_property
    def _counts(self) -> list[int]:
        return [readers.count(path) for path in self._paths]

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[readers.Row]:
        for path in self._paths:
            yield from readers.read(path)

    def chosen(self, numbers: np.ndarray) -> Chosen:
        start = 0
        for path, count in zip(self._paths, self._counts, strict=True):
            here = numbers[bisect_left(numbers, start) : bisect_left(numbers, start + count)]
            if len(here):
                rows = readers.read(path, here - start)
                for number, (where, row) in zip(here.tolist(), rows, strict=True):
                    yield number, where, row
            start += count


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


class HubRows:
    """A data set of the Hugging Face hub, read through `datasets` and its cache."""

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
        described = json.dumps([self._path, source.revision, self._data._fingerprint])
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[readers.Row]:
        for index, row in enumerate(self._data):
            yield f"{self._path}[{index}]", row

    def chosen(self, numbers: np.ndarray) -> Chosen:
        for number in numbers[: bisect_left(numbers, len(self))].tolist():
            yield number, f"{self._path}[{number}]", self._data[number]


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


def _local_files(source: schema.Source) -> list[Path] | None:
    """The files of a local source, sorted; None if the path is a hub id."""
    text, named = str(source.path), f"source {source.name!r}"
    if not text.strip():
        raise RequestError(f"{named}: the path is empty (is an environment variable unset?)")
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, named)
    if path.exists():
        if readers.kind_of(path) is None:
            known = ", ".join(readers.KINDS)
            raise RequestError(f"{named}: {path} does not end in one of {known} (or .jsonl.gz)")
        return [path]
    if glob.has_magic(text):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [name for name in found if name.is_file() and readers.kind_of(name)]
        if not files:
            raise RequestError(f"{named}: no readable file matches {text}")
        return files
    looks_local = text[0] in "./~" or readers.kind_of(path)
    if not looks_local and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        return None
    raise RequestError(f"{named}: {_missing(path)}")


def _folder(path: Path, named: str) -> list[Path]:
    """The readable files directly inside a folder; hidden files and other suffixes are skipped."""
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    files = [child for child in inside if child.is_file() and readers.kind_of(child)]
    if any(child.suffix == ".arrow" for child in files):
        files = [child for child in files if child.name not in SIDECARS]
    if files:
        return files
    if not inside:
        raise RequestError(f"{named}: the folder {path} is empty")
    names = ", ".join(child.name for child in inside[:5])
    hint = f"; to read its subfolders, write {path}/**/*.jsonl"
    hint = hint if any(child.is_dir() for child in inside) else ""
    raise RequestError(
        f"{named}: the folder {path} has no file ending in {', '.join(readers.KINDS)} (it has: {names}){hint}"
    )


def _missing(path: Path) -> str:
    """Says that there is no such file, with the nearest name in the deepest folder that exists."""
    if "$" in str(path):
        return f"no such file: {path} ($NAME is not expanded in a recipe; write ${{oc.env:NAME}})"
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    siblings = [child.name for child in missing.parent.iterdir()]
    near = did_you_mean(missing.name, siblings) if siblings else " (its folder is empty)"
    place = "" if missing == path else f" (there is no {missing})"
    return f"no such file or folder: {path}{place}{near}"


def _sizes(paths: list[Path]) -> list[dict[str, Any]]:
    return [{"path": str(path), "bytes": path.stat().st_size} for path in paths]
