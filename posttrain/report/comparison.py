"""Sentences about several sides on one task: which is ahead, from which N on, and whether an expected effect
is there.

Last checkpoints are compared. A sentence about one run a side speaks of these runs; with several seeds a side
it speaks of their recipes. Where a confidence-limited run is compared with a cross-entropy run, a sentence
states how far the effect of arXiv 2502.07154 (cross-entropy loses pass@N at large N, the confidence-limited
loss keeps it) is there. Left out: a stage against its start (`chains.py`), controls (`control_words.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from posttrain.report.differences import Difference, difference, difference_of_changes
from posttrain.report.numbers import crossovers, headline_k
from posttrain.report.story import Story, mean_curves
from posttrain.report.text import loss_name, share, signed, span, unknown

EFFECT = "The expected effect (cross-entropy loses pass@N at large N, the confidence-limited loss keeps it)"
MOST_PAIRS = 3
"""With more sides than this besides the first, the leaders are named instead of every pair."""


def comparisons(told: list[Story]) -> list[str]:
    """Each side against the first of cross-entropy, or else the first of all; the leaders of many; then the
    expected effect."""
    plain = [s for s in told if loss_name(s.run) == "cross_entropy"]
    base = [*plain, *told][0]
    if len(told) > MOST_PAIRS + 1:
        found = _leaders(told)
    else:
        named = base.side.label + ", the first listed" * (not plain)
        named += " (cross-entropy)" * (bool(plain) and not named.startswith("Cross-entropy"))
        pairs = [(s, f", {s.side.label} against {named}") for s in told if s is not base]
        found = [compare(base, s, pair * (len(told) > 2)) for s, pair in pairs]
    entropy = [s for s in plain if s.small < s.large]
    limited = [s for s in told if loss_name(s.run) == "confidence_limited" and s.small < s.large]
    return found + (_expected_effect(entropy, limited) if entropy and limited else [])


def _leaders(told: list[Story]) -> list[str]:
    several = any(len(s.side.runs) > 1 for s in told)
    name = {id(s): s.label + " (one run)" * (several and len(s.side.runs) == 1) for s in told}
    parts = []
    for pick in (lambda s: s.last_small, lambda s: s.last):
        first, second = sorted(told, key=lambda s: -pick(s).value)[:2]
        best = pick(first)
        d = difference(first.task, int(best.metric.partition("@")[2]), second.end, first.end)
        over = "" if d is None else _over(d, name[id(second)])
        parts.append(f"{best.metric} is highest for {name[id(first)]} ({share(best.value)}{over})")
    chosen = f"chosen among {len(told)} on the problems shown, which flatters it"
    return [f"Last checkpoints: {'; '.join(dict.fromkeys(parts))}; {chosen}."]


def _over(d: Difference, second: str) -> str:
    if d.equal:
        return f"; equal to {second}{span(d)}"
    above = f"; {'' if d.clear else 'not clearly '}above {second} by {share(d.mean)}{span(d)}"
    return above + (unknown(d) if d.clear is None else "")


def speaks_of(a: Story, b: Story) -> str:
    """The beginning of a sentence: what it holds for."""
    counts = len(a.side.runs), len(b.side.runs)
    what = "Last checkpoints"
    if a.run is b.run:
        return f"Step {a.last.step:,} and step {b.last.step:,} of one run"
    if a.chosen or b.chosen:
        what = f"Step {a.last.step:,} of {a.label} and step {b.last.step:,} of {b.label}"
    if min(counts) > 1:
        seeds = f"{counts[0]}" if counts[0] == counts[1] else f"{counts[0]} and {counts[1]}"
        return f"{what}, {seeds} seeds a side"
    if max(counts) > 1:
        one, other = (a, b) if counts[0] == 1 else (b, a)
        return f"{what}, one run of {one.label} and the mean of {other.label}, over problems alone"
    return f"{what}, these two runs"


def compare(a: Story, b: Story, against: str = "") -> str:
    """Which side is ahead at which N. `against`: which two of several are compared, for the beginning."""
    first, second = (mean_curves(s.side.runs, s.task)[s.last.checkpoint] for s in (a, b))
    shared = [k for k in first if k in second]
    if not shared:
        return f"{a.side.label} and {b.side.label} share no k, so they are not compared."
    large = headline_k(shared)
    recipes = min(len(a.side.runs), len(b.side.runs)) > 1
    parts = []
    for k in dict.fromkeys((shared[0], large)):
        d = _last(a, b, k)
        pair = f"{a.side.label} and {b.side.label}"
        if d.equal:
            parts.append(f"{pair} are equal at pass@{k} ({signed(d.mean)}{span(d)})")
        elif d.clear is None:
            why = d.reason or "no interval"
            parts.append(f"whether {pair} differ at pass@{k} is not known ({why}; {signed(d.mean)})")
        elif not d.clear:
            parts.append(f"no clear difference between {pair} at pass@{k} ({signed(d.mean)}{span(d)})")
        else:
            ahead, sign = (b, 1.0) if d.mean > 0 else (a, -1.0)
            leads = "leads" if recipes else "is ahead at"
            parts.append(f"{ahead.side.label} {leads} pass@{k} by {share(sign * d.mean)}{span(d, sign)}")
    gaps = {k: second[k].value - first[k].value for k in shared}
    return f"{speaks_of(a, b)}{against}: {'; '.join(parts)}.{_where(a, b, gaps, crossovers(first, second))}"


def _last(a: Story, b: Story, k: int) -> Difference:
    found = difference(a.task, k, a.end, b.end)
    assert found is not None, "k is shared"
    return found


def attempts(ns: Iterable[float]) -> str:
    """`13`, `1.3`, `720`: a crossover is known to two digits at most."""
    return ", ".join(f"{n:.2g}" if n < 10 else f"{float(f'{n:.2g}'):.0f}" for n in ns)


def _where(a: Story, b: Story, gaps: dict[int, float], crossings: list[float]) -> str:
    """From which N on a side is ahead, where it clearly is at the larger k of the headline: one k of many
    that is clear may be chance. Empty where only one k is shared."""
    shared = list(gaps)
    large = headline_k(shared)
    if len(crossings) > 1:
        return f" The curves cross at N ≈ {attempts(crossings)}."
    if crossings:
        sign = 1.0 if next(g for g in reversed(gaps.values()) if g != 0.0) > 0 else -1.0
        winner = b if sign > 0 else a
        beyond = [k for k in shared if k >= crossings[0] and sign * gaps[k] > 0]
        clear = [k for k in beyond if _last(a, b, k).clear]
        cross = f"urves cross at N ≈ {attempts(crossings)}"
        if large not in clear:
            known = all(_last(a, b, k).clear is not None for k in beyond)
            what = "no clear difference beyond it" if known else "the noise is not known"
            if clear:
                what = f"beyond it the difference is clear only at N = {', '.join(f'{k:,}' for k in clear)}"
            return f" The c{cross}; {what}."
        since = max((k for k in shared if k < large and k not in clear), default=0)
        until = min((k for k in shared if k > large and k not in clear), default=math.inf)
        stretch = [k for k in clear if since < k < until]
        till = "on" if stretch[-1] == shared[-1] else f"to {stretch[-1]:,}"
        return f" From N = {stretch[0]:,} {till} {winner.side.label} is ahead (c{cross})."
    for winner, sign in ((a, -1.0), (b, 1.0)):
        ahead = len(shared) > 1 and all(sign * gap > 0 for gap in gaps.values())
        if ahead and all(_last(a, b, k).clear for k in shared):
            return f" {winner.side.label} is ahead at every N from {shared[0]} to {shared[-1]}."
    return ""


def _expected_effect(entropy: list[Story], limited: list[Story]) -> list[str]:
    """Where it is not plain from the sentences about each side: a sentence for each pair."""
    if any(s.verdict == "single" for s in [*entropy, *limited]):
        return []
    found = []
    for ce in entropy:
        if ce.verdict != "falls":
            how = {"keeps": "keeps", "peaks last": "ends at its best"}.get(
                ce.verdict, "shows no clear fall of"
            )
            how += "" if ce.verdict == "peaks last" else f" pass@{ce.large}"
            found.append(f"{EFFECT} cannot show here: {ce.label} {how}.")
            continue
        found += [_falls(ce, s) for s in limited if s.verdict in ("falls", "unclear") and s.large == ce.large]
    return found


def _falls(ce: Story, s: Story) -> str:
    """How the fall of one compares with that of the other."""
    pair = [(story.at(story.best.checkpoint), story.end) for story in (ce, s)]
    d = difference_of_changes(s.task, s.large, *pair)
    losses = f"{share(-s.change.mean)} against {share(-ce.change.mean)} from its best"
    if d is None or d.clear is None:
        why = "" if d is None or not d.reason else f" ({d.reason})"
        return f"{s.label} loses {losses} of pass@{s.large}; the noise of the difference is not known{why}."
    if not d.clear:
        return (
            f"{s.label} and {ce.label} lose pass@{s.large}, with no clear difference ({losses};"
            f" {signed(d.mean)}{span(d)})."
        )
    less = "less" if d.mean > 0 else "more"
    sign = 1.0 if d.mean > 0 else -1.0
    end = "" if d.mean > 0 else f" {EFFECT} is reversed."
    return (
        f"{s.label} loses {less} pass@{s.large} than {ce.label}: {losses} (difference {share(sign * d.mean)}"
        f"{span(d, sign)}).{end}"
    )
