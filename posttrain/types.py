"""The plain values that rooms pass to each other. No torch, no I/O, no behaviour."""

from __future__ import annotations

if __name__ == "types":  # the standard library wanted its own: a file of this folder is run by its path
    raise SystemExit("error: run a stage by `posttrain run RECIPE`, or as `python -m posttrain.sft RECIPE`")

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NotRequired, TypedDict


class Message(TypedDict):
    """One turn of a conversation. Other keys of a data set are kept for the template."""

    role: str
    """`system`, `developer`, `user`, `assistant` or `tool`."""
    content: str
    reasoning_content: NotRequired[str]
    """What the assistant thinks before it answers; a data set may also call it `reasoning` or `thinking`."""
    tool_calls: NotRequired[list[dict[str, Any]]]
    """In OpenAI's form, the arguments as an object."""
    trained: NotRequired[bool]
    """False for an assistant's turn that is context only."""


@dataclass(slots=True)
class Example:
    """One training or evaluation row after its columns are mapped.

    A conversation has `messages`; plain text has `prompt` and `completion` (`prompt` may be empty: plain
    language modelling).
    """

    messages: list[Message] | None = None
    prompt: str | None = None
    completion: str | None = None
    answer: str | None = None
    """The reference answer, if the source has one."""
    p: float | None = None
    """An external success probability in [0, 1]: the fraction of rollouts that were judged correct."""
    where: str = ""
    """`file:line` or `dataset[row]`, for error messages."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Columns that a reward may need (`tests`, `kwargs`, ...)."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Tools that the assistant may call, in OpenAI's form."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Values for the template besides messages and tools, e.g. `enable_thinking`."""
    ignored: tuple[str, ...] = ()
    """Keys with content that the source says to ignore."""
    unused: tuple[str, ...] = ()
    """Columns with content that nothing reads."""
    partial: bool = False
    """The reply is cut short, such as a prefix that ends at the first wrong step; it has no end of turn."""


@dataclass(slots=True)
class Verdict:
    """The result of judging one completion."""

    value: float | None
    """In [0, 1] for verifiers, any finite number for shaping terms; None if the check itself failed."""
    status: Literal["scored", "unparseable", "timeout", "error"] = "scored"
    """`timeout` and `error` are failed checks. A completion that is too costly to judge is `scored` 0, with
    the reason `limit`.
    """
    reason: str = ""
    ms: float = 0.0
    """Duration of the check in milliseconds."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Problem:
    """One item of an evaluation task: `messages` or `prompt` as in `Example`, and what judging the reply
    needs.
    """

    id: str
    answer: str
    messages: list[Message] | None = None
    prompt: str | None = None
    group: str = ""
    """Problems of one group (a template, a source) are not independent, which the intervals account for.
    Empty: independent of all others.
    """
    extra: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] = field(default_factory=list)
    """As in `Example`."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """As in `Example`."""
    plain: bool = False
    """The model continues `prompt` as it is, without a chat template."""
    prefill: str = ""
    """The first words of the reply, which the model continues."""
    set: str = ""
    """The set of instances that it belongs to; of each set the mean is taken."""
    version_of: str = ""
    """Problems with the same name here are versions of one."""


@dataclass(slots=True)
class Score:
    """One row of `scores.jsonl`: a metric of a checkpoint on a task."""

    checkpoint: str
    step: int
    task: str
    metric: str
    value: float
    n: int
    """Number of problems."""
    low: float | None = None
    """Lower bound of the 95 % interval of the mean."""
    high: float | None = None
    settings: str = ""
    """Hash of the task, its options, the sampler, the template and the dtype: task options, sampling,
    template, versions of the scorer."""
    digest: str = ""
    """Hash of the checkpoint's weights."""
    differs: dict[str, Any] = field(default_factory=dict)
    """Settings of the task that differ from those of the run's recipe, and their values; empty: its own."""

    def key(self) -> tuple[str, str, str, str]:
        """Rows with the same key are the same measurement."""
        return (self.digest or self.checkpoint, self.task, self.metric, self.settings)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
