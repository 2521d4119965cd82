"""`scores.jsonl` of a run directory, append-only, one row per measurement; `samples/`, the answers behind it;
and `unscored.jsonl`, what could not be measured and why.

A score is written once: the same checkpoint content, task, metric and settings are the same measurement.
Several processes may write at the same time. Left out: tables of scores (`report/scorecard.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from posttrain.base.disk import why_unwritten
from posttrain.base.files import append_jsonl, lock, number, plain, read_jsonl, write_jsonl
from posttrain.errors import PosttrainError, WorkError
from posttrain.types import Score

SCORE_FIELDS = {f.name for f in fields(Score)}
"""Keys of a row; others are ignored when it is read."""

NAMED = ("checkpoint", "task", "metric")
REMEDY = "remove the line, and start the run or `posttrain eval` again to measure it again"


@dataclass(frozen=True, order=True)
class Unscored:
    """A row of unscored.jsonl: a task that a checkpoint has no score of, and why; empty where that is not
    known."""

    checkpoint: str
    task: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.checkpoint} was not scored on {self.task}{self.reason and f': {self.reason}'}"


class CannotTell(WorkError):
    """A rank cannot tell the others that its scoring failed: it has to end, which they notice."""


class ScoreStore:
    """The scores of one run directory, which need not exist yet."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "scores.jsonl"
        self.unscored_path = self.run_dir / "unscored.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """Every row, in the order of writing; a torn last line is ignored.

        Raises:
            WorkError: a line is not a score. It is not skipped: without it another checkpoint may look best.
        """
        rows = []
        for i, row in enumerate(_lines(self.path), 1):
            if not _is_score(row):
                raise WorkError(f"{self.path}:{i}: not a score; {REMEDY}")
            rows.append(row)
        return rows

    def append(self, found: list[Score], renew: Callable[[Path], object] | None = None) -> int:
        """Adds the scores that are not stored yet; returns how many were added.

        `renew(run_dir)` is called after something was added, before another process may add more: it rewrites
        what is made from the scores.

        Raises:
            WorkError: a value is not finite, or the file cannot be written.
        """
        with self._lock():
            known = {_key(row) for row in self.rows()}
            new = {score.key(): score for score in found if score.key() not in known}
            for score in new.values():
                row = plain(score.to_dict())
                if row["value"] is None:
                    raise WorkError(
                        f"{score.task}/{score.metric} of {score.checkpoint} is not a finite number"
                    )
                append_jsonl(self.path, row)
            measured = {(score.checkpoint, score.task) for score in new.values()}
            self._record([u for u in self.failures() if (u.checkpoint, u.task) not in measured])
            if new and renew is not None:
                renew(self.run_dir)
        return len(new)

    def record_failures(self, checkpoint: str, failures: dict[str, str]) -> bool:
        """Records the tasks of `checkpoint` that could not be scored, and why, in place of what an earlier
        attempt recorded of it; returns whether anything changed.

        Raises:
            WorkError: the file cannot be written.
        """
        with self._lock():
            others = [u for u in self.failures() if u.checkpoint != checkpoint]
            return self._record(others + [Unscored(checkpoint, *item) for item in failures.items()])

    def failures(self) -> list[Unscored]:
        """What unscored.jsonl says; what cannot be read in it is left out: it is found out again."""
        try:
            rows = read_jsonl(self.unscored_path)
        except WorkError:
            return []
        return unscored(rows)

    def _record(self, found: list[Unscored]) -> bool:
        if sorted(found) == self.failures():
            return False
        if found:
            write_jsonl(self.unscored_path, [asdict(u) for u in sorted(found)])
        else:
            self.unscored_path.unlink(missing_ok=True)
        return True

    def lacking(self, kept: dict[str, str], tasks: Sequence[str]) -> list[Unscored]:
        """The `tasks` that the checkpoints `kept` (name -> digest) have no score of, or whose scoring failed
        last.

        Raises:
            WorkError: scores.jsonl is damaged.
        """
        found = unscored([asdict(u) for u in self.failures()], self.rows(), kept, tasks)
        return [u for u in found if u.checkpoint in kept]

    def write_samples(
        self, checkpoint: str, task: str, rows: list[dict[str, Any]], settings: str = "", own: bool = True
    ) -> Path:
        """Replaces the samples of a checkpoint on a task under the settings of this hash; returns their path.
        `own`: they are the run's own. Those of earlier settings of the recipe stay, under their hash."""
        path = self.run_dir / samples_file(checkpoint, task, "" if own else settings)
        if own and settings and path.exists():
            here = [r for r in self.rows() if (r["checkpoint"], r["task"]) == (checkpoint, task)]
            before = [r.get("settings", "") for r in here if not r.get("differs")]
            if before and settings not in before:
                path.replace(self.run_dir / samples_file(checkpoint, task, before[-1]))
        write_jsonl(path, rows)
        return path

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Held from reading the known rows to writing the last new one."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            with open(self.run_dir / ".scores.lock", "w") as file:
                lock(file)
                yield
        except OSError as error:
            raise WorkError(f"cannot write {self.path}: {why_unwritten(error)}") from error


