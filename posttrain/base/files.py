"""Text, JSON and JSONL files, replaced in one step (a reader never sees half of one) or appended to safely.

NaN and infinities, which JSON does not have, are written as null; numpy numbers and torch tensors as plain
numbers. Left out: large binary files (data/table.py, checkpoints).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import xxhash

from posttrain.base.disk import why_unwritten
from posttrain.base.resolved import Resolved
from posttrain.base.temporary import temporary_name
from posttrain.errors import RequestError, WorkError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of flock on a file system that has no locks."""


def timestamp() -> str:
    """The current time as ISO 8601 in UTC, the format of every time in a run directory."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_text(path: str | Path, text: str) -> None:
    """Replace the content of `path` in one step: a reader sees the old one or the new one, nothing between.

    Raises WorkError if it cannot be written; `path` is then unchanged.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {why_unwritten(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            temporary.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of `value` as indented JSON."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """`write_text` of `rows`, one JSON line each."""
    write_text(path, "".join(_json_line(row) for row in rows))


@contextlib.contextmanager
def stream_jsonl(path: Path) -> Iterator[Callable[[Any], None]]:
    """Like `write_jsonl`, for any number of rows: a context manager that yields a function to add one row.

    `path` is replaced when the block ends, and unchanged if the block raises. Values that JSON does not have,
    such as dates in a user's columns, are written as text.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield lambda row: file.write(_json_line(row, default=str))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def append_jsonl(path: str | Path, row: Any) -> None:
    """Append `row` as one JSON line and wait until it is on disk. Several processes may append to one file.

    An incomplete last line, left by a process that was killed, is removed first. Raises WorkError if it
    cannot be written.
    """
    line = _json_line(row).encode()
    try:
        with open(path, "a+b") as file:
            lock(file)
            _mend(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WorkError(f"cannot append to {path}: {why_unwritten(error)}") from error


def lock(file: IO[Any]) -> None:
    """Waits for the lock of an open file, which ends when it is closed; none where its file system has no
    locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises WorkError if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkError(f"{path}: not JSON ({error})") from error


def read_jsonl(path: str | Path) -> list[Any]:
    """The values of a JSONL file, in order; [] if there is no file. An incomplete last line is ignored.

    Raises WorkError with the number of any other line that is not JSON.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    values = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was cut off
                break
            raise WorkError(f"{path}:{number}: not JSON ({error})") from error
    return values


def plain(value: Any) -> Any:
    """`value` with the types of JSON only: dicts, lists, finite numbers, text (of a `Resolved`, what was
    written), null."""
    if isinstance(value, Resolved):
        return value.written
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and numbers, torch tensors
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def hash_of(path: Path, between: Callable[[], object] = lambda: None) -> str:
    """xxh3-128 of the content of a file, 32 hexadecimal digits; no protection against manipulation.

    `between` is called between blocks of 4 MiB; what it raises ends the reading.
    """
    return digest_of(path, between).hexdigest()


def digest_of(path: Path, between: Callable[[], object] = lambda: None) -> xxhash.xxh3_128:
    """The digest of `hash_of`, which can be updated with what is added to the file."""
    total = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total.update(block)
            between()
    return total


def size_text(count: int) -> str:
    """`count` bytes as `2.1 GiB`, or smaller units."""
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if count >= 1 << power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


def counted(n: int, unit: str) -> str:
    """`1 row`, `7,473 rows`, `2 sides of pairs`: the plural of the first word."""
    first, *rest = unit.split()
    return " ".join([f"{n:,}", first if n == 1 else f"{first}s", *rest])


def sync(path: str | Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def number(value: Any) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def refuse_unwritable(folder: Path) -> None:
    """Raise RequestError if `folder` cannot be created or written to, before hours of work are spent."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise RequestError(f"{folder}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RequestError(f"{folder}: no permission to write in {there}")


def cache_home() -> Path:
    """The folder for everything that can be computed again: $POSTTRAIN_CACHE, or ~/.cache/posttrain."""
    return Path(os.environ.get("POSTTRAIN_CACHE") or "~/.cache/posttrain").expanduser()


def _json_line(row: Any, default: Callable[[Any], Any] | None = None) -> str:
    """One line of a JSONL file. Lone surrogates, which UTF-8 cannot encode, are written as JSON escapes."""
    line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False, default=default) + "\n"
    return line.encode(errors="backslashreplace").decode()


def _mend(file) -> None:
    """Remove an incomplete last line of `file`; if it is complete JSON, only add the missing newline."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start and b"\n" not in tail:
        step = min(start, 1 << 16)
        start -= step
        file.seek(start)
        tail = file.read(step) + tail
    torn = tail.rpartition(b"\n")[2]
    if torn:
        try:
            json.loads(torn)
            file.write(b"\n")
        except ValueError:
            file.truncate(size - len(torn))
