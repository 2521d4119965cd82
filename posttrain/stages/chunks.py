"""The files of a sampling stage, chunk by chunk: completions in `rollouts/`, and in `parts/` what is made of
them.

Each is written in one step and its hash appended to `chunks.hashes`, so that a resumed run makes again what
is damaged. Left out: sampling (sample.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from posttrain.base.files import append_jsonl, hash_of, read_jsonl, write_jsonl
from posttrain.base.process import rank, world_size
from posttrain.errors import WorkError
from posttrain.rollouts.records import Row
from posttrain.rundir.directory import RunDir

log = logging.getLogger(__name__)
HASHES = "chunks.hashes"
NEEDED = {"rollouts": {"reward", "success", "components"}, "parts": {"completions"}}
"""Folder -> keys of every row in its files."""
PATIENCE_S = 1800.0
"""Seconds that rank 0 waits for the next chunk of another rank."""


class Chunks:
    """The prompts 0 .. count - 1 in chunks of `size` prompts, dealt to the ranks in turn, and their files."""

    def __init__(self, run: RunDir, count: int, size: int) -> None:
        self.path, self.count, self.size = run.path, count, size
        self._hashes = self._read_hashes()
        self._proved: set[Path] = set()

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def mine(self) -> range:
        return range(rank(), len(self), world_size())

    def prompts(self, number: int) -> range:
        return range(number * self.size, min(self.count, (number + 1) * self.size))

    def rollouts(self, number: int) -> Path:
        return self.path / "rollouts" / f"chunk-{number:06d}.jsonl"

    def part(self, number: int) -> Path:
        return self.path / "parts" / f"chunk-{number:06d}.jsonl"

    def done(self) -> int:
        return sum(self._is_done(n) for n in range(len(self)))

    def write(self, file: Path, rows: list[Row]) -> None:
        """Writes a file of a chunk in one step, then its hash."""
        write_jsonl(file, rows)
        self._hashes[self._name(file)] = found = hash_of(file)
        append_jsonl(self.path / HASHES, {"file": self._name(file), "xxh3": found})
        self._proved.add(file)

    def read(self, file: Path) -> list[Row] | None:
        """The rows of a file of a chunk; None where it is missing, or damaged, which a warning says.

        A file without a hash, of an earlier version, is compared with nothing.
        """
        rows = self._sound(file)
        if rows is None and file.exists():
            log.warning("%s is damaged: the chunk is made again", file)
        return rows

    def rows(self) -> Iterator[Row]:
        """The rows of all parts, in order. Raises `WorkError` where one is damaged."""
        for number in range(len(self)):
            rows = self._sound(self.part(number))
            if rows is None:
                raise WorkError(f"{self.part(number)} is damaged; run the same command to make it again")
            yield from rows

    def _sound(self, file: Path) -> list[Row] | None:
        try:
            rows = read_jsonl(file)
            found = hash_of(file)
        except (OSError, WorkError):
            return None
        needed = NEEDED[file.parent.name]
        if self._hashes.get(self._name(file), found) != found:
            return None
        if not all(isinstance(row, dict) and row.keys() >= needed for row in rows):
            return None
        self._proved.add(file)
        return rows

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.path))

    def _read_hashes(self) -> dict[str, str]:
        """File -> the hash written last."""
        try:
            rows = read_jsonl(self.path / HASHES)
        except WorkError as error:
            log.warning("%s: the chunks are not proved", error)
            rows = []
        return {str(row.get("file")): row.get("xxh3") for row in rows if isinstance(row, dict)}

    def _is_done(self, number: int) -> bool:
        """Whether the part is there and sound; another rank may have made it meanwhile."""
        part = self.part(number)
        if part in self._proved:
            return True
        if not part.exists():
            return False
        self._hashes = self._read_hashes()
        return self._sound(part) is not None

    def wait(self) -> None:
        """Waits until every part is there. Raises WorkError where none has come for `PATIENCE_S`."""
        done, since = -1, time.monotonic()
        while (now := self.done()) < len(self):
            if now > done:
                done, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE_S:
                missing = [n for n in range(len(self)) if not self.part(n).exists()]
                raise WorkError(
                    f"no rank has finished a chunk for {PATIENCE_S / 60:g} minutes; missing: {missing[:8]}"
                )
            time.sleep(0.1)
