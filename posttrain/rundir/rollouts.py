"""The completions that a run sampled, read from `rollouts/` one file at a time: rows, groups, filters.

A file is one generation batch (`step-000013.jsonl`, named after the first optimizer step that trains on it)
or one chunk of a sampling stage (`chunk-000012.jsonl`). Torn lines and lost files are skipped and listed in
`unread`. Left out: writing (`rollouts/records.py`) and how a completion is shown (`commands/rollouts.py`,
`report/tables.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.base.files import number

FILE = re.compile(r"(step|chunk)-(\d+)\.jsonl")
FAILED = ("timeout", "error")
"""Statuses of a check that failed itself, which tell nothing about the completion."""


@dataclass(slots=True)
class Component:
    """The verdict of one component of the reward; `value` is None where the check failed."""

    label: str
    value: float | None
    status: str
    reason: str

    @property
    def line(self) -> str:
        """`format 0: no <answer> tag`, in one line."""
        value = "–" if self.value is None else f"{self.value:.4g}".replace("-", "−")
        words = [self.status if self.status != "scored" else "", self.reason]
        why = ", ".join(word for word in words if word)
        return " ".join(f"{self.label} {value}{f': {why}' if why else ''}".split())


@dataclass(slots=True)
class RolloutRow:
    """One sampled completion as read from a file: each field has its type or is empty, whatever was written
    there.

    `raw` is the row as it was written.
    """

    raw: dict[str, Any]
    step: int | None
    prompt: str
    answer: str | None
    text: str
    tokens: int | None
    finish: str
    reward: float | None
    success: bool | None
    advantage: float | None
    trained: bool
    source: str
    components: list[Component] = field(default_factory=list)

    @classmethod
    def of(cls, row: dict[str, Any]) -> RolloutRow:
        components = row.get("components")
        success, answer = row.get("success"), row.get("answer")
        return cls(
            raw=row,
            step=whole(row.get("step")),
            prompt=_text(row.get("prompt")),
            answer=None if answer is None else _text(answer),
            text=_text(row.get("completion")),
            tokens=whole(row.get("tokens")),
            finish=_text(row.get("finish")),
            reward=number(row.get("reward")),
            success=success if isinstance(success, bool) else None,
            advantage=number(row.get("advantage")),
            trained=row.get("trained") is True,
            source=_text(row.get("source")),
            components=[
                Component(str(label), number(c.get("value")), _text(c.get("status")), _text(c.get("reason")))
                for label, c in (components.items() if isinstance(components, dict) else ())
                if isinstance(c, dict)
            ],
        )

    @property
    def failed(self) -> bool:
        """Whether a check failed, or the completion has no reward."""
        return self.reward is None or any(c.status in FAILED for c in self.components)

    @property
    def cut(self) -> bool:
        """Whether the completion was cut off at the length limit."""
        return self.finish == "length"

    @property
    def notes(self) -> list[str]:
        """Reward, advantage, length, how it ended: a few words each."""
        found = ["reward –" if self.reward is None else f"reward {self.reward:.4g}".replace("-", "−")]
        found += [] if self.advantage is None else [f"advantage {self.advantage:+.3g}".replace("-", "−")]
        found += [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        found += ["cut off"] if self.cut else []
        return found + (["not trained"] if not self.trained and "advantage" in self.raw else [])

    @property
    def place(self) -> str:
        """Where the prompt comes from: source, file and line."""
        return " ".join(p for p in (self.source, _text(self.raw.get("where"))) if p)

    @property
    def prompt_key(self) -> object:
        """Equal for all samples of one prompt, in any file of the run."""
        position = whole(self.raw.get("position"))
        return self.prompt if position is None else position


FILTERS: dict[str, Callable[[RolloutRow], bool]] = {
    "all": lambda c: True,
    "right": lambda c: c.success is True,
    "wrong": lambda c: c.success is False,
    "failed": lambda c: c.failed,
    "cut": lambda c: c.cut,
    "dropped": lambda c: not c.trained,
}
"""The choices of `--where`. `dropped`: sampled but left out of training (because of its group, check or
length)."""


class Rollouts:
    """`rollouts/` of one run. `kind` is what a file stands for, `step` or `chunk`; `files` maps numbers to
    paths.

    What cannot be read is added to `unread`.
    """

    def __init__(self, run_dir: str | Path, unread: list[str] | None = None) -> None:
        self.folder = Path(run_dir) / "rollouts"
        self.unread = unread if unread is not None else []
        found: dict[str, dict[int, Path]] = {"step": {}, "chunk": {}}
        try:
            paths = sorted(self.folder.iterdir())
        except OSError:
            paths = []
        for path in paths:
            if match := FILE.fullmatch(path.name):
                found[match[1]][int(match[2])] = path
        self.kind = "step" if found["step"] or not found["chunk"] else "chunk"
        self.files = dict(sorted(found[self.kind].items()))

    def __bool__(self) -> bool:
        return bool(self.files)

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows of one file, one at a time."""
        path, torn = self.files[number], []
        try:
            with path.open("rb") as file:
                for i, line in enumerate(file, 1):
                    row = _parsed(line)
                    if row is not None:
                        yield row
                    elif line.strip():
                        torn.append(i)
        except OSError as error:
            self._note(f"rollouts/{path.name}: {error.strerror or error}")
        if torn:
            count = "1 line" if len(torn) == 1 else f"{len(torn):,} lines"
            self._note(f"rollouts/{path.name}: {count} skipped, not JSON objects (the first: line {torn[0]})")

    def groups(self, number: int) -> Iterator[list[RolloutRow]]:
        """The samples of each prompt of one file, in the order of the file."""
        found: dict[object, list[RolloutRow]] = {}
        for i, row in enumerate(self.rows(number)):
            group = row.get("group")
            key = (group, row.get("round")) if isinstance(group, int) else ("alone", i)
            found.setdefault(str(key), []).append(RolloutRow.of(row))
        yield from found.values()

    def sources(self) -> list[str]:
        """Names of the sources in the latest file."""
        last = next(reversed(self.files), None)
        rows = () if last is None else self.rows(last)
        return list(dict.fromkeys(_text(row.get("source")) for row in rows if row.get("source")))

    def _note(self, text: str) -> None:
        if text not in self.unread:
            self.unread.append(text)


