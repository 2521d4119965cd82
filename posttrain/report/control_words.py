"""What remains of the effect of a loss after its two controls: a sentence.

The controls are those that a reviewer asks for: the cross-entropy run sampled at its best temperature, and
stopped at its best checkpoint. Left out: pictures (`control_plots.py`).
"""

from __future__ import annotations

from posttrain.report.differences import Difference, Place, difference, mean_score
from posttrain.report.measured import controls
from posttrain.report.story import Story, mean_curves
from posttrain.report.text import listed, loss_name, share, span


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
    last = ce.last.checkpoint
    by_heat, by_step = _places(ce, [last]), _places(ce, None, own=True)
    both = _places(ce, None)
    reached, leads = [], []
    for name, places in (("its best temperature", by_heat), ("its best checkpoint", by_step), ("both", both)):
        if len(places) < 2 or (name == "both" and len(places) in (len(by_heat), len(by_step))):
            continue
        value, chosen, at = max(places, key=lambda place: place[0])
        d = difference(task, k, at, other.end)
        if d is not None:
            reached.append(f"{share(value)} at {name} ({chosen})")
            leads.append(_lead(d))
    if not reached:
        return []
    return [
        f"Controls at pass@{k}: {ce.label} reaches {listed(reached)}; {other.label}, which ends at"
        f" {share(other.last.value)}, {listed(leads)}."
    ]


def _lead(d: Difference) -> str:
    """What is left of a lead: `leads by .049 [.030, .068]`."""
    if not d.clear:
        return f"has no clear lead ({share(d.mean)}{span(d)})"
    if d.mean > 0:
        return f"leads by {share(d.mean)}{span(d)}"
    return f"is behind by {share(-d.mean)}{span(d, -1.0)}"


def _places(
    story: Story, checkpoints: list[str] | None, own: bool = False
) -> list[tuple[float, str, list[Place]]]:
    """(mean pass@large, what it is called, a place a seed) of every checkpoint (default: all but the start
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
