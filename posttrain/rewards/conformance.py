"""Does a reward hold what it promises? Runs it over its own corpus of right, spoiled and hostile completions.

A corpus is `corpora/<name>.jsonl` beside the reward's module, or one folder up: a row a line with `kind` (gold, spoiled, hostile),
`completion`, the columns of the reward, and where needed `options`, `status`, `value`, `category`, `note`. gold must
give 1.0 (or `value`), spoiled less; hostile less, in time, with its `status`. Left out: judging the corpus itself.
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

KINDS = ("gold", "spoiled", "hostile")
ABOUT = ("kind", "category", "note", "options", "status", "value")
"""Keys of a corpus row that are no columns of the reward."""
GRACE_S = 0.5
"""Beyond the limit of a check (on a busy machine a multiple of it, see pool.py): to notice and to kill."""


@dataclass
class Surprise:
    """A row on which the reward did not do what the corpus says."""

    line: int
    kind: str
    category: str
    completion: str
    expected: str
    verdict: dict[str, Any]


@dataclass
class Conformance:
    """The result of one reward on its corpus. Rates are shares; times are milliseconds a check."""

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
    """The corpus file of a reward, or None if it ships none."""
    folder = Path(inspect.getfile(spec.fn)).parent
    for base in (folder, folder.parent):
        path = base / "corpora" / f"{spec.name.rpartition(':')[2]}.jsonl"
        if path.is_file():
            return path
    return None


def read_corpus(path: Path) -> list[dict[str, Any]]:
    """The rows of a corpus, long completions spelled out. Raises `RequestError` with the line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["completion"] = _spelled_out(row["completion"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"{path}:{number}: {error}") from None
        if row.get("kind") not in KINDS:
            raise RequestError(f"{path}:{number}: kind must be one of {', '.join(KINDS)}")
        rows.append(row | {"line": number})
    return rows


def _spelled_out(text: Any) -> str:
    """`{"before", "repeat", "times", "after"}` stands for a text too long to write down."""
    if isinstance(text, str):
        return text
    return text.get("before", "") + text["repeat"] * int(text["times"]) + text.get("after", "")


def conformance(
    spec: Spec, workers: int | None = None, done: Callable[[], None] = lambda: None
) -> Conformance:
    """Runs `spec` over its corpus. `done` is called after each check."""
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
            columns = {k: v for k, v in row.items() if k not in (*ABOUT, "line", "completion")}
            examples.append(reward_example(columns, f"{path}:{row['line']}"))
        texts = [row["completion"] for row in rows]
        for row, verdict in zip(
            rows, score_batch(bound, texts, examples, workers=workers, done=done), strict=True
        ):
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
    kind, wanted = row["kind"], row.get("value", 1.0)
    setattr(found, kind, getattr(found, kind) + 1)
    right = verdict.value is not None and abs(verdict.value - wanted) <= 1e-6
    if "value" not in row and kind != "gold":
        right = verdict.value is None or verdict.value < 1
    said = "limit" if verdict.reason == "limit" else verdict.status
    status = row.get("status", said)
    slow = kind == "hostile" and verdict.ms > limit_ms
    found.false_rejects += kind == "gold" and not right
    found.false_accepts += kind != "gold" and not right
    found.wrong_status += status != said
    found.too_slow += slow
    if right and status == said and not slow:
        return
    value = f"{wanted:g}" if kind == "gold" or "value" in row else "below 1"
    expected = value + (f", {status}" if "status" in row else "") + (", in time" if slow else "")
    text = row["completion"] if len(row["completion"]) <= 200 else row["completion"][:200] + "..."
    found.surprises.append(
        Surprise(row["line"], kind, row.get("category", ""), text, expected, asdict(verdict))
    )
