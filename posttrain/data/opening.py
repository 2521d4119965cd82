"""Opens the files of a source, here or in a store, compressed by gzip or zstd or not, as bytes.

Left out: which files there are (sources.py, folders.py, remote.py), and what is in them (readers.py,
columnar.py).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from posttrain.data.remote import RemoteFile, refusals
from posttrain.errors import RequestError

File = Path | RemoteFile
COMPRESSED = (".gz", ".zst")
BLOCK = 1 << 18
"""Bytes read at a time. With the usual 8 KiB, a long line takes as long to read as to parse."""
DAMAGED = ("ZSTD decompress failed", "Truncated compressed stream")
"""How the messages of pyarrow begin where a file is not what zstd wrote."""


@contextmanager
def readable(path: File) -> Iterator[None]:
    """Errors of reading `path` become one sentence that names it.

    Raises RequestError: it is missing, damaged, or may not be read; WorkError: a store cannot be reached.
    """
    try:
        if isinstance(path, RemoteFile):
            with refusals(str(path), through=_damaged):
                yield
        else:
            yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if "too much memory" in reason:  # a window above 128 MiB, which zstd itself refuses, too
            reason += "; it was made with zstd --long: write it again without"
        raise RequestError(f"{path}: cannot be read: {reason}") from error


def _damaged(error: Exception) -> bool:
    """Whether the content of the file is to blame, not the way to it."""
    return isinstance(error, EOFError | zlib.error | gzip.BadGzipFile) or str(error).startswith(DAMAGED)


def compression(path: File) -> str | None:
    """`.gz` or `.zst` if the name of the file ends so."""
    last = path.suffixes[-1].lower() if path.suffixes else ""
    return last if last in COMPRESSED else None


def open_bytes(path: File) -> IO[bytes]:
    """The content as a buffered stream, unpacked where the name says that it is packed."""
    raw = path.open("rb", BLOCK) if isinstance(path, Path) else path.open("rb")
    packing = compression(path)
    if packing == ".gz":
        return _Unpacked(gzip.GzipFile(fileobj=raw, mode="rb"), raw)
    if packing == ".zst":
        import pyarrow

        unpacked = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        return _Unpacked(unpacked, raw)
    return raw if isinstance(path, Path) else io.BufferedReader(raw, 1 << 20)


class _Unpacked(io.BufferedReader):
    """An unpacked stream that closes the file under it, too."""

    def __init__(self, unpacked, raw: IO[bytes]) -> None:
        super().__init__(unpacked, 1 << 20)
        self._packed = raw

    def close(self) -> None:
        super().close()
        self._packed.close()
