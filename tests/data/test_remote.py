"""Files of a store through fsspec: `memory://` stands for the stores, `Failing` for their failures."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from posttrain.commands.plans import count_rows
from posttrain.data import remote, sources
from posttrain.data.sources import list_files, open_rows
from posttrain.errors import RequestError, WorkError
from posttrain.recipe.schema import Source

ROWS = [{"prompt": f"{n}+1=", "completion": f"{n + 1:03d}"} for n in range(10)]


def source(path, **more) -> Source:
    return Source(name="numbers", path=str(path), **more)


@pytest.fixture
def store():
    """An empty memory:// file system."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def jsonl(rows=ROWS) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def columnar(write) -> bytes:
    out = io.BytesIO()
    write(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


def ipc(new):
    def write(table, out):
        with new(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)

    return write


FILES = {
    "a.jsonl": jsonl(),
    "a.jsonl.gz": gzip.compress(jsonl()),
    "a.jsonl.zst": pa.compress(jsonl(), codec="zstd", asbytes=True),
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": b"prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS).encode(),
    "a.parquet": columnar(lambda table, out: parquet.write_table(table, out, row_group_size=4)),
    "a.arrow": columnar(ipc(pa.ipc.new_file)),
    "b.arrow": columnar(ipc(pa.ipc.new_stream)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read_from_a_store(store, name):
    store.pipe(f"/rows/{name}", FILES[name])
    asked = source(f"memory://rows/{name}")
    rows = open_rows(asked)
    found = list(rows)
    assert [row for _, row in found] == ROWS and len(rows) == 10
    assert found[0][0].startswith(f"memory://rows/{name}")
    assert list_files(asked) == rows.files == [{"path": f"memory://rows/{name}", "bytes": len(FILES[name])}]
    assert list(rows.chosen(np.array([2, 9]))) == [(2, *found[2]), (9, *found[9])]
    assert count_rows(asked, rows.files) is None  # `check` counts no rows that it would have to fetch


def test_globs_and_folders_are_read_sorted(store):
    for name in ("b/2.jsonl", "b/1.jsonl", "a.jsonl", "b/.hidden.jsonl", "b/README.md", "b/deep/3.jsonl"):
        store.pipe(f"/rows/{name}", jsonl([{"text": name}]))
    for path, wanted in [
        ("memory://rows/b", ["b/1.jsonl", "b/2.jsonl"]),
        ("memory://rows/b/", ["b/1.jsonl", "b/2.jsonl"]),
        ("memory://rows/b/[12].jsonl", ["b/1.jsonl", "b/2.jsonl"]),
        ("memory://rows/b/?.jsonl", ["b/1.jsonl", "b/2.jsonl"]),
        ("memory://rows/b/**/[1-3].jsonl", ["b/1.jsonl", "b/2.jsonl", "b/deep/3.jsonl"]),
    ]:
        assert [row["text"] for _, row in open_rows(source(path))] == wanted
    store.pipe("/rows/[1].jsonl", jsonl([{"text": "brackets"}]))
    assert [row["text"] for _, row in open_rows(source("memory://rows/[1].jsonl"))] == ["brackets"]


def test_a_file_scheme_is_the_local_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    rows = open_rows(source(f"file://{tmp_path}/a.jsonl"))
    assert rows.files == [{"path": f"{tmp_path}/a.jsonl", "bytes": len(jsonl())}]


def test_a_changed_file_has_another_fingerprint(store):
    store.pipe("/a.jsonl", jsonl())
    first = open_rows(source("memory://a.jsonl")).fingerprint
    assert open_rows(source("memory://a.jsonl")).fingerprint == first
    store.pipe("/a.jsonl", jsonl(reversed(ROWS)))  # as long as before
    assert open_rows(source("memory://a.jsonl")).fingerprint != first


def test_a_file_without_a_mark_is_known_by_its_content(store, monkeypatch):
    monkeypatch.setattr(remote, "MARKS", ())
    for name, rows in (("a", ROWS), ("b", ROWS), ("c", ROWS[::-1])):
        store.pipe(f"/{name}.jsonl", jsonl(rows))
    a, b, c = (open_rows(source(f"memory://{name}.jsonl")).fingerprint for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("info", "mark"),
    [
        ({"ETag": '"d41d"', "LastModified": "2026"}, 'ETag="d41d"'),  # s3fs
        ({"etag": "CJ", "md5Hash": "1B2M", "updated": "2026"}, "md5Hash=1B2M"),  # gcsfs
        ({"blob_id": "e69d", "xet_hash": None, "last_commit": None}, "blob_id=e69d"),  # HfFileSystem
        ({"ETag": 'W/"x"', "Last-Modified": "Mon"}, 'ETag=W/"x"'),  # http
        ({"mtime": 12.5, "size": 3}, "mtime=12.5"),  # sftp
        ({"etag": "0x8D", "last_modified": "2026"}, "etag=0x8D"),  # adlfs
        ({"last_modified": "2026", "content_settings": {}}, "last_modified=2026"),
        ({"LastModified": "2026", "ETag": ""}, "LastModified=2026"),
        ({"updated": "2026", "timeCreated": "2025"}, "updated=2026"),
        ({"generation": "17", "updated": "2026"}, "generation=17"),
        ({"size": 3, "type": "file", "etag": ""}, None),
    ],
)
def test_the_mark_is_what_the_store_says_of_the_content(info, mark):
    assert remote._mark(info) == mark


def test_a_file_that_changes_while_it_is_read(store):
    store.pipe("/a.jsonl", jsonl())
    rows = iter(open_rows(source("memory://a.jsonl")))
    next(rows)
    store.pipe("/a.jsonl", jsonl(ROWS[:5]))
    with pytest.raises(WorkError, match=r"memory://a\.jsonl changed while the source was read; start again"):
        list(rows)
    rows = open_rows(source("memory://*.jsonl"))
    assert len(list(rows.chosen(np.array([1])))) == 1
    store.pipe("/b.jsonl", jsonl())
    with pytest.raises(WorkError, match=r"b\.jsonl changed while the source was read"):
        list(rows.chosen(np.array([1])))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "memory://rows/a.tx",
            r"^source 'numbers': memory://rows/a\.tx: no such file \(did you mean 'a\.txt'\?\)$",
        ),
        ("memory://none/b", r"^source 'numbers': memory://none/b: no such file$"),
        ("memory://rows/*.csv", r"^source 'numbers': no readable file matches memory://rows/\*\.csv$"),
        ("memory://rows", r"memory://rows has no readable file; to read its subfolders"),
        ("memory://rows/a.txt", r"memory://rows/a\.txt does not end in one of \.jsonl"),
        ("memory://rows/saved", r"save_to_disk \(state\.json\); such a folder is read on a local disk"),
        ("memroy://a.jsonl", r"unknown scheme 'memroy' \(did you mean 'memory'\?\)"),
        (
            "s3://bucket/a.jsonl",
            r"s3:// cannot be read here: the package s3fs is not installed: pip install s3fs",
        ),
        ("memory://rows/dict", r"save_to_disk \(dataset_dict\.json\); such a folder"),
        ("s3a://bucket/a.jsonl", r"pip install s3fs"),
        ("gs://bucket/*.jsonl", r"pip install gcsfs"),
        ("gcs://bucket/*.jsonl", r"pip install gcsfs"),
        ("az://container/a.jsonl", r"pip install adlfs"),
        ("abfs://container/a.jsonl", r"pip install adlfs"),
        ("sftp://user:secret@host/a.jsonl", r"sftp://host/a\.jsonl: .*paramiko"),
    ],
)
def test_what_is_refused_is_one_sentence(store, monkeypatch, path, message):
    for package in ("s3fs", "gcsfs", "adlfs", "paramiko"):
        monkeypatch.setitem(sys.modules, package, None)  # not installed
    store.pipe("/rows/a.txt", b"hello")
    store.pipe("/rows/saved/state.json", b"{}")
    store.pipe("/rows/dict/dataset_dict.json", b"{}")
    store.pipe("/rows/saved/data-00000-of-00001.arrow", FILES["b.arrow"])
    for read in (list_files, open_rows):
        with pytest.raises(RequestError, match=message) as caught:
            read(source(path))
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


