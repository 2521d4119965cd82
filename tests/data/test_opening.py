"""Files as bytes: unpacked by their names, closed to the last, and read errors as one sentence."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from posttrain.data.opening import compression, open_bytes, readable
from posttrain.data.remote import RemoteFile, remote_files
from posttrain.errors import RequestError, WorkError

TEXT = b"line one\nline two\n" * 1000
PACKED = {
    "a.jsonl": TEXT,
    "a.jsonl.gz": gzip.compress(TEXT),
    "a.JSONL.GZ": gzip.compress(TEXT),
    "a.jsonl.zst": pa.compress(TEXT, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("a.gz", ".gz"),
        ("a.b.ZST", ".zst"),
        ("a.gz.jsonl", None),
        ("a.jsonl", None),
        ("gz", None),
        (".gz", None),
    ],
)
def test_the_last_part_of_a_name_says_how_it_is_packed(name, packing):
    assert compression(Path(name)) == packing


def stored(name: str, content: bytes):
    fsspec.filesystem("memory").pipe(f"/opening/{name}", content)
    (file,) = remote_files(f"memory://opening/{name}", "", bool)
    return file


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("remote", [False, True])
def test_a_file_is_read_unpacked_and_closed(tmp_path, monkeypatch, name, remote):
    (tmp_path / name).write_bytes(PACKED[name])
    file, opened = tmp_path / name, []
    if remote:  # files of memory:// are never closed
        file = RemoteFile(f"x://{name}", str(file), fsspec.filesystem("file"), 0, None)
    plain = type(file).open
    monkeypatch.setattr(type(file), "open", lambda *rest: opened.append(plain(*rest)) or opened[0])
    with open_bytes(file) as stream:
        assert isinstance(stream, io.BufferedReader)
        assert stream.readline() == b"line one\n" and stream.peek(1)
        assert b"line one\n" + stream.read() == TEXT
        assert not opened[0].closed
    assert stream.closed and opened[0].closed


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a"), "No such file or directory"),
        (OSError("ZSTD decompress failed: x"), "ZSTD decompress failed: x"),
        (gzip.BadGzipFile("Not a gzipped file (b'no')"), "Not a gzipped file (b'no')"),
        (EOFError("ended before the end"), "ended before the end"),
        (zlib.error("Error -3"), "Error -3"),
        (
            OSError("too much memory for decoding"),
            "too much memory for decoding; it was made with zstd --long: write it again without",
        ),
    ],
)
def test_an_error_of_a_file_is_the_requests(error, said):
    with pytest.raises(RequestError) as caught, readable(Path("a.gz")):
        raise error
    assert str(caught.value) == f"a.gz: cannot be read: {said}" and caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (EOFError("ended before the end"), RequestError, "cannot be read: ended before the end"),
        (zlib.error("Error -3"), RequestError, "cannot be read: Error -3"),
        (gzip.BadGzipFile("Not a gzipped file"), RequestError, "cannot be read: Not a gzipped file"),
        (OSError("ZSTD decompress failed: x"), RequestError, "cannot be read: ZSTD decompress failed: x"),
        (OSError("Truncated compressed stream"), RequestError, "cannot be read: Truncated compressed stream"),
        (
            OSError("a ZSTD decompress failed"),
            WorkError,
            "could not be read (OSError: a ZSTD decompress failed)",
        ),
        (TimeoutError("slow"), WorkError, "could not be read (TimeoutError: slow)"),
        (FileNotFoundError("x"), RequestError, "no such file"),
    ],
)
def test_an_error_of_a_store_is_the_requests_where_the_content_is_to_blame(error, kind, said):
    with pytest.raises(kind) as caught, readable(stored("a.gz", b"")):
        raise error
    assert str(caught.value) == f"memory://opening/a.gz: {said}"


@pytest.mark.parametrize("remote", [False, True])
def test_other_errors_pass(remote):
    with pytest.raises(KeyError), readable(stored("a", b"") if remote else Path("a")):
        raise KeyError("bug")
    with readable(stored("a", b"") if remote else Path("a")):
        pass
