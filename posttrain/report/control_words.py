"""What remains of the effect of a loss after its two controls: a sentence.

The controls are those that a reviewer asks for: the cross-entropy run sampled at its best temperature, and
stopped at its best checkpoint. Left out: pictures (`control_plots.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posttrain.report.differences import Difference, Place, comparable, difference, mean_score
from posttrain.report.measured import controls
from posttrain.report.story import Story, mean_curves
from posttrain.report.text import loss_name, share, signed, span


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
        alike = comparable(ce.task, ce.large, [s.end for s in others])
        if alike is None:
            continue
        best = max(zip(alike.means, others, strict=True), key=lambda pair: pair[0])[1]
        lead = difference(ce.task, ce.large, ce.end, best.end)
        if lead is not None and lead.mean > 0 and lead.clear:
            found += _after_controls(ce, best)
    return found


def _after_controls(ce: Story, other: Story) -> list[str]:
    """Its differences are at the problems of the lead, as far as each has a value of them."""
    k, last = ce.large, [ce.last.checkpoint]
    heated, stepped, both = _options(ce, last), _options(ce, own=True), _options(ce)
    parts = []
    for name, options in (("its best temperature", heated), ("its best checkpoint", stepped)):
        if len(options.places) > 1:
            reaches = " reaches" if not parts else ""
            d = difference(ce.task, k, options.best[2], other.end, among=[ce.end])
            parts.append(f"at {name} ({options.best[1]}){reaches} {_against(d)}")
    if min(len(heated.places), len(stepped.places)) > 1:
        singles = [heated.best[2], stepped.best[2]]
        ends = ce.end, other.end
        above = [difference(ce.task, k, at, both.best[2], among=ends) for at in singles]
        more = both.whole and all(map(_above, above))
        parts.append(_both(both, more, lambda at: difference(ce.task, k, at, other.end, among=[ce.end])))
    if not parts:
        return []
    ends = f"{other.label} {'is' if other.chosen else 'ends'} at {share(other.last.value)}"
    return [f"Controls at pass@{k} ({ends}): {ce.label} {'; '.join(parts)}.{_alike(ce, other, both)}"]


def _above(d: Difference | None) -> bool:
    return d is not None and d.mean > 0 and not d.equal


def _both(options: Options, more: bool, against: Callable[[list[Place]], Difference | None]) -> str:
    """What the choice of both adds to that of either; `more`: whether it is better."""
    if not options.whole:
        return "both together are not measured at every checkpoint"
    _, chosen, at = options.best
    return f"at both ({chosen}) {_against(against(at))}" if more else "at both no more"


def _alike(ce: Story, other: Story, of_ce: Options) -> str:
    """The comparison in which both sides have the same choices; empty where they have not."""
    of_other = _options(other)
    same = of_ce.whole and of_other.whole and of_ce.heats == of_other.heats
    if not same or min(len(of_ce.places), len(of_other.places)) < 2:
        return ""
    (_, chosen, at), (_, _, there) = of_other.best, of_ce.best
    d = difference(ce.task, ce.large, at, there, among=[ce.end, other.end])
    return f" With the same choices {other.label} ({chosen}) reaches {_against(d)}."


def _against(d: Difference | None) -> str:
    """`.886, .084 [.070, .098] lower`; both values, where they are of a part of the problems only."""
    if d is None or not d.known:
        return "a score of other problems"
    return f"{share(d.a)}{f' against {share(d.b)}' if d.left_out else ''}, {_distance(d)}"


def _distance(d: Difference | None) -> str:
    """How far a control, or the other side, is from what it is compared with."""
    if d is not None and d.equal:
        return f"just as high{span(d)}"
    if d is None or d.clear is None:
        return "at an unknown distance"
    if not d.clear:
        return f"no clear difference ({signed(-d.mean)}{span(d, -1.0)})"
    return f"{share(abs(d.mean))}{span(d, 1.0 if d.mean > 0 else -1.0)} {'lower' if d.mean > 0 else 'higher'}"


@dataclass(frozen=True, slots=True)
class Options:
    """What a side may choose from at pass@large: (mean over the seeds, its name, a place a seed); the
    temperatures; and whether every checkpoint was measured at each."""

    places: list[tuple[float, str, list[Place]]]
    heats: list[float]
    whole: bool

    @property
    def best(self) -> tuple[float, str, list[Place]]:
        return max(self.places, key=lambda place: place[0])


def _options(story: Story, checkpoints: list[str] | None = None, own: bool = False) -> Options:
    """The checkpoints of a side (default: all after the start), each at every temperature that all seeds
    have, or at their `own`."""
    runs, task, large = story.side.runs, story.task, story.large
    tables = [controls(run, task) for run in runs]
    heats = [] if own else [t for t in tables[0] if all(t in table for table in tables)]
    table = mean_curves(runs, task)
    steps = {c: points[large].step for c, points in table.items() if large in points}
    steps = {c: step for c, step in steps.items() if step > 0 and (checkpoints is None or c in checkpoints)}
    found = []
    for checkpoint, step in steps.items():
        for heat in heats or [None]:
            at = [None if heat is None else table[heat] for table in tables]
            places = [Place(run, checkpoint, settings) for run, settings in zip(runs, at, strict=True)]
            if (value := mean_score(task, large, places)) is not None:
                parts = [f"T = {heat:g}"] if heat is not None else []
                parts += [f"step {step:,}"] if checkpoints is None else []
                found.append((value, ", ".join(parts), places))
    alike = comparable(task, large, [places for _, _, places in found])
    if alike is None:
        return Options([], heats, False)
    found = [(value, name, at) for value, (_, name, at) in zip(alike.means, found, strict=True)]
    return Options(found, heats, len(found) == len(steps) * max(len(heats), 1))
