"""What the numbers of one or several runs say, in sentences computed from them, and what they do not say.

A sentence names the checkpoints it compares and the interval of the difference. Where a confidence-limited run
stands beside a cross-entropy run and the effect of arXiv 2502.07154 (pass@N falls for the one, stays for the
other) is absent, a sentence says so. Left out: any judgement over training seeds; `caveats` says that too.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.evaluate.curves import Curve, Difference, crossovers, curves, difference
from posttrain.evaluate.rundata import RunData
from posttrain.types import Score

LARGE = 256
"""The k the headlines speak of: the largest one measured up to this."""
SMALL_CHANGE = 0.05
"""pass@k that ends less than this below its best counts as kept, however sure the loss is (our choice)."""
LOSSES = {
    "cross_entropy": ("Cross-entropy", ""),
    "confidence_limited": ("Confidence-limited", "n"),
    "dft": ("DFT", ""),
    "power": ("Power", "exponent"),
    "focal": ("Focal", "exponent"),
    "maxrl": ("MaxRL", "exponent"),
}
SYMBOL = {"n": "N", "power": "a", "focal": "γ", "maxrl": "T"}


def share(value: float) -> str:
    """A proportion the way tables print it: .165, 1.000, −.329."""
    text = f"{abs(value):.3f}"
    text = text[1:] if text.startswith("0") else text
    return f"−{text}" if value < 0 and text != ".000" else text


def signed(value: float) -> str:
    """A difference: +.010, −.329."""
    return ("+" if value > 0 else "") + share(value)


def span(d: Difference, sign: float = 1.0) -> str:
    """` [−.360, −.300]`: the interval of the paired difference (times `sign`), nothing where unknown."""
    if d.low is None or d.high is None:
        return ""
    low, high = sorted((sign * d.low, sign * d.high))
    return f" [{share(low)}, {share(high)}]"


def loss_name(run: RunData) -> str:
    loss = run.recipe.get("loss")
    return str(loss.get("name", "")) if isinstance(loss, dict) else ""


def label(run: RunData) -> str:
    """The run by its loss (`Confidence-limited N = 256`), by its name where no loss is known."""
    loss = loss_name(run)
    if loss not in LOSSES:
        return run.name
    text, key = LOSSES[loss]
    value = run.recipe["loss"].get(key) if key else None
    if isinstance(value, (int, float)):
        return f"{text} {SYMBOL['n' if key == 'n' else loss]} = {value:g}"
    return text


def labels(runs: list[RunData]) -> list[str]:
    """One label a run, distinct: by loss, by name where two share a loss, by path where they share a name."""
    for choice in (label, lambda run: run.name, lambda run: str(run.path)):
        found = [choice(run) for run in runs]
        if len(set(found)) == len(found):
            return found
    return [f"{run.name} ({i + 1})" for i, run in enumerate(runs)]


@dataclass(slots=True)
class Story:
    """One run on one task: its curve at the best checkpoint by pass@`large`, at the last one, and the change."""

    run: RunData
    label: str
    task: str
    small: int
    large: int
    count: int
    first: Score
    best: Score
    last: Score
    best_small: Score | None
    last_small: Score
    change: Difference | None
    """From the best checkpoint to the last one."""
    gain: Difference | None
    """From the first checkpoint to the last one."""

    @property
    def verdict(self) -> str:
        """`falls`, `keeps`, `peaks last` (the best is the last), `single` (one checkpoint)."""
        if self.count == 1:
            return "single"
        if self.change is None or self.best.checkpoint == self.last.checkpoint:
            return "peaks last"
        falls = self.change.mean <= -SMALL_CHANGE and self.change.clear is not False
        return "falls" if falls else "keeps"


def story(run: RunData, name: str, task: str) -> Story | None:
    """None where the last scored checkpoint has no pass@k."""
    table = curves(run, task)
    if not table:
        return None
    *_, last = table
    small = min(table[last])
    large = max((k for k in table[last] if k <= LARGE), default=small)
    first = next(c for c in table if large in table[c])
    best = max((c for c in table if large in table[c]), key=lambda c: table[c][large].value)
    gain, change = (
        difference(task, large, (run, c), (run, last)) if c != last else None for c in (first, best)
    )
    return Story(
        run,
        name,
        task,
        small,
        large,
        count=sum(large in points for points in table.values()),
        first=table[first][large],
        best=table[best][large],
        last=table[last][large],
        best_small=table[best].get(small),
        last_small=table[last][small],
        change=change,
        gain=gain,
    )


def findings(runs: list[RunData]) -> list[str]:
    """The headline sentences: per task one a run, then one a comparison. Never empty."""
    names = labels(runs)
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    found: list[str] = []
    for task in tasks:
        prefix = f"{task}: " if len(tasks) > 1 else ""
        told = [s for run, name in zip(runs, names, strict=True) if (s := story(run, name, task))]
        found += [prefix + describe(s) for s in told]
        found += [prefix + text for text in _comparisons(told)]
    return found or [_loss_only(run, name) for run, name in zip(runs, names, strict=True)]


def describe(s: Story) -> str:
    """The sentence on one run."""
    big, one = f"pass@{s.large}", f"pass@{s.small}"
    last, best = f"step {s.last.step:,}", f"step {s.best.step:,}"
    two = s.small != s.large
    beside = f" ({one} {share(s.last_small.value)})" if two else ""
    if s.verdict == "single":
        return (
            f"{s.label}: {big} {share(s.last.value)}{beside} at {last}, the only scored checkpoint."
        )
    if s.verdict == "peaks last":
        rise = (
            f"{share(s.first.value)} → {share(s.last.value)} ({signed(s.gain.mean)}{span(s.gain)})"
        )
        return f"{s.label}: {big} {rise} from step {s.first.step:,} to {last}, its best{beside}."
    if s.verdict == "keeps":
        return (
            f"{s.label}: keeps {big} at {share(s.last.value)} (best {share(s.best.value)} at {best};"
            f" {share(s.change.mean)}{span(s.change)})"
            + (f", with {one} {share(s.last_small.value)}." if two else ".")
        )
    move = f"{share(s.best.value)} → {share(s.last.value)} ({share(s.change.mean)}{span(s.change)})"
    if not two or s.best_small is None:
        return f"{s.label}: {big} falls {move} from its best at {best} to {last}."
    return (
        f"{s.label}: {one} {share(s.best_small.value)} → {share(s.last_small.value)} while {big} falls"
        f" {move}, from its best at {best} to {last}."
    )


def _comparisons(told: list[Story]) -> list[str]:
    found = [compare(told[0], other) for other in told[1:]]
    entropy = [s for s in told if loss_name(s.run) == "cross_entropy" and s.small < s.large]
    limited = [s for s in told if loss_name(s.run) == "confidence_limited" and s.small < s.large]
    return found + (_expected_effect(entropy, limited) if entropy and limited else [])


def compare(a: Story, b: Story) -> str:
    """Who is ahead where, at the last checkpoints of two runs."""
    first = curves(a.run, a.task)[a.last.checkpoint]
    second = curves(b.run, b.task)[b.last.checkpoint]
    shared = [k for k in first if k in second]
    if not shared:
        return f"{a.label} and {b.label} share no k, so they are not compared."
    parts = []
    for k in dict.fromkeys((shared[0], _large(shared))):
        d = difference(a.task, k, (a.run, a.last.checkpoint), (b.run, b.last.checkpoint))
        if d.mean == 0.0 or d.clear is False:
            parts.append(f"pass@{k} differs by no more than noise ({share(d.mean)}{span(d)})")
        else:
            ahead, sign = (b, 1.0) if d.mean > 0 else (a, -1.0)
            parts.append(f"{ahead.label} leads pass@{k} by {share(sign * d.mean)}{span(d, sign)}")
    return f"Last checkpoints: {'; '.join(parts)}.{_where(a, b, first, second, shared)}"


def _where(a: Story, b: Story, first: Curve, second: Curve, shared: list[int]) -> str:
    """From which N on one is ahead; nothing where the curves touch or only one k is shared."""
    gaps = {k: second[k].value - first[k].value for k in shared}
    crossings = crossovers(first, second)
    if len(crossings) > 1:
        return f" The curves cross at N ≈ {', '.join(f'{n:.2g}' for n in crossings)}."
    if crossings:
        sign = 1.0 if next(g for k, g in reversed(gaps.items()) if g != 0.0) > 0 else -1.0
        start = next(k for k in shared if k >= crossings[0] and sign * gaps[k] > 0)
        winner = b if sign > 0 else a
        return f" From N = {start} on {winner.label} is ahead (curves cross at N ≈ {crossings[0]:.2g})."
    for winner, sign in ((a, -1.0), (b, 1.0)):
        if len(shared) > 1 and all(sign * gap > 0 for gap in gaps.values()):
            return f" {winner.label} is ahead at every N from {shared[0]} to {shared[-1]}."
    return ""


def _large(ks: Curve | list[int]) -> int:
    return max((k for k in ks if k <= LARGE), default=min(ks))


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


def _loss_only(run: RunData, name: str) -> str:
    """No pass@k at all: the other scores in brief, else what the loss did."""
    if run.scores:
        last = max(run.scores, key=lambda s: s.step)
        rows = [s for s in run.scores if s.checkpoint == last.checkpoint][:4]
        listed = ", ".join(f"{s.task} {s.metric} {s.value:.4g}" for s in rows)
        return f"{name}: {listed} at step {last.step:,}."
    lines = [row for row in run.metrics.get("train", []) if isinstance(row.get("loss"), float)]
    if not lines:
        return f"{name}: no checkpoint scored and no step logged yet (status: {run.status})."
    return (
        f"{name}: no checkpoint scored yet; training loss {lines[0]['loss']:.3g} →"
        f" {lines[-1]['loss']:.3g} from step {lines[0]['step']:,} to {lines[-1]['step']:,}."
    )


def caveats(runs: list[RunData]) -> list[str]:
    """What the headlines must not be read as."""
    found = []
    names = labels(runs)
    if any(s.low is not None for run in runs for s in run.scores):
        found.append(
            "Bands and brackets are 95 % intervals over the test problems (of the paired difference where two"
            " checkpoints are compared), not over training seeds: every curve is one training run. A best"
            " checkpoint is chosen on the problems it is shown on, which flatters it a little."
        )
    for run, name in zip(runs, names, strict=True):
        if run.status not in ("finished", "unknown"):
            found.append(
                f"{name}: the run is {run.status}{_progress(run)}; its last checkpoint is not its end."
            )
        for task, hashes in run.settings.items():
            if len(hashes) > 1:
                found.append(
                    f"{name}: {task} was scored under {len(hashes)} settings; rows may not compare."
                )
        for task in run.tasks:
            cut = next(reversed(run.rows(task).values()), {}).get("truncated")
            if cut is not None and cut.value > 0.05:
                found.append(
                    f"{name}: {cut.value:.0%} of the {task} completions hit the length limit."
                )
        found += [f"{name}: {text}" for text in run.unread[:3]]
    return found


def _progress(run: RunData) -> str:
    lines = run.metrics.get("train")
    total = run.run.get("steps")
    return (
        f" at step {lines[-1]['step']:,} of {total:,}" if lines and isinstance(total, int) else ""
    )
