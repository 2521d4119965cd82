"""Writing small files so that a reader never meets half of one, and line files that survive a torn last line.

Numbers that JSON cannot hold (NaN, infinities) are written as null; numpy numbers as plain ones. Left out: large
binary files (data/table.py, checkpoints).
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import RequestError, WorkError


def timestamp() -> str:
    """Now, as ISO 8601 in UTC: what the files of a run call a time."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader sees the old content or the new, also after a power cut.

    Raises WorkError where the disk refuses; `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from error
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
    """As `write_jsonl` for more rows than fit in memory: yields the function that adds one.

    `path` is replaced when the block ends, and untouched where it fails. Values that JSON does not know (dates in a
    user's columns) are written as text.
    """
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
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
    """Add `row` as one JSON line, on disk when this returns. Several processes may append to one file.

    A torn last line, left by a process that was killed, is removed first. Raises WorkError where the disk refuses.
    """
    line = _json_line(row).encode()
    try:
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _mend(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WorkError(f"cannot append to {path}: {error.strerror or error}") from error


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises WorkError where it is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkError(f"{path}: not JSON ({error})") from error


def read_jsonl(path: str | Path) -> list[Any]:
    """The values of a line file, in order; [] if there is none. A torn last line does not count.

    Raises WorkError naming the line where one before the last is no JSON.
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
    """`value` in the types of JSON: dicts, lists, finite numbers, text, null."""
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


def sync(path: str | Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def number(value: Any) -> float | None:
    """`value` where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def refuse_unwritable(folder: Path) -> None:
    """Raises `RequestError` where `folder` could not be made or written to, before hours are spent."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise RequestError(f"{folder}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RequestError(f"{folder}: no permission to write in {there}")


def cache_home() -> Path:
    """$POSTTRAIN_CACHE, or ~/.cache/posttrain: the folder under which posttrain caches what it can make again."""
    return Path(os.environ.get("POSTTRAIN_CACHE") or "~/.cache/posttrain").expanduser()


def _json_line(row: Any, default: Callable[[Any], Any] | None = None) -> str:
    """One line of a JSONL file; a lone surrogate is written as its JSON escape, because UTF-8 has no bytes for it."""
    line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False, default=default) + "\n"
    return line.encode(errors="backslashreplace").decode()


def _mend(file) -> None:
    """Cut `file` back to its last whole line; a last line that is whole JSON only gets its newline."""
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