def halves(settings: str) -> tuple[str, str]:
    """What was measured, and how it was rendered, of a settings hash."""
    task, _, rendering = settings.partition("-")
    return task, rendering


def samples_file(checkpoint: str, task: str, settings: str = "") -> Path:
    """`samples/<checkpoint>/<task>.jsonl`, below the run; of scores beside its own, with their settings."""
    return Path("samples") / checkpoint / f"{task}{settings and f'.{settings}'}.jsonl"


def scores(run: Path, task: str, metric: str) -> dict[str, list[dict[str, Any]]]:
    """settings hash -> rows of `task` and `metric` with a value, in the order of writing: those that the
    recipe of the run asks for or, where there are none, all.

    Raises `WorkError`, see `ScoreStore.rows`.
    """
    rows = [
        row
        for row in ScoreStore(run).rows()
        if (row["task"], row["metric"]) == (task, metric) and number(row["value"]) is not None
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in [row for row in rows if not row.get("differs")] or rows:
        groups.setdefault(row.get("settings", ""), []).append(row)
    return groups


def unscored(
    failures: Iterable[Any],
    rows: Iterable[dict[str, Any]] = (),
    kept: dict[str, str] | None = None,
    tasks: Sequence[str] = (),
) -> list[Unscored]:
    """The rows `failures` of unscored.jsonl, and each of `tasks` of the checkpoints `kept` (name -> digest)
    that scores.jsonl, `rows`, does not have: equal weights are scored under one name."""
    found = {(r.get("checkpoint"), r.get("task")): r.get("reason") for r in failures if isinstance(r, dict)}
    found = {key: str(why or "") for key, why in found.items() if all(isinstance(name, str) for name in key)}
    scored = {(row.get(key), row.get("task")) for row in rows for key in ("checkpoint", "digest")}
    for name, digest in (kept or {}).items():
        for task in tasks:
            if not {(name, task), (digest, task)} & scored:
                found.setdefault((name, task), "")
    return sorted(Unscored(*key, reason) for key, reason in found.items())


def first_line(error: BaseException) -> str:
    """The message of `error` in one line; of an unexpected one, with its kind."""
    text = " ".join(str(error).strip().splitlines()[:1])
    if isinstance(error, PosttrainError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _lines(path: Path) -> list[Any]:
    try:
        return read_jsonl(path)
    except WorkError as error:
        raise WorkError(f"{error}; {REMEDY}") from error


def _is_score(row: Any) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in NAMED):
        return False
    if not isinstance(row.get("differs", {}), dict):
        return False
    if not all(isinstance(row.get(key, ""), str) for key in ("settings", "digest")):
        return False
    value = row.get("value", "")  # readers pass over NaN as over null
    return type(row.get("step")) is int and (value is None or type(value) in (int, float))


def _key(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """`Score.key` of a row."""
    return (row.get("digest") or row["checkpoint"], row["task"], row["metric"], row.get("settings", ""))