class Down(Exception):
    """As a store's own package raises it."""


class NoCredentialsError(Exception):
    """As botocore calls it."""


class Answered(Exception):
    """As aiohttp raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, url='https://h/a?token=secret'")
        self.status = status


def missing(cause: Exception) -> FileNotFoundError:
    """As fsspec's web client calls every failure."""
    error = FileNotFoundError("https://h/a?token=secret")
    error.__cause__ = cause
    return error


class Failing(MemoryFileSystem):
    """A store that fails when a file is looked up, or after its first bytes."""

    protocol = "failing"
    error: Exception
    late = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("failing://").strip("/")

    def info(self, path, **more):
        if not self.late:
            raise self.error
        return super().info(path, **more)

    def _open(self, path, *_, **__):
        test = self

        class Broken(io.BytesIO):
            def readinto(self, buffer):
                if self.tell() > 0:
                    raise test.error
                buffer[:40] = jsonl()[:40]
                self.seek(40)
                return 40

        return Broken()


@pytest.fixture
def failing(store):
    fsspec.register_implementation("failing", Failing, clobber=True)
    store.pipe("/a.jsonl", jsonl())
    yield
    fsspec.get_filesystem_class("failing")
    Failing.late = False


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (FileNotFoundError("x"), RequestError, r"failing://a\.jsonl: no such file$"),
        (PermissionError("Forbidden"), RequestError, r"access is denied \(PermissionError: Forbidden\)"),
        (NoCredentialsError("Unable to locate"), RequestError, r"access is denied \(NoCredentialsError"),
        (Answered(403), RequestError, r"access is denied \(Answered: 403"),
        (missing(Answered(404)), RequestError, r"failing://a\.jsonl: no such file$"),
        (missing(Answered(401)), RequestError, r"access is denied \(Answered: 401"),
        (missing(Answered(503)), WorkError, r"could not be read \(Answered: 503"),
        (
            missing(ConnectionRefusedError(111, "refused")),
            WorkError,
            r"could not be read \(ConnectionRefused",
        ),
        (missing(KeyError("a")), RequestError, r"failing://a\.jsonl: no such file$"),
        (ValueError("Cannot seek streaming HTTP file"), WorkError, r"Cannot seek streaming HTTP file"),
        (Down("503 Slow Down\nmore"), WorkError, r"could not be read \(Down: 503 Slow Down\)$"),
        (ConnectionResetError(104, "reset"), WorkError, r"could not be read \(ConnectionResetError.*reset"),
        (TimeoutError(), WorkError, r"could not be read \(TimeoutError\)$"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_failures_of_a_store(failing, monkeypatch, error, kind, message, late):
    monkeypatch.setattr(Failing, "error", error, raising=False)
    monkeypatch.setattr(Failing, "late", late)
    with pytest.raises(kind, match=message) as caught:
        for _ in open_rows(source("failing://a.jsonl")):
            pass
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    if not late:
        with pytest.raises(kind, match=f"source 'numbers': .*{message}"):
            list_files(source("failing://a.jsonl"))


def test_what_a_store_said_before_is_asked_again(store, monkeypatch):
    """s3fs and others remember their listings for as long as the process lives."""
    store.pipe("/a.jsonl", jsonl())
    said, info = {}, MemoryFileSystem.info
    monkeypatch.setattr(
        MemoryFileSystem, "info", lambda self, path: said.get(path) or said.setdefault(path, info(self, path))
    )
    monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda *_: said.clear())
    first = open_rows(source("memory://a.jsonl")).fingerprint
    store.pipe("/a.jsonl", jsonl(ROWS[:3]))
    assert open_rows(source("memory://a.jsonl")).fingerprint != first


