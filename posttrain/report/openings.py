"""The curves of a run that was not scored before its first step: they begin with its start model's own score.

That is the score of the checkpoint that the run started from, of a run of the page or of the directory that
run.json names, under the same settings in full (problems, sampler, chat template, dtype); never under others.
Left out: what the stage changed, in words (`chains.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from posttrain.errors import RequestError
from posttrain.report.chains import named_parent, parent_of
from posttrain.report.measured import own_settings
from posttrain.report.numbers import Curve, curve, curves
from posttrain.rundir.reading import RunData, step_of

Start = tuple[RunData, str, str]
"""The run that another one started from, the checkpoint, and what the run is called."""


def starts(runs: list[RunData], names: Sequence[str]) -> list[Start | None]:
    """Where each run started; None where it is not known, or its directory cannot be read.

    A start model with `model.options` of the run is another model than the one that was scored.
    """
    return [None if run.section("model").get("options") else _start(run, runs, names) for run in runs]


def _start(run: RunData, runs: list[RunData], names: Sequence[str]) -> Start | None:
    if (there := parent_of(run, runs)) is not None:
        name = next(name for other, name in zip(runs, names, strict=True) if other is there[0])
        return *there, name
    named = named_parent(run)
    for place in named[0] if named else []:
        try:
            found = RunData.load(place)
        except (RequestError, OSError, ValueError):  # ValueError: no path at all
            continue
        return found, named[1], found.name
    return None


def opened(run: RunData, task: str, start: Start | None) -> tuple[dict[str, Curve], str]:
    """`curves` of a run, opened at step 0 by the scores of `start` where it has none of its own; and by what:
    `step 500 of NAME`, or empty."""
    table = curves(run, task)
    if start is None or not table or any(step_of(name) == 0 for name in run.rows(task)):
        return table, ""
    parent, checkpoint, name = start
    scored = curve(parent, task, checkpoint, own_settings(run, task))
    if not scored:
        return table, ""
    first = {k: replace(score, step=0) for k, score in scored.items()}
    step = step_of(checkpoint)
    # the run may have a checkpoint of the same name
    return {"": first} | table, f"{checkpoint if step is None else f'step {step:,}'} of {name}"


def note(opened_by: Sequence[tuple[str, str]]) -> str:
    """The part of a note about the openings of (label of a run, what opened it); a label is named where there
    are several runs."""
    groups: dict[str, list[str]] = {}
    for name, by in opened_by:
        groups.setdefault(by, []).append(name)
    groups.pop("", None)
    alone = len(opened_by) == 1
    return "".join(f"; opened by {by}{'' if alone else ': ' + ', '.join(g)}" for by, g in groups.items())
