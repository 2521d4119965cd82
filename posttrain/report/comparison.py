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

from posttrain.report.differences import (
    Difference,
    comparable,
    difference,
    difference_of_changes,
    differences,
    reverse,
)
from posttrain.report.numbers import crossings, curve, headline_k
from posttrain.report.story import Story
from posttrain.report.text import loss_name, share, shared, signed, span, unknown

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
    ks = set.intersection(*({*curve(p.run, s.task, p.checkpoint)} for s in told for p in s.end))
    for k in dict.fromkeys((min(ks), headline_k(ks)) if ks else ()):
        if (top := _highest(told, k)) is None:
            continue
        first, second, d = top
        over = _over(d, name[id(second)])
        parts.append(f"pass@{k} is highest for {name[id(first)]} ({share(d.b)}{over})")
    if not parts:
        return []
    chosen = f"chosen among {len(told)} on the problems shown, which flatters it"
    which = " that all seeds of a side have" * any(s.uneven for s in told)
    return [f"Last checkpoints{which}: {'; '.join(dict.fromkeys(parts))}; {chosen}."]


def _highest(told: list[Story], k: int) -> tuple[Story, Story, Difference] | None:
    """The side with the highest pass@k, the next one, and how far apart they are, over the problems that all
    sides have a value of; None where not all have such a score, or they are of different problems."""
    ends = [s.end for s in told]
    found = comparable(told[0].task, k, ends)
    if found is None:
        return None
    i, j = sorted(range(len(told)), key=lambda at: -found.means[at])[:2]
    d = difference(told[0].task, k, ends[j], ends[i], among=ends if found.left_out else ())
    assert d is not None, "all have a score"
    return (told[i], told[j], d) if d.mean >= 0 or d.equal else (told[j], told[i], reverse(d))


def _over(d: Difference, second: str) -> str:
    if d.equal:
        return f"; equal to {second}{span(d)}"
    above = f"; {'' if d.clear else 'not clearly '}above {second} by {share(d.mean)}{span(d)}"
    return above + (unknown(d) if d.clear is None else "")


def speaks_of(a: Story, b: Story) -> str:
    """The beginning of a sentence: what it holds for."""
    counts = len(a.side.runs), len(b.side.runs)
    what = "Last checkpoints"
    if (same := {run.path.resolve() for run in a.side.runs}) == {r.path.resolve() for r in b.side.runs}:
        runs = "one run" if len(same) == 1 else f"the same {len(same)} seeds"
        return f"Step {a.last.step:,} and step {b.last.step:,} of {runs}"
    if a.chosen or b.chosen or a.uneven or b.uneven:
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
    found = differences(a.task, a.end, b.end)
    if not found:
        return f"{a.side.label} and {b.side.label} share no k, so they are not compared."
    large = headline_k(found)
    recipes = min(len(a.side.runs), len(b.side.runs)) > 1
    parts = []
    for k in dict.fromkeys((min(found), large)):
        d = found[k]
        pair = f"{a.side.label} and {b.side.label}"
        if d.equal:
            parts.append(f"{pair} are equal at pass@{k} ({signed(d.mean)}{span(d)})")
        elif d.clear is None:
            why = d.reason or "no interval"
            why += f"; {signed(d.mean)}{shared(d)}" if d.known else ""
            parts.append(f"whether {pair} differ at pass@{k} is not known ({why})")
        elif not d.clear:
            parts.append(f"no clear difference between {pair} at pass@{k} ({signed(d.mean)}{span(d)})")
        else:
            ahead, sign = (b, 1.0) if d.mean > 0 else (a, -1.0)
            leads = "leads" if recipes else "is ahead at"
            parts.append(f"{ahead.side.label} {leads} pass@{k} by {share(sign * d.mean)}{span(d, sign)}")
    return f"{speaks_of(a, b)}{against}: {'; '.join(parts)}.{_where(a, b, found)}"


def crossed(found: dict[int, Difference]) -> list[float]:
    """Where the curves behind the differences `found` cross; empty where these are not all of the same
    problems."""
    alike = len({(d.problems, d.left_out) for d in found.values() if d.known}) == 1
    known = all(d.known for d in found.values())
    return crossings({k: d.mean for k, d in found.items()}) if alike and known else []


def attempts(ns: Iterable[float]) -> str:
    """`13`, `1.3`, `720`: a crossover is known to two digits at most."""
    return ", ".join(f"{n:.2g}" if n < 10 else f"{float(f'{n:.2g}'):.0f}" for n in ns)


def _where(a: Story, b: Story, found: dict[int, Difference]) -> str:
    """From which N on a side is ahead, where it clearly is at the larger k of the headline: one k of many
    that is clear may be chance. Empty where only one k is shared."""
    ks, at = list(found), crossed(found)
    large = headline_k(ks)
    if len(at) > 1:
        return f" The curves cross at N ≈ {attempts(at)}."
    if at:
        sign = 1.0 if next(d for d in reversed(found.values()) if not d.equal).mean > 0 else -1.0
        winner = b if sign > 0 else a
        beyond = [k for k in ks if k >= at[0] and sign * found[k].mean > 0]
        clear = [k for k in beyond if found[k].clear]
        cross = f"urves cross at N ≈ {attempts(at)}"
        if large not in clear:
            known = all(found[k].clear is not None for k in beyond)
            what = "no clear difference beyond it" if known else "the noise is not known"
            if clear:
                what = f"beyond it the difference is clear only at N = {', '.join(f'{k:,}' for k in clear)}"
            return f" The c{cross}; {what}."
        since = max((k for k in ks if k < large and k not in clear), default=0)
        until = min((k for k in ks if k > large and k not in clear), default=math.inf)
        stretch = [k for k in clear if since < k < until]
        till = "on" if stretch[-1] == ks[-1] else f"to {stretch[-1]:,}"
        return f" From N = {stretch[0]:,} {till} {winner.side.label} is ahead (c{cross})."
    for winner, sign in ((a, -1.0), (b, 1.0)):
        if len(ks) > 1 and all(sign * d.mean > 0 and d.clear for d in found.values()):
            return f" {winner.side.label} is ahead at every N from {ks[0]} to {ks[-1]}."
    return ""


def _expected_effect(entropy: list[Story], limited: list[Story]) -> list[str]:
    """Where it is not plain from the sentences about each side: a sentence for each pair."""
    if any(s.verdict in ("single", "unranked") for s in [*entropy, *limited]):
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
    changes = (ce.change.mean, s.change.mean) if d is None or not d.left_out else (d.a, d.b)
    losses = f"{share(-changes[1])} against {share(-changes[0])} from its best"
    if d is None or d.clear is None:
        why = "" if d is None or not d.reason else f" ({d.reason}{shared(d)})"
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
