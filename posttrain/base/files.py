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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import RequestError, WorkError

Row = dict[str, Any]


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
        sync_folder(path.parent)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            temporary.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of `value` as indented JSON."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: str | Path, value: Any) -> None:
    """Add `value` as one JSON line, on disk when this returns. Writers of several processes take turns.

    A torn last line, left by a process that was killed, is removed first.
    """
    line = json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _mend(file)
            file.write(line.encode())
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


def sync_folder(folder: str | Path) -> None:
    """Make names created or renamed in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replaces `path` in one step."""
    lines = [json.dumps(plain(row), ensure_ascii=False, allow_nan=False) for row in rows]
    text = "".join(line + "\n" for line in lines)
    # half a character (a lone surrogate) as JSON spells it: UTF-8 cannot
    write_text(path, text.encode(errors="backslashreplace").decode())


@contextlib.contextmanager
def lines_to(path: Path) -> Iterator[Callable[[Row], None]]:
    """A function that adds a row to a file of any size; `path` is replaced when the block ends, untouched where it fails."""
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:

            def add(row: Row) -> None:
                line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False, default=str)
                file.write(line + "\n")

            yield add
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
