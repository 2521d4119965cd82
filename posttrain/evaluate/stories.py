"""What one run did on one task, as a value: its first, best and last checkpoint by pass@k; and how runs are named.

`findings.py` and `comparison.py` put it into sentences. Left out: pictures, and any judgement over training seeds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from posttrain.evaluate.curves import Difference, curves, difference
from posttrain.evaluate.printable import printable
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
WITH_K = {"pkpo": "k", "pass_at_k": "k", "confidence": "N"}
"""Advantages that read `policy.k`, and what it is called there."""


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
    return str(run.section("loss").get("name", ""))


def label(run: RunData) -> str:
    """The run by its loss or its stage's choices, by its name where neither is known."""
    return objective(run) or run.name


def objective(run: RunData) -> str:
    """`Confidence-limited N = 256`, `DPO dpo_norm`, `RLVR dapo, mean_std advantage`; empty where unknown."""
    loss = loss_name(run)
    if loss in LOSSES:
        text, key = LOSSES[loss]
        value = run.section("loss").get(key) if key else None
        if isinstance(value, (int, float)):
            return f"{text} {SYMBOL['n' if key == 'n' else loss]} = {value:g}"
        return text
    if run.stage == "dpo":
        return f"DPO {run.section('preference').get('loss', '')}".strip()
    if run.stage == "rlvr":
        return _policy(run.section("policy"))
    if run.stage == "pairs":
        return f"Pairs {run.section('pairing').get('strategy', '')}".strip()
    return "Success rates" if run.stage == "pass_rate" else ""


def _policy(policy: dict) -> str:
    text = f"RLVR {policy.get('loss', '')}".strip()
    advantage = policy.get("advantage")
    if advantage:
        text += f", {advantage} advantage"
    k = policy.get("k")
    return f"{text} {WITH_K[advantage]} = {k}" if advantage in WITH_K and k else text


def labels(runs: list[RunData]) -> list[str]:
    """One label a run, distinct: by objective, by name where several share one, by path where they share a name."""
    counts = Counter(label(run) for run in runs)
    for choice in (
        lambda run: run.name if counts[label(run)] > 1 else label(run),
        lambda run: run.name,
        lambda run: str(run.path),
    ):
        found = [printable(choice(run)) for run in runs]
        if len(set(found)) == len(found):
            return found
    return [f"{printable(run.name)} ({i + 1})" for i, run in enumerate(runs)]


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


def page_title(runs: list[RunData]) -> str:
    """What a page about `runs` is called: their names, or how many there are."""
    names = list(dict.fromkeys(run.name for run in runs))
    return " against ".join(names) if len(names) <= 3 else f"{len(names)} runs"
