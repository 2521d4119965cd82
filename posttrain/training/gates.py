"""Which checkpoints failed a gate of `evaluate.gates`: a score that fell too far while another one was
trained for.

The result follows from scores.jsonl and the current gates alone: a resumed run reaches the same result, and
relaxing a gate removes its marks. `gates.jsonl` is a copy of the failures for readers without the recipe.
Left out: intervals; a drop within the noise of few problems fails too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from posttrain.errors import WorkError
from posttrain.recipe.sections import Gate
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.gates import record
from posttrain.rundir.scores import scores

log = logging.getLogger(__name__)
ROUNDING = 1e-9
"""0.8 - 0.7 is above 0.1 in floating point; a gate must not fail on that."""


class GateFailed(WorkError):
    """A gate with `action: stop` failed; the checkpoint is complete and scored."""


@dataclass(frozen=True)
class GateReport:
    """The result of checking the gates of a run."""

    failures: list[dict[str, Any]]
    """Rows of gates.jsonl, by step."""
    sentences: list[str]
    """A sentence for each of them."""
    passed: str
    """Name of the newest checkpoint that passed every gate, or empty."""
    missing: list[str]
    """A sentence for each gate that could not be checked for the newest checkpoint."""
    stop: str
    """Why the run must not go on, or empty."""


@dataclass(frozen=True)
class Measured:
    """The scores of one gate: by settings, then by step."""

    gate: Gate
    settings: list[dict[int, dict[str, Any]]]

    @classmethod
    def of(cls, run: Path, gate: Gate) -> Measured:
        found = [
            {row["step"]: row for row in rows}  # the one written last, of a checkpoint made twice
            for rows in scores(run, gate.task, gate.metric).values()
        ]
        return cls(gate, sorted(found, key=len, reverse=True))

    def steps(self) -> set[int]:
        return set().union(*self.settings)

    def verdict(self, step: int) -> dict[str, Any] | None:
        """The row of gates.jsonl if it failed; None where there is no score, or none to compare it with.

        Scores are compared under one settings hash, where several fit under the one of most checkpoints.
        """
        sign = 1 if self.gate.greater_is_better else -1
        for rows in self.settings:
            start = self.gate.against == "start"
            earlier = [row["value"] for at, row in rows.items() if (at == 0 if start else at <= step)]
            if step not in rows or not earlier:
                continue
            value, reference = rows[step]["value"], max(earlier, key=lambda v: sign * v)
            return {
                "checkpoint": rows[step]["checkpoint"],
                "step": step,
                "task": self.gate.task,
                "metric": self.gate.metric,
                "value": value,
                "against": self.gate.against,
                "reference": reference,
                "drop": sign * (reference - value),
                "max_drop": self.gate.max_drop,
                "action": self.gate.action,
            }
        return None


def fails(verdict: dict[str, Any]) -> bool:
    return verdict["drop"] > verdict["max_drop"] + ROUNDING


def check(run: Path, gates: Sequence[Gate], newest: str | None = None) -> GateReport:
    """Checks every scored checkpoint of `run`; `newest` is the one that was scored last.

    A run must stop where the newest score of a gate with `action: stop` fails; one that failed and recovered
    is marked.

    Raises:
        WorkError: scores.jsonl is damaged.
    """
    measured = [Measured.of(run, gate) for gate in gates]
    steps = sorted(set().union(*(m.steps() for m in measured)))
    failures, sentences, passed, stops = [], [], "", {}
    for step in steps:
        verdicts = [m.verdict(step) for m in measured]
        for i, verdict in enumerate(verdicts):
            if verdict is None:
                continue
            stops.pop(i, None)
            if fails(verdict):
                failures.append(verdict)
                sentences.append(sentence(i, verdict, gates[i].greater_is_better))
                if verdict["action"] == "stop":
                    stops[i] = sentences[-1]
        if all(verdict is not None and not fails(verdict) for verdict in verdicts):
            passed = verdicts[0]["checkpoint"]
    missing = [
        f"evaluate.gates[{i}]: {m.gate.task}/{m.gate.metric} of {newest} was not checked: "
        f"{_lacking(m, newest)}"
        for i, m in enumerate(measured)
        if newest is not None and m.verdict(_step(newest)) is None
    ]
    last = f"The last checkpoint that passed is {passed}" if passed else "No checkpoint passed"
    stop = (
        f"{'; '.join(stops.values())}. {last}. The run stops here until evaluate.gates is changed"
        if stops
        else ""
    )
    return GateReport(failures, sentences, passed, missing, stop)


def sentence(index: int, row: dict[str, Any], greater_is_better: bool) -> str:
    """A failure as a sentence for the log."""
    side = "below" if greater_is_better else "above"
    reference = "the start" if row["against"] == "start" else "the best so far"
    return (
        f"gate failed: {row['task']}/{row['metric']} of {row['checkpoint']} is {row['value']:.4g}, "
        f"{row['drop']:.4g} {side} {reference} ({row['reference']:.4g}); "
        f"evaluate.gates[{index}].max_drop is {row['max_drop']:g}"
    )


def enforce(run: Path, gates: Sequence[Gate], newest: str | None, main: bool) -> str:
    """Checks, records and logs the failures on the main process, and tells every rank.

    Returns the name of the newest checkpoint that passed (main process), or an empty string.

    Raises:
        GateFailed: the run must stop; on every rank, with the sentence of the main process.
    """
    passed = stop = ""
    if main:
        try:
            found = check(run, gates, newest)
            passed, stop = found.passed, found.stop
            for said, new in zip(found.sentences, record(run, found.failures), strict=True):
                if new:  # an earlier start has logged the others
                    log.warning("%s; the checkpoint cannot be chosen as the best", said)
            for said in found.missing:
                log.warning("%s", said)
        except Exception as error:  # the other ranks wait for an answer in any case
            log.error("the gates were not checked: %s", error)
    if gates:
        stop = _from_main(stop)
    if stop:
        raise GateFailed(stop)
    return passed


def _from_main(text: str) -> str:
    """The `text` of rank 0, on every rank."""
    box = [text]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def _step(name: str) -> int:
    match = ckpt.NAME.fullmatch(name)
    return int(match[1]) if match else -1


def _lacking(measured: Measured, newest: str) -> str:
    if _step(newest) not in measured.steps():
        return "it has no score"
    return "the start has no score under the same settings"
