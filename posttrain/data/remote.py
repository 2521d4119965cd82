"""Files of a store or a web server, by a path with a scheme (`s3://bucket/rows.jsonl`), through fsspec.

They are read as streams and not copied here. A file is known by what its store says of it (ETag, checksum or
time of change, and size), so that a start whose table exists reads nothing of it; only where the store says
nothing of the kind is its content hashed, in one pass. A file that changes while it is read is an error.
Addresses are shown without user, password and query, which may contain a secret. Left out: credentials, which
fsspec's packages find by themselves (environment, files in the home folder), and writing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from posttrain.errors import PosttrainError, RequestError, WorkError, did_you_mean

SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
}
"""Scheme -> the package that reads it; of others fsspec says itself what is missing."""
MARKS = (
    *("md5Hash", "Content-MD5", "xet_hash", "blob_id", "Digest", "ETag", "etag", "checksum", "generation"),
    *("LastModified", "last_modified", "Last-Modified", "updated", "modified", "mtime", "created"),
)
"""What stores call the mark that changes with a file's content; the first that is there is used."""
SAVED = {"state.json", "dataset_dict.json"}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a store.

    url    its address as messages show it
    path   its name within `fs`, an fsspec file system
    bytes  its size; 0 where the server does not say it
    mark   what the store says that changes with the content; None if it says nothing
    """

    url: str
    path: str
    fs: Any
    bytes: int
    mark: str | None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.name).suffixes

    def __str__(self) -> str:
        return self.url

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The content as a binary stream."""
        return self.fs.open(self.path, mode)

    def digest(self) -> bytes:
        """Stands for the content, without reading it where the store has a mark.

        Raises RequestError and WorkError as `refusals`.
        """
        if self.mark is not None:
            return hashlib.sha256(f"{self.mark} {self.bytes}".encode()).digest()
        found = hashlib.sha256()
        with refusals(self.url), self.open() as file:
            while block := file.read(1 << 20):
                found.update(block)
        return found.digest()


def is_remote(text: str) -> bool:
    """Whether a path names a store or a server: it begins with a scheme."""
    return SCHEME.match(text) is not None


def remote_files(text: str, named: str, readable: Callable[[Any], Any]) -> list[RemoteFile]:
    """The files of a path with a scheme, sorted: one file, a glob, or the files directly in a folder.

    `named` opens every message; of a glob or a folder, those are left out that are not `readable`.

    Raises RequestError: no such file, no permission, an unknown scheme, a package that is not installed;
    WorkError: the store cannot be reached.
    """
    shown = _shown(text)
    with refusals(f"{named}: {shown}"):
        fs, path = _file_system(text, f"{named}: {shown}")
        fs.invalidate_cache()  # what the store says now, not what it said before
        scheme = SCHEME.match(text)[1].lower()
        magic = "*[" if scheme in ("http", "https") else "*[?"
        if any(character in path for character in magic) and not fs.exists(path):
            found = [(name, info) for name, info in fs.glob(path, detail=True).items()]
            nothing = f"{named}: no readable file matches {shown}"
        else:
            info = _look_up(fs, path, f"{named}: {shown}")
            if info["type"] != "directory":
                return [_file(fs, path, shown, info)]
            found = [(entry["name"], entry) for entry in fs.ls(path, detail=True)]
            nothing = f"{named}: {shown} has no readable file; to read its subfolders, write **/*.jsonl"
            found = [(name, entry) for name, entry in found if not _base(name).startswith(".")]
            if saved := SAVED & {_base(name) for name, _ in found}:
                raise RequestError(
                    f"{named}: {shown} was written by datasets.save_to_disk ({min(saved)}); such a folder is "
                    "read on a local disk: copy it"
                )
        files = []
        for name, info in sorted(found, key=lambda each: each[0]):
            if info["type"] != "directory" and readable(PurePosixPath(name)):
                info = info if _mark(info) and info.get("size") is not None else fs.info(name)
                files.append(_file(fs, name, _shown(fs.unstrip_protocol(name)), info))
        if not files:
            raise RequestError(nothing)
        return files


@contextmanager
def refusals(what: str, through: Callable[[Exception], bool] = lambda _: False) -> Iterator[None]:
    """Turns what file systems raise into one sentence about `what`, all but what is let `through`.

    A missing file, missing permission and missing credentials are the request's (`RequestError`); anything
    else that a store's own package raises, or the system, is the network's or the store's (`WorkError`).
    """
    try:
        yield
    except (PosttrainError, GeneratorExit):
        raise
    except Exception as found:
        error = _blamed(found)
        ours = type(error).__module__ == "builtins" and not isinstance(error, OSError | ValueError)
        if through(error) or ours:
            raise
        if isinstance(error, FileNotFoundError):
            raise RequestError(f"{what}: no such file") from found
        denied = isinstance(error, PermissionError) or _status(error) in (401, 403)
        if denied or "Credentials" in type(error).__name__:
            raise RequestError(f"{what}: access is denied ({_first_line(error)})") from found
        raise WorkError(f"{what}: could not be read ({_first_line(error)})") from found


def _blamed(error: Exception) -> Exception:
    """The error itself, or its cause where a failure of the way is called a missing file, as of the web."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    failed = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    status = _status(cause)
    return cause if status in (401, 403, 429) or status >= 500 or (failed and not status) else error


def _status(error: Exception) -> int:
    """The HTTP status that a store answered, by the names that packages give it; 0 if there is none."""
    holders = (error, getattr(error, "response", None))
    found = (getattr(each, name, None) for each in holders for name in ("status", "status_code", "code"))
    return next((each for each in found if isinstance(each, int)), 0)


def _file_system(text: str, what: str) -> tuple[Any, str]:
    import fsspec

    scheme = SCHEME.match(text)[1].lower()
    try:
        return fsspec.url_to_fs(text)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        advice = f"the package {package} is not installed: pip install {package}" if package else str(error)
        raise RequestError(f"{what}: {scheme}:// cannot be read here: {advice}") from None
    except ValueError as error:
        known = fsspec.available_protocols()
        if scheme in known:
            raise RequestError(f"{what}: {error}") from None
        near = did_you_mean(scheme, known)
        raise RequestError(f"{what}: unknown scheme {scheme!r}{near}") from None


def _look_up(fs: Any, path: str, what: str) -> dict[str, Any]:
    """`fs.info`; a missing file is a `RequestError` that names the nearest one beside it."""
    try:
        return fs.info(path)
    except FileNotFoundError as error:
        if _blamed(error) is not error:
            raise
        near = ""
        with suppress(Exception):  # listing the folder is not what was asked for
            near = did_you_mean(_base(path), map(_base, fs.ls(fs._parent(path), detail=False)))
        raise RequestError(f"{what}: no such file{near}") from error


def _file(fs: Any, path: str, url: str, info: dict[str, Any]) -> RemoteFile:
    return RemoteFile(url, path, fs, info.get("size") or 0, _mark(info))


def _mark(info: dict[str, Any]) -> str | None:
    return next((f"{key}={info[key]}" for key in MARKS if info.get(key)), None)


def _base(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _shown(url: str) -> str:
    """An address without user, password, query and fragment."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return re.sub(r"(?<=://)[^/@]*:[^/@]*@", "", url)
    host = parts.netloc.rsplit("@", 1)[-1]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _first_line(error: Exception) -> str:
    """The kind of an error and its first line, without the queries of addresses."""
    line = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {re.sub(r'[?][^ ]*', '', line)}" if line else type(error).__name__
