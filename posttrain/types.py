"""The plain values that cross the floors. No torch, no I/O, no behaviour beyond their own arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(slots=True)
class Example:
    """One training or evaluation row after its columns are mapped.

    `messages` for conversations, or `prompt`/`completion` for plain text (`prompt` may be empty: plain
    language modelling). `answer` is the reference answer where the source has one. `p` is an external
    success probability in [0, 1] (the fraction of rollouts judged correct). `extra` holds the columns that
    a reward may ask for (`tests`, `kwargs` ...). `where` is `file:line` or `dataset[row]`, for error messages.
    `partial`: the reply stops short, as a prefix that ends at the first wrong step does; it has no end of turn.
    """

    messages: list[Message] | None = None
    prompt: str | None = None
    completion: str | None = None
    answer: str | None = None
    p: float | None = None
    where: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    partial: bool = False


@dataclass(slots=True)
class Verdict:
    """What a scorer says of one completion.

    `value` is in [0, 1] for verifiers, any finite number for shaping terms, None when the checker itself failed
    (`timeout`, `error`). A completion that was too costly to judge is `scored` 0 with the reason `limit`.
    `ms` is the time the check took in milliseconds.
    """

    value: float | None
    status: Literal["scored", "unparseable", "timeout", "error"] = "scored"
    reason: str = ""
    ms: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Problem:
    """One evaluation item: what the model is asked, and what the scorer needs to judge the reply.

    `messages` or `prompt` as in `Example`. `group` clusters problems that are not independent
    (templates, sources) for the intervals; empty means independent.
    """

    id: str
    answer: str
    messages: list[Message] | None = None
    prompt: str | None = None
    group: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Score:
    """One row of `scores.jsonl`: a metric of a checkpoint on a task.

    `low`/`high` bound the mean at the 95 % level, over `n` problems. `settings` is the hash of
    everything that could change the value: task options, sampling, template, versions of the scorer.
    """

    checkpoint: str
    step: int
    task: str
    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    settings: str = ""
    digest: str = ""

    def key(self) -> tuple[str, str, str, str]:
        """Two rows with one key are the same measurement."""
        return (self.digest or self.checkpoint, self.task, self.metric, self.settings)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
