"""Sentences about several runs on one task: which is ahead, from which N on, and whether an expected effect
is there.

Last checkpoints are compared. Where a confidence-limited run is compared with a cross-entropy run and the
effect of arXiv 2502.07154 is absent (cross-entropy loses pass@N at large N, the confidence-limited loss keeps
it), a sentence states that. Left out: a stage against its start (`chains.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from posttrain.report.numbers import Difference, crossovers, curves, difference
from posttrain.report.story import LARGE, Story
from posttrain.report.text import loss_name, share, span

MOST_PAIRS = 3
"""With more runs than this besides the first, the leaders are named instead of every pair."""


def comparisons(told: list[Story]) -> list[str]:
    """Each run against the first, or the leaders of many; then the expected effect if it is absent."""
    many = len(told) > MOST_PAIRS + 1
    found = _leaders(told) if many else [compare(told[0], other) for other in told[1:]]
    entropy = [s for s in told if loss_name(s.run) == "cross_entropy" and s.small < s.large]
    limited = [s for s in told if loss_name(s.run) == "confidence_limited" and s.small < s.large]
    return found + (_expected_effect(entropy, limited) if entropy and limited else [])


def _leaders(told: list[Story]) -> list[str]:
    parts = []
    for pick in (lambda s: s.last_small, lambda s: s.last):
        first = max(told, key=lambda s: pick(s).value)
        parts.append(f"{pick(first).metric} is highest for {first.label} ({share(pick(first).value)})")
    return [f"Last checkpoints: {'; '.join(dict.fromkeys(parts))}."]


def compare(a: Story, b: Story) -> str:
    """Which run is ahead at which N."""
    first = curves(a.run, a.task)[a.last.checkpoint]
    second = curves(b.run, b.task)[b.last.checkpoint]
    shared = [k for k in first if k in second]
    if not shared:
        return f"{a.label} and {b.label} share no k, so they are not compared."
    large = max((k for k in shared if k <= LARGE), default=shared[0])
    parts = []
    for k in dict.fromkeys((shared[0], large)):
        d = _last(a, b, k)
        if d.mean == 0.0 or d.clear is False:
            pair = f"{a.label} and {b.label} differ at pass@{k}"
            parts.append(f"{pair} by no more than noise ({share(d.mean)}{span(d)})")
        else:
            ahead, sign = (b, 1.0) if d.mean > 0 else (a, -1.0)
            parts.append(f"{ahead.label} leads pass@{k} by {share(sign * d.mean)}{span(d, sign)}")
    gaps = {k: second[k].value - first[k].value for k in shared}
    return f"Last checkpoints: {'; '.join(parts)}.{_where(a, b, gaps, crossovers(first, second))}"


def _last(a: Story, b: Story, k: int) -> Difference:
    found = difference(a.task, k, (a.run, a.last.checkpoint), (b.run, b.last.checkpoint))
    assert found is not None, "k is shared"
    return found


def attempts(ns: Iterable[float]) -> str:
    """`13`, `1.3`, `720`: a crossover is known to two digits at most."""
    return ", ".join(f"{n:.2g}" if n < 10 else f"{float(f'{n:.2g}'):.0f}" for n in ns)


def _where(a: Story, b: Story, gaps: dict[int, float], crossings: list[float]) -> str:
    """From which N on a run is ahead, if that holds at the largest N; empty where only one k is shared."""
    shared = list(gaps)
    if len(crossings) > 1:
        return f" The curves cross at N ≈ {attempts(crossings)}."
    noise = _last(a, b, shared[-1]).clear is False
    if crossings and noise:
        return f" The curves cross at N ≈ {attempts(crossings)}; beyond it they differ by no more than noise."
    if crossings:
        sign = 1.0 if next(g for g in reversed(gaps.values()) if g != 0.0) > 0 else -1.0
        start = next(k for k in shared if k >= crossings[0] and sign * gaps[k] > 0)
        winner = b if sign > 0 else a
        return f" From N = {start} on {winner.label} is ahead (curves cross at N ≈ {attempts(crossings)})."
    noise = noise or _last(a, b, shared[0]).clear is False
    for winner, sign in ((a, -1.0), (b, 1.0)):
        if len(shared) > 1 and not noise and all(sign * gap > 0 for gap in gaps.values()):
            return f" {winner.label} is ahead at every N from {shared[0]} to {shared[-1]}."
    return ""


def _expected_effect(entropy: list[Story], limited: list[Story]) -> list[str]:
    kept = [s for s in limited if s.verdict in ("keeps", "peaks last")]
    fell = [s for s in entropy if s.verdict == "falls"]
    if any(s.verdict == "single" for s in [*entropy, *limited]):
        return []
    if len(fell) == len(entropy) and len(kept) == len(limited):
        return []
    which = [f"{s.label} does not lose pass@{s.large}" for s in entropy if s not in fell]
    which += [f"{s.label} loses pass@{s.large}" for s in limited if s not in kept]
    return [
        "The expected effect (cross-entropy loses pass@N at large N, the confidence-limited loss keeps it)"
        f" is not there: {'; '.join(which)}."
    ]
