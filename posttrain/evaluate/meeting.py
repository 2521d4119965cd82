"""Ranks meet through files with a deadline, not through collectives.

A slow evaluation must not trip a collective's timeout, and a rank that fails must not leave the others waiting:
it says so, and they stop at once. One meeting serves one checkpoint; the run clears what is left of meetings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import WorkError
from posttrain.files import write_text

DEADLINE_S = 4 * 3600.0
"""Seconds to wait for the slowest rank."""


class Meeting:
    """The ranks of one launch in the shared folder `place`."""

    def __init__(self, place: Path, rank: int, world_size: int) -> None:
        self.place, self.rank, self.world_size = place, rank, world_size
        if world_size > 1:
            place.mkdir(parents=True, exist_ok=True)

    def gather(self, what: str) -> Callable[[list[Any]], list[list[Any]]]:
        """A function from this rank's part of `what` to the parts of all ranks, in rank order."""

        def gather(part: list[Any]) -> list[list[Any]]:
            if self.world_size == 1:
                return [part]
            write_text(self._file(what, self.rank), json.dumps(part))
            return [json.loads(text) for text in self._wait_for(what)]

        return gather

    def leave(self) -> None:
        """Wait until every rank is done, the writing of rank 0 included."""
        if self.world_size > 1:
            write_text(self._file("done", self.rank), "null")
            self._wait_for("done")

    def fail(self) -> None:
        """Tell the others that this rank will not come."""
        if self.world_size > 1:
            (self.place / "failed").touch()

    def _file(self, what: str, rank: int) -> Path:
        return self.place / f"{what}-{rank}.json"

    def _wait_for(self, what: str) -> list[str]:
        deadline = time.monotonic() + DEADLINE_S
        files = [self._file(what, rank) for rank in range(self.world_size)]
        while not all(file.exists() for file in files):
            if (self.place / "failed").exists():
                raise WorkError("another rank failed while scoring")
            if time.monotonic() > deadline:
                late = [rank for rank, file in enumerate(files) if not file.exists()]
                raise WorkError(f"waited {DEADLINE_S / 3600:g} h for rank(s) {late} to score")
            time.sleep(0.02)
        return [file.read_text(encoding="utf-8") for file in files]