@pytest.fixture
def server(tmp_path):
    """A web server with the folder of the test; `private` is forbidden there, `broken` fails."""
    pytest.importorskip("aiohttp")

    class Handler(SimpleHTTPRequestHandler):
        def send_head(self):
            for word, status in (("private", 403), ("broken", 500)):
                if word in self.path:
                    return self.send_error(status)
            return super().send_head()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_web_server(server, tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        (tmp_path / name).write_bytes(FILES[name])
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        rows = open_rows(source(f"{server}/{name}?token=secret"))
        assert [row for _, row in rows] == ROWS
        assert rows.files == [{"path": f"{server}/{name}", "bytes": len(FILES[name])}]
    first = open_rows(source(f"{server}/a.jsonl")).fingerprint
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert open_rows(source(f"{server}/a.jsonl")).fingerprint != first
    for name, kind, message in [
        ("gone.jsonl", RequestError, r"/gone\.jsonl: no such file \(one of: a\.jsonl"),
        ("private.jsonl", RequestError, r"/private\.jsonl: access is denied \(ClientResponseError: 403"),
        ("broken.jsonl", WorkError, r"/broken\.jsonl: could not be read \(ClientResponseError: 500"),
    ]:
        with pytest.raises(kind, match=message) as caught:
            open_rows(source(f"{server}/{name}?token=secret"))
        assert "secret" not in str(caught.value)


def test_no_web_server():
    pytest.importorskip("aiohttp")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/a.jsonl"
        with pytest.raises(WorkError, match=r"could not be read \(ClientConnectorError.*127\.0\.0\.1"):
            list_files(source(address))


def test_a_mistake_of_ours_is_no_failure_of_the_store(failing, monkeypatch):
    monkeypatch.setattr(Failing, "error", KeyError("bug"), raising=False)
    with pytest.raises(KeyError):
        list_files(source("failing://a.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "b.arrow"])
def test_a_damaged_file_of_a_store_is_the_requests(store, name):
    for content in (b"no such format", FILES[name][: len(FILES[name]) * 2 // 3]):
        store.pipe(f"/{name}", content)
        with pytest.raises(RequestError, match=rf"memory://{name}"):
            [row for _, row in open_rows(source(f"memory://{name}"))]


def test_of_many_files_a_sample_is_compared(store, monkeypatch):
    for n in range(9):
        store.pipe(f"/rows/{n}.jsonl", jsonl([{"text": str(n)}]))
    store.pipe("/rows/9.jsonl", jsonl())
    with pytest.raises(RequestError, match=r"9 with text .*; 1 with a prompt \(memory:///rows/9\.jsonl"):
        open_rows(source("memory://rows"))
    monkeypatch.setattr(sources, "SAMPLE", 5)
    assert [file.name for file in sources._sample(remote.remote_files("memory://rows", "", bool))] == [
        f"{n}.jsonl" for n in (0, 2, 4, 6, 8)
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@host:8/a.jsonl?X-Amz-Signature=abc#x", "https://host:8/a.jsonl"),
        ("s3://bucket/a@b.jsonl", "s3://bucket/a@b.jsonl"),
        ("hf://datasets/org/name@main/a.jsonl", "hf://datasets/org/name@main/a.jsonl"),
        ("sftp://me:pw@host/a.jsonl", "sftp://host/a.jsonl"),
    ],
)
def test_addresses_are_shown_without_secrets(url, shown):
    assert remote._shown(url) == shown


@pytest.mark.parametrize(
    ("text", "remote_path"),
    [
        ("s3://bucket/a", True),
        ("S3A://bucket/a", True),
        ("git+ssh-1.0://h/a", True),
        ("3s://bucket/a", False),
        ("://bucket/a", False),
        ("data/s3://a", False),
        ("s3:/bucket/a", False),
        ("/data/a.jsonl", False),
    ],
)
def test_a_path_with_a_scheme_is_of_a_store(text, remote_path):
    assert remote.is_remote(text) == remote_path


class Refused(Exception):
    """As clients of stores say the status that they were answered."""

    def __init__(self, **told) -> None:
        super().__init__("https://h/a?token=secret says no\nand more")
        self.__dict__.update(told)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused(status=401), "access is denied (Refused: https://h/a says no)"),
        (Refused(status_code=403), "access is denied (Refused: https://h/a says no)"),
        (Refused(code=403), "access is denied (Refused: https://h/a says no)"),
        (Refused(response=Refused(status_code=403)), "access is denied (Refused: https://h/a says no)"),
        (Refused(code="403", status=None), "could not be read (Refused: https://h/a says no)"),
        (Refused(status=402), "could not be read (Refused: https://h/a says no)"),
        (Refused(status=404), "could not be read (Refused: https://h/a says no)"),
        (missing(Answered(404)), "no such file"),
        (missing(Answered(403)), "access is denied (Answered: 403, url='https://h/a)"),
        (missing(Answered(429)), "could not be read (Answered: 429, url='https://h/a)"),
        (missing(Answered(499)), "no such file"),
        (missing(Answered(500)), "could not be read (Answered: 500, url='https://h/a)"),
        (missing(FileNotFoundError("x")), "no such file"),
        (missing(TimeoutError("slow")), "could not be read (TimeoutError: slow)"),
        (missing(SystemExit()), "no such file"),
        (caused(Down("x"), TimeoutError("slow")), "could not be read (Down: x)"),
        (caused(PermissionError("x"), Answered(503)), "access is denied (PermissionError: x)"),
        (Down("x" * 400), f"could not be read (Down: {'x' * 300})"),
        (Down(" \n"), "could not be read (Down)"),
    ],
)
def test_failures_are_one_sentence(error, said):
    kind = WorkError if said.startswith("could not") else RequestError
    with pytest.raises(kind) as caught, remote.refusals("s3://b/a"):
        raise error
    assert str(caught.value) == f"s3://b/a: {said}" and caught.value.__cause__ is error


def test_a_store_that_refuses_its_address(monkeypatch):
    class Odd(MemoryFileSystem):
        protocol = "odd"

        def __init__(self, *_, **__):
            raise ValueError("no host in it")

    fsspec.register_implementation("odd", Odd, clobber=True)
    monkeypatch.setattr(fsspec, "available_protocols", lambda: ["odd"])
    with pytest.raises(RequestError, match="^source 'numbers': odd://a.jsonl: no host in it$"):
        list_files(source("odd://a.jsonl"))


@pytest.mark.parametrize("info", [{}, {"size": None}, {"size": 0}])
def test_a_size_that_is_not_told_is_zero(info):
    assert remote._file(None, "/a", "x://a", info).bytes == 0


@pytest.mark.parametrize(("path", "name"), [("bucket", "bucket"), ("a/b", "b"), ("/a/b/", "b"), ("/a", "a")])
def test_the_last_part_of_a_path(path, name):
    assert remote._base(path) == name


@pytest.mark.parametrize(
    "error",
    [
        RequestError("told"),
        WorkError("told"),
        GeneratorExit(),
        KeyError("ours"),
        TypeError("ours"),
        Down("let"),
    ],
)
def test_what_is_no_failure_of_a_store_passes(error):
    let = remote.refusals("s3://b/a", through=lambda found: str(found) == "let")
    with pytest.raises(type(error)) as caught, let:
        raise error
    assert caught.value is error


class Terse(MemoryFileSystem):
    """A store whose listings leave out what it says of a file by itself."""

    protocol = "terse"
    left_out: str

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("terse://").strip("/")

    def ls(self, path, detail=True, **more):
        found = super().ls(path, detail=detail, **more)
        return [{k: v for k, v in each.items() if k != self.left_out} for each in found] if detail else found


@pytest.mark.parametrize("left_out", ["size", "created", ""])
def test_what_a_listing_leaves_out_is_asked(store, monkeypatch, left_out):
    fsspec.register_implementation("terse", Terse, clobber=True)
    monkeypatch.setattr(Terse, "left_out", left_out, raising=False)
    for name in ("b.jsonl", "a.jsonl", "c.jsonl/d.jsonl"):
        store.pipe(f"/rows/{name}", jsonl())
    files = remote.remote_files("terse://rows", "", lambda name: name.suffix == ".jsonl")
    assert [(file.name, file.bytes, file.mark[:8]) for file in files] == [
        (name, len(jsonl()), "created=") for name in ("a.jsonl", "b.jsonl")
    ]


def test_the_digest_of_a_file_is_that_of_its_mark_and_size(store):
    """Or of its content: sha256sum."""
    store.pipe("/a", b"abc")
    file = remote.RemoteFile("memory://a", "/a", store, 3, None)
    assert file.digest().hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    digests = {
        remote.RemoteFile("memory://a", "/a", store, size, mark).digest()
        for size, mark in ((3, None), (3, "ETag=1"), (3, "ETag=2"), (4, "ETag=1"))
    }
    assert len(digests) == 4
    gone = remote.RemoteFile("memory://b", "/b", store, 3, None)
    with pytest.raises(RequestError, match="^memory://b: no such file$"):
        gone.digest()
