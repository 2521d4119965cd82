"""Tests a reward on its own corpus of right, spoiled and hostile completions.

A corpus is a file `corpora/<name>.jsonl` beside the module of the reward, or one folder up. Each line is a
row with `kind` (gold, spoiled or hostile), `completion`, the columns of the reward, and if needed `options`,
`status`, `value`, `category` and `note`. A gold row must score 1.0 (or `value`); a spoiled row less; a
hostile row less, within the time limit and with its `status`. Left out: whether the corpus itself is right.
"""

from __future__ import annotations

import inspect
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.data.shapes.prompts import reward_example
from posttrain.errors import RequestError
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.engine.pool import STARVED
from posttrain.rewards.registry import Spec, bind
from posttrain.types import Verdict

ROW_KINDS = ("gold", "spoiled", "hostile")
NOT_COLUMNS = ("kind", "category", "note", "options", "status", "value", "line", "completion")
"""Keys of a corpus row that are not columns of the reward."""
GRACE_S = 0.5
"""Seconds allowed beyond the longest time a check may take, to notice the overrun and kill the worker."""


@dataclass
class Surprise:
    """A row on which the verdict differs from what the corpus expects."""

    line: int
    kind: str
    category: str
    completion: str
    expected: str
    verdict: dict[str, Any]


@dataclass
class Conformance:
    """The result of one reward on its corpus. Rates are in [0, 1]; times are milliseconds per check."""

    name: str
    skipped: str = ""
    gold: int = 0
    spoiled: int = 0
    hostile: int = 0
    false_rejects: int = 0
    false_accepts: int = 0
    wrong_status: int = 0
    too_slow: int = 0
    median_ms: float = 0.0
    max_ms: float = 0.0
    surprises: list[Surprise] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.surprises

    @property
    def false_reject_rate(self) -> float:
        return self.false_rejects / max(1, self.gold)

    @property
    def false_accept_rate(self) -> float:
        return self.false_accepts / max(1, self.spoiled + self.hostile)

    def to_dict(self) -> dict[str, Any]:
        rates = {n: getattr(self, n) for n in ("false_reject_rate", "false_accept_rate", "holds")}
        return asdict(self) | rates


def corpus_of(spec: Spec) -> Path | None:
    """The corpus file of a reward; None if it has none."""
    folder = Path(inspect.getfile(spec.fn)).parent
    for base in (folder, folder.parent):
        path = base / "corpora" / f"{spec.name.rpartition(':')[2]}.jsonl"
        if path.is_file():
            return path
    return None


def read_corpus(path: Path) -> list[dict[str, Any]]:
    """The rows of a corpus, abbreviated completions expanded. Raises `RequestError` with file and line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["completion"] = _expanded(row["completion"])
        except KeyError as error:
            raise RequestError(f"{path}:{number}: the row has no {error}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise RequestError(f"{path}:{number}: {error}") from None
        if row.get("kind") not in ROW_KINDS:
            raise RequestError(f"{path}:{number}: kind must be one of {', '.join(ROW_KINDS)}")
        rows.append(row | {"line": number})
    return rows


def _expanded(text: Any) -> str:
    """A text, or `{"before", "repeat", "times", "after"}` in place of one that is too long to write out."""
    if isinstance(text, str):
        return text
    return text.get("before", "") + text["repeat"] * int(text["times"]) + text.get("after", "")


def conformance(
    spec: Spec, workers: int | None = None, done: Callable[[], None] = lambda: None
) -> Conformance:
    """Runs the reward over its corpus. `done` is called after each check."""
    found = Conformance(spec.name)
    found.skipped = spec.lacks
    path = corpus_of(spec)
    if path is None:
        found.skipped = found.skipped or "ships no corpus"
    if found.skipped or path is None:
        return found
    times: list[float] = []
    for options, rows in _by_options(read_corpus(path)):
        bound = bind(spec.name, options, f"{path}:{rows[0]['line']}")
        examples = []
        for row in rows:
            columns = {k: v for k, v in row.items() if k not in NOT_COLUMNS}
            examples.append(reward_example(columns, f"{path}:{row['line']}"))
        verdicts = score_batch(
            bound, [row["completion"] for row in rows], examples, workers=workers, done=done
        )
        for row, verdict in zip(rows, verdicts, strict=True):
            times.append(verdict.ms)
            _count(found, row, verdict, 1000 * (STARVED * spec.limit_s + GRACE_S))
    found.median_ms, found.max_ms = statistics.median(times), max(times)
    return found


def _by_options(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row.get("options", {}), sort_keys=True), []).append(row)
    return [(group[0].get("options", {}), group) for group in groups.values()]


def _count(found: Conformance, row: dict[str, Any], verdict: Verdict, limit_ms: float) -> None:
    """Adds one verdict to the counts, and to the surprises if it is not the expected one."""
    kind, wanted = row["kind"], row.get("value", 1.0)
    setattr(found, kind, getattr(found, kind) + 1)
    right = verdict.value is not None and abs(verdict.value - wanted) <= 1e-6
    if "value" not in row and kind != "gold":
        right = verdict.value is None or verdict.value < 1
    got = "limit" if verdict.reason == "limit" else verdict.status
    status = row.get("status", got)
    slow = kind == "hostile" and verdict.ms > limit_ms
    found.false_rejects += kind == "gold" and not right
    found.false_accepts += kind != "gold" and not right
    found.wrong_status += status != got
    found.too_slow += slow
    if right and status == got and not slow:
        return
    value = f"{wanted:g}" if kind == "gold" or "value" in row else "below 1"
    expected = value + (f", {status}" if "status" in row else "") + (", in time" if slow else "")
    text = row["completion"] if len(row["completion"]) <= 200 else row["completion"][:200] + "..."
    found.surprises.append(
        Surprise(row["line"], kind, row.get("category", ""), text, expected, asdict(verdict))
    )
