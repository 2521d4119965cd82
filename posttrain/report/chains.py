"""What a stage did to the model it started from: which runs of a page follow one another, and the change in
pass@k.

The start of a stage is its own score of step 0, or else the score of the checkpoint it started from, under
the same settings. Left out: differences between runs side by side (`comparison.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from posttrain.report.differences import Difference, Place, difference
from posttrain.report.numbers import Curve, curve
from posttrain.report.story import Story
from posttrain.report.text import share, shared, signed, span, unknown
from posttrain.rundir.reading import RunData, step_of

FOLLOWING = ("dpo", "rlvr")
"""Stages that always start from another model: their step 0 is the end of a run that may not be on the
page."""


def parent_of(run: RunData, runs: list[RunData]) -> tuple[RunData, str] | None:
    """The run of the page that `run` started from, and the checkpoint.

    Found by path, or by name in the same folder if the folder has been moved.
    """
    named = named_parent(run)
    for place in named[0] if named else []:
        for other in runs:
            if other is not run and other.path.resolve() == place.resolve():
                return other, named[1]
    return None


def named_parent(run: RunData) -> tuple[list[Path], str] | None:
    """Where the run that `run` started from may be, and the checkpoint: the directory that run.json names, or
    one of that name beside the run, where both have been moved; None where there is none."""
    parent = run.run.get("parent")
    if not isinstance(parent, dict) or not parent.get("run"):
        return None
    path = Path(str(parent["run"]))
    return [path, run.path.resolve().parent / path.name], str(parent.get("checkpoint") or "")


def offsets(
    runs: list[RunData], cost: Callable[[RunData, int], float] = lambda run, step: step
) -> list[float]:
    """Where each run begins on an axis on which stages follow each other; all 0 where none does.

    `cost`: where a step lies on the axis of its own run.
    """
    found: dict[int, float] = {}

    def begin(run: RunData, seen: tuple[int, ...] = ()) -> float:
        if id(run) not in found:
            parent = parent_of(run, runs)
            known = parent is not None and id(parent[0]) not in (*seen, id(run))
            step = step_of(parent[1]) or 0 if known else 0
            found[id(run)] = begin(parent[0], (*seen, id(run))) + cost(parent[0], step) if known else 0
        return found[id(run)]

    return [begin(run) for run in runs]


@dataclass(frozen=True, slots=True)
class Chain:
    """A side, where it started on one task, and pass@k at both ends, means over the seeds.

    `starts` has a place a seed; `before` has the k that `after` has under the same settings; `parent` is that
    of the first seed, None where it is not on the page.
    """

    told: Story
    starts: list[Place]
    before: dict[int, float]
    after: dict[int, float]
    parent: tuple[RunData, str] | None


def chain(told: Story, runs: list[RunData]) -> Chain | None:
    """The chain of one side; None where the start of a seed is unknown, or nothing comparable was scored."""
    found = [_started(run, told, runs) for run in told.side.runs]
    if None in found:
        return None
    ks = [k for k in found[0][1] if all(k in before for _, before, _ in found)]
    if not ks:
        return None
    before = {k: fmean(at[k].value for _, at, _ in found) for k in ks}
    after = {k: fmean(at[k].value for _, _, at in found) for k in ks}
    return Chain(told, [start for start, _, _ in found], before, after, parent_of(told.run, runs))


def _started(run: RunData, told: Story, runs: list[RunData]) -> tuple[Place, Curve, Curve] | None:
    """Where one run started, pass@k there under the settings of its last checkpoint, and of that."""
    task, last = told.task, told.last.checkpoint
    parent = parent_of(run, runs)
    if parent is None and run.stage not in FOLLOWING:
        return None
    zero = next((c for c in run.rows(task) if step_of(c) == 0), None)
    places = [Place(run, zero)] if zero is not None and zero != last else []
    places += [Place(*parent)] if parent is not None else []
    after = curve(run, task, last)
    for place in places:
        scored = curve(place.run, task, place.checkpoint)
        before = {k: s for k, s in scored.items() if k in after and s.settings == after[k].settings}
        if before:
            return place, before, after
    return None


def sentence(c: Chain, name: str | None) -> str:
    """What changed from the start to the last checkpoint, at the smallest and largest k. `name` is the
    parent's label."""
    s = c.told
    ks = [k for k in dict.fromkeys((s.small, s.large)) if k in c.before] or [*c.before][-1:]
    moves = " and ".join(_move(c, k) for k in ks)
    text = f"{s.label}: from {_start(c, name)} to its own step {s.last.step:,}, {moves}"
    if s.verdict == "falls" and s.best.step > 0:
        text += f"; pass@{s.large} was best at step {s.best.step:,} ({share(s.change.a)}{shared(s.change)})"
    return f"{text}."


def _start(c: Chain, name: str | None) -> str:
    """`step 200 of Cross-entropy`; a run that is not on the page is called by its own name."""
    checkpoint = c.parent[1] if c.parent else ""
    if name is None and (named := named_parent(c.told.run)) is not None:
        name, checkpoint = named[0][0].name, named[1]
    step = step_of(checkpoint)
    if name is None or not checkpoint:
        return "its start"
    return f"{checkpoint if step is None else f'step {step:,}'} of {name}"


def _move(c: Chain, k: int) -> str:
    d = difference(c.told.task, k, c.starts, c.told.end, by_seed=True)
    assert d is not None, "k is shared"
    if not d.known:
        return f"pass@{k} {share(c.after[k])}{unknown(d)}"
    return f"pass@{k} {share(d.a)} → {share(d.b)} ({signed(d.mean)}{span(d)}{_noise(d)})"


def _noise(d: Difference) -> str:
    return unknown(d) if d.clear is None else "" if d.clear else ", within noise"
