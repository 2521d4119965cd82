"""What remains of the effect of a loss after its two controls: a sentence.

The controls are those that a reviewer asks for: the cross-entropy run sampled at its best temperature, and
stopped at its best checkpoint. Left out: pictures (`control_plots.py`).
"""

from __future__ import annotations

from posttrain.report.differences import Difference, Place, difference, mean_score
from posttrain.report.measured import controls
from posttrain.report.story import Story, mean_curves
from posttrain.report.text import loss_name, share, signed, span

Choice = tuple[float, str, list[Place]]
"""The mean of pass@large over the seeds, what was chosen, and a place a seed."""


def remains(told: list[Story]) -> list[str]:
    """For each cross-entropy side, against the side of another loss that ends highest at the same large k:
    what is left of its lead once cross-entropy has its best checkpoint and its best temperature.

    Empty where cross-entropy was not measured at several checkpoints or temperatures, or where the other does
    not lead.
    """
    found = []
    for ce in told:
        others = [
            s
            for s in told
            if s.large == ce.large > ce.small and loss_name(s.run) not in ("", "cross_entropy")
        ]
        if loss_name(ce.run) != "cross_entropy" or not others:
            continue
        best = max(others, key=lambda s: s.last.value)
        lead = difference(ce.task, ce.large, ce.end, best.end)
        if lead is not None and lead.mean > 0 and lead.clear:
            found += _after_controls(ce, best)
    return found


def _after_controls(ce: Story, other: Story) -> list[str]:
    k, task = ce.large, ce.task
    choices = {
        "its best temperature": _places(ce, [ce.last.checkpoint]),
        "its best checkpoint": _places(ce, None, own=True),
        "both": _places(ce, None),
    }
    parts, before = [], None
    for name, places in choices.items():
        if len(places) < 2 or (name == "both" and len(choices["its best temperature"]) < 2):
            continue
        value, chosen, at = max(places, key=lambda place: place[0])
        if name == "both" and before is not None and value <= before:
            parts.append("at both no more")
            continue
        before = max(value, before or 0.0)
        d = difference(task, k, at, other.end)
        reaches = " reaches" if not parts else ""
        parts.append(f"at {name} ({chosen}){reaches} {share(value)}, {_less(d)}")
    if not parts:
        return []
    return [
        f"Controls at pass@{k}, beside the {share(other.last.value)} that {other.label} ends at: {ce.label}"
        f" {'; '.join(parts)}.{_alike(ce, other, choices['both'])}"
    ]


def _alike(ce: Story, other: Story, of_ce: list[Choice]) -> str:
    """The comparison in which both sides have the same choices."""
    of_other = _places(other, None)
    if len(of_other) < 2 or len(of_ce) < 2:
        return ""
    (best, chosen, at), (_, _, there) = (max(found, key=lambda c: c[0]) for found in (of_other, of_ce))
    d = difference(ce.task, ce.large, at, there)
    return f" With the same choices {other.label} ({chosen}) reaches {share(best)}, {_less(d)}."


def _less(d: Difference | None) -> str:
    """How far a control, or the other side, is from what it is compared with."""
    if d is None or d.clear is None:
        return "at an unknown distance"
    if not d.clear:
        return f"no clear difference ({signed(-d.mean)}{span(d, -1.0)})"
    return f"{share(abs(d.mean))}{span(d, 1.0 if d.mean > 0 else -1.0)} {'less' if d.mean > 0 else 'more'}"


def _places(story: Story, checkpoints: list[str] | None, own: bool = False) -> list[Choice]:
    """Every checkpoint (default: all but the start
    model) and, unless `own`, every temperature that all seeds have."""
    found = []
    tables = [controls(run, story.task) for run in story.side.runs]
    heats = [t for t in tables[0] if all(t in table for table in tables)] if not own else []
    steps = {
        c: curve for c, curve in mean_curves(story.side.runs, story.task).items() if story.large in curve
    }
    for checkpoint, curve in steps.items():
        step = curve[story.large].step
        if step == 0 or (checkpoints is not None and checkpoint not in checkpoints):
            continue
        for heat in heats or [None]:
            places = [
                Place(run, checkpoint, None if heat is None else table[heat])
                for run, table in zip(story.side.runs, tables, strict=True)
            ]
            value = mean_score(story.task, story.large, places)
            if value is not None:
                parts = [f"T = {heat:g}"] if heat is not None else []
                parts += [f"step {step:,}"] if checkpoints is None else []
                found.append((value, ", ".join(parts), places))
    return found
