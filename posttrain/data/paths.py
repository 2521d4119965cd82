"""Which files the path of a source means: a file, a folder, a glob, or files of a store.

Left out: what is in a folder (folders.py) or a store (remote.py), and reading the files (readers.py).
"""

from __future__ import annotations

import glob
import re
from pathlib import Path

from posttrain.data import readers
from posttrain.data.folders import folder_files, recursive_glob, without_links
from posttrain.data.opening import File
from posttrain.data.remote import is_remote, remote_files
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema


def source_files(source: schema.Source) -> list[File] | None:
    """The files of a source, in the order in which they are read; None if the path is a hub id.

    Raises:
        RequestError: there is no such file, or none that can be read.
        WorkError: a store cannot be reached.
    """
    text, named = str(source.path), f"source {source.name!r}"
    if not text.strip():
        raise RequestError(f"{named}: the path is empty (is an environment variable unset?)")
    text = text.removeprefix("file://")
    if is_remote(text):
        found = remote_files(text, named, readers.kind_of)
        _check_kind(found[0], named)
        return found
    try:
        found = _local_files(text, source, named)
    except OSError as error:  # a name of more than 255 bytes, a folder that may not be read
        raise RequestError(f"{named}: {_short(text)}: {error.strerror or error}") from None
    if found:
        return found
    path = Path(text)
    looks_local = text[0] in "./~" or readers.kind_of(path)
    if not looks_local and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        return None
    raise RequestError(f"{named}: {_missing(Path(text).expanduser())}")


def _local_files(text: str, source: schema.Source, named: str) -> list[File]:
    """The files of a path on this machine; empty if there is none of that name."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{named}: {_short(text)}: {error}") from None
    if path.is_dir():
        return folder_files(path, source.split, named, readers.kind_of, ", ".join(readers.KINDS))
    if path.exists():
        _check_kind(path, named)
        if not path.is_file():  # reading a pipe would wait for its writer, and end it
            raise RequestError(f"{named}: {path} is neither a file nor a folder")
        return [path]
    if not glob.has_magic(text):
        return []
    found = recursive_glob(str(path)) if "**" in path.parts else map(Path, glob.glob(str(path)))
    files = without_links([name for name in found if name.is_file() and readers.kind_of(name)])
    if not files:
        raise RequestError(f"{named}: no readable file matches {text}")
    return files


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


def _check_kind(path: File, named: str) -> None:
    if readers.kind_of(path) is None:
        known = ", ".join(readers.KINDS)
        raise RequestError(f"{named}: {path} does not end in one of {known} (or .jsonl.gz, .jsonl.zst)")


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