def pick(rollouts: Rollouts, each: int = 3, files: int = 3) -> list[tuple[str, list[RolloutRow]]]:
    """Examples from the last `files` files: highest and lowest reward, cut off, check failed; at most `each`
    of a kind.

    Equal rewards are ordered by advantage, so that a rare right answer and a mistake on an easy prompt come
    first; then the latest first. A completion is in one list only, a prompt at most once in each list.
    """
    latest = list(rollouts.files)[-files:][::-1]
    rows = [RolloutRow.of(row) for n in latest for row in rollouts.rows(n)]
    known = [c for c in rows if not c.failed]
    known.sort(key=lambda c: (c.reward, c.advantage or 0.0))
    falling = sorted(known, key=lambda c: (-c.reward, -(c.advantage or 0.0)))
    flat = bool(known) and known[0].reward == known[-1].reward
    best = f"Samples; every reward is {known[0].reward:g}" if flat else "Highest reward"
    wanted = [(best, falling)] + ([] if flat else [("Lowest reward", known)])
    wanted += [("Cut off", [c for c in rows if c.cut])]
    wanted += [("Check failed", [c for c in rows if c.failed])]
    used: set[int] = set()
    found = []
    for title, candidates in wanted:
        chosen: dict[object, RolloutRow] = {}
        for c in candidates:
            if len(chosen) < each and id(c) not in used and c.prompt_key not in chosen:
                chosen[c.prompt_key] = c
        used |= {id(c) for c in chosen.values()}
        found.append((title, list(chosen.values())))
    return [(title, chosen) for title, chosen in found if chosen]


def whole(value: Any) -> int | None:
    """`value` where it is an integer, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
