"""The completions a run sampled while it trained, read from `rollouts/` one file at a time: rows, groups, kinds.

A file is one generation batch (`step-000013.jsonl`, named by the first optimizer step it trains) or one chunk of a
sampling stage (`chunk-000012.jsonl`). Torn lines and lost files are passed over and named in `unread`. Left out: how
a completion looks (`rollout_view.py`, `tables.py`).
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
"""Statuses of a check that failed itself; they say nothing of the completion."""


@dataclass(slots=True)
class Part:
    """What one component of the reward says."""

    label: str
    value: float | None
    status: str
    reason: str

    @property
    def said(self) -> str:
        """`format 0: no <answer> tag` in one line."""
        value = "–" if self.value is None else f"{self.value:.4g}".replace("-", "−")
        words = [self.status if self.status != "scored" else "", self.reason]
        why = ", ".join(word for word in words if word)
        return " ".join(f"{self.label} {value}{f': {why}' if why else ''}".split())


@dataclass(slots=True)
class Completion:
    """One row, each field of its own type or empty; `raw` is the row as it was written."""

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
    parts: list[Part] = field(default_factory=list)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Completion:
        parts = row.get("components")
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
            parts=[
                Part(str(label), number(p.get("value")), _text(p.get("status")), _text(p.get("reason")))
                for label, p in (parts.items() if isinstance(parts, dict) else ())
                if isinstance(p, dict)
            ],
        )

    @property
    def failed(self) -> bool:
        """A check failed, or nothing says what the completion is worth."""
        return self.reward is None or any(part.status in FAILED for part in self.parts)

    @property
    def cut(self) -> bool:
        return self.finish == "length"

    @property
    def notes(self) -> list[str]:
        """Reward, advantage, length and end, each a few words."""
        found = ["reward –" if self.reward is None else f"reward {self.reward:.4g}".replace("-", "−")]
        found += [] if self.advantage is None else [f"advantage {self.advantage:+.3g}".replace("-", "−")]
        found += [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        found += ["cut off"] if self.cut else []
        return found + (["not trained"] if not self.trained and "advantage" in self.raw else [])

    @property
    def place(self) -> str:
        """Where the prompt comes from: source, then file and line."""
        return " ".join(p for p in (self.source, _text(self.raw.get("where"))) if p)

    @property
    def prompt_key(self) -> object:
        """The same for all samples of one prompt, in any file of the run."""
        position = whole(self.raw.get("position"))
        return self.prompt if position is None else position


KINDS: dict[str, Callable[[Completion], bool]] = {
    "all": lambda c: True,
    "right": lambda c: c.success is True,
    "wrong": lambda c: c.success is False,
    "failed": lambda c: c.failed,
    "cut": lambda c: c.cut,
    "dropped": lambda c: not c.trained,
}
"""What `--where` may name. `dropped`: sampled, but left out of training (its group, its check or its length)."""


class Rollouts:
    """`rollouts/` of one run. `kind` is what a file is: `step` or `chunk`; `files` maps its number to its path."""

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
            count = "1 line is" if len(torn) == 1 else f"{len(torn):,} lines are"
            self._note(f"rollouts/{path.name}: {count} no row (the first: line {torn[0]})")

    def groups(self, number: int) -> Iterator[list[Completion]]:
        """The samples of one prompt, prompt by prompt, in the order of the file; one file is held at a time."""
        found: dict[object, list[Completion]] = {}
        for i, row in enumerate(self.rows(number)):
            group = row.get("group")
            key = (group, row.get("round")) if isinstance(group, int) else ("alone", i)
            found.setdefault(str(key), []).append(Completion.of(row))
        yield from found.values()

    def sources(self) -> list[str]:
        """Names of the sources in the last file."""
        last = next(reversed(self.files), None)
        rows = () if last is None else self.rows(last)
        return list(dict.fromkeys(_text(row.get("source")) for row in rows if row.get("source")))

    def _note(self, text: str) -> None:
        if text not in self.unread:
            self.unread.append(text)


def pick(rollouts: Rollouts, each: int = 3, files: int = 3) -> list[tuple[str, list[Completion]]]:
    """Of the last `files` files: highest and lowest reward, cut off, check failed; `each` at most.

    Equal rewards go by advantage: a rare right answer and a mistake on an easy prompt come first; then by age, the
    latest first. A completion stands in one list, a prompt once a list.
    """
    latest = list(rollouts.files)[-files:][::-1]
    rows = [Completion.of(row) for n in latest for row in rollouts.rows(n)]
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
        chosen: dict[object, Completion] = {}
        for c in candidates:
            if len(chosen) < each and id(c) not in used and c.prompt_key not in chosen:
                chosen[c.prompt_key] = c
        used |= {id(c) for c in chosen.values()}
        found.append((title, list(chosen.values())))
    return [(title, chosen) for title, chosen in found if chosen]


def whole(value: Any) -> int | None:
    """`value` where it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
