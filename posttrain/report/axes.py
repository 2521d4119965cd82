"""What the horizontal axis of the curves over training counts: optimizer steps, or what they have cost.

    posttrain report runs/a runs/b --x flops

Equal steps are not equal compute. The counts are those of training/spent.py, in checkpoint.json and
metrics.jsonl: `tokens` are input tokens of forward and backward passes, without padding; `rollouts` are all
completions that were sampled. FLOPs are the usual estimate by parameters (Kaplan et al. 2020, arXiv
2001.08361, section 2.1; Hoffmann et al. 2022, arXiv 2203.15556). Where a token uses N parameters of which T
have a gradient, it is

    4 N + 2 T   for a token trained on: 2 N forward, 2 N backward, 2 T for the gradients; 6 N where all train
    2 N         for a token generated, or seen without gradient (old policy of RLVR, mismatched rows of KTO)
    2 R         for a token that the reference, of R parameters, sees

Left out of FLOPs: attention's part, which grows with the square of the length; reading a prompt before
sampling; what activation checkpointing computes twice; held-out passes and scoring; checks of rewards. A run
counts its own training alone: what its start model has cost is added where stages are drawn end to end, what
stages that only sample have cost nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from posttrain.base.files import number
from posttrain.errors import RequestError, did_you_mean
from posttrain.report.chains import offsets
from posttrain.rundir.reading import RunData

Counts = dict[str, float]
"""Counts of training/spent.py by name."""
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def counted(run: RunData) -> dict[int, Counts]:
    """step -> what the run had cost there, of every logged step and every checkpoint that is known."""
    rows: list[Any] = [*run.metrics.get("train", [])]
    for checkpoint in run.checkpoints:
        spent = checkpoint.info.get("spent")
        rows += spent if checkpoint.complete and isinstance(spent, list) else []
    found: dict[int, Counts] = {}
    for row in (row for row in rows if isinstance(row, dict)):
        counts = {k: n for k, v in row.items() if k.startswith("num_") and (n := number(v)) is not None}
        if "num_tokens" in counts and (step := number(row.get("step"))) is not None:
            found[int(step)] = counts
    return found


def _rollouts(run: RunData, counts: Counts) -> float | str:
    return counts.get("num_rollouts", 0) if run.stage == "rlvr" else f"a run of {run.stage} samples nothing"


def _flops(run: RunData, counts: Counts) -> float | str:
    """The estimate of the module's docstring."""
    sizes = run.run.get("parameters")
    sizes = sizes if isinstance(sizes, dict) else {}
    used, trained, reference = (number(sizes.get(key)) for key in ("used", "trained", "reference"))
    if used is None or trained is None:
        return "how many parameters of its model a token uses is not known (a mixture of experts)"
    seen = counts.get("num_reference_tokens", 0)
    if seen and reference is None:
        return "how many parameters its reference has is not known"
    alone = counts.get("num_forward_tokens", 0) + counts.get("num_sampled_tokens", 0)
    return (4 * used + 2 * trained) * counts["num_tokens"] + 2 * used * alone + 2 * (reference or 0) * seen


AXES: dict[str, tuple[str, Callable[[RunData, Counts], float | str]]] = {
    "step": ("step", lambda run, counts: 0.0),
    "tokens": ("tokens trained on, prompts included", lambda run, counts: counts["num_tokens"]),
    "rollouts": ("rollouts (completions sampled)", _rollouts),
    "flops": ("training FLOPs, estimated", _flops),
}
"""Name of an axis -> what is written under it, and its value, or why a run has none."""


def check(x: str) -> None:
    """Raises `RequestError` for an unknown axis."""
    if x not in AXES:
        raise RequestError(f"--x: unknown axis {x!r}{did_you_mean(x, AXES)}")


def cost(x: str, run: RunData, step: int) -> float:
    """Where `step` of `run` lies on the axis `x`; step 0 at 0.

    Raises:
        RequestError: it is not known, or the run can have no such value.
    """
    if x == "step" or step == 0:
        return step
    counts = counted(run)
    why: float | str = f"what it had cost at step {step:,} is not known, its checkpoints are gone"
    if not counts:
        why = "what it cost is not known; it is of an earlier version, or has lost its checkpoints"
    elif step in counts:
        why = AXES[x][1](run, counts[step])
    if isinstance(why, str):
        raise RequestError(f"--x {x}: {run.path}: {why}. Leave the run out, or take --x step")
    return why


@dataclass(frozen=True, slots=True)
class Axis:
    """The axis that the runs of a page share: `at` has for each run the place of one of its steps. `chained`:
    some run goes on where another one ends."""

    label: str
    at: list[Callable[[int], float]]
    chained: bool
    ticks: Callable[[float], str]


def axis(runs: list[RunData], x: str = "step") -> Axis:
    """The axis `x` for `runs`. Raises `RequestError` as `cost` does, for a run in which another begins."""
    begins = offsets(runs, partial(cost, x))
    at = [partial(_place, x, run, begin) for run, begin in zip(runs, begins, strict=True)]
    label = AXES[x][0] + (", stages end to end" if any(begins) else "")
    return Axis(label, at, any(begins), powers if x == "flops" else amount)


def _place(x: str, run: RunData, begin: float, step: int) -> float:
    return begin + cost(x, run, step)


def amount(value: float) -> str:
    """`9,000`, `250k`, `1.5M`, `2B`."""
    for power, letter in ((9, "B"), (6, "M"), (3, "k")):
        if value >= 10 ** max(power, 4):
            return f"{value / 10**power:,.4g}{letter}"
    return f"{value:,.0f}"


def powers(value: float) -> str:
    """`1.5·10¹⁸`."""
    if value <= 0:
        return "0"
    exponent = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10**exponent:.3g}·10{str(exponent).translate(SUPERSCRIPTS)}"
