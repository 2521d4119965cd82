"""Text for terminal and page: long texts shortened, numbers as tables print them, labels of runs.

Left out: markup, which rich's `Text` and the page's template escape.
"""

from __future__ import annotations

from collections import Counter

from posttrain.base.files import number
from posttrain.base.printable import printable
from posttrain.report.differences import Difference
from posttrain.report.numbers import ROUNDING
from posttrain.rundir.reading import RunData

LOSSES = {
    "cross_entropy": ("Cross-entropy", ""),
    "confidence_limited": ("Confidence-limited", "n"),
    "dft": ("DFT", ""),
    "power": ("Power", "exponent"),
    "focal": ("Focal", "exponent"),
    "maxrl": ("MaxRL", "exponent"),
}
"""Name of a loss -> its title, and the key of its parameter."""
SYMBOL = {"n": "N", "power": "a", "focal": "γ", "maxrl": "T"}
"""Symbol of that parameter: of `n`, or of the `exponent` of a loss."""
WITH_K = {"pkpo": "k", "pass_at_k": "k", "confidence": "N"}
"""Advantages that read `policy.k`, and its symbol there."""


def both_ends(text: object, most: int) -> str:
    """`text`, or its beginning and its end (where answers are) and how many characters are left out between
    them."""
    whole = str(text)
    if len(whole) <= most:
        return printable(whole)
    end = most // 3
    left_out = f"\n[… {len(whole) - most:,} more characters …]\n"
    return printable(whole[: most - end]) + left_out + printable(whole[-end:])


def share(value: float) -> str:
    """A proportion as tables print it: .165, 1.000, −.329. One that is not zero never reads as zero: what
    three digits would hide has one significant digit, .0004 or 3e−7."""
    size = abs(value)
    text = f"{size:.1g}" if ROUNDING <= size < 0.0005 else f"{size:.3f}"
    text = text.replace("e-0", "e−").replace("e-", "e−").removeprefix("0")
    return f"−{text}" if value < 0 and text != ".000" else text


def signed(value: float) -> str:
    """A difference: +.010, −.329."""
    return ("+" if value >= ROUNDING else "") + share(value)


def span(d: Difference, sign: float = 1.0) -> str:
    """` [−.360, −.300]`: the interval of the paired difference (times `sign`), and how many problems it is of
    where some were left out; empty where it is unknown."""
    if d.low is None or d.high is None:
        return ""
    low, high = sorted((sign * d.low, sign * d.high))
    return f" [{share(low)}, {share(high)}]{shared(d)}"


def shared(d: Difference) -> str:
    """` on 30 of 60 problems`; empty where none were left out."""
    return f" on {d.problems:,} of {d.problems + d.left_out:,} problems" if d.left_out else ""


def unknown(d: Difference) -> str:
    """`; no interval: too few problems`: why nothing is known of the noise of a difference."""
    return f"; no interval: {d.reason}" if d.reason else "; its noise is not known"


def loss_name(run: RunData) -> str:
    """`loss.name` of the recipe; empty for stages without a loss section. The confidence-limited loss with
    N = 1 of the model's own p is `cross_entropy`: -log(1 - (1 - p)^1) = -log p."""
    loss = run.section("loss")
    name = str(loss.get("name", ""))
    plain = number(loss.get("n")) == 1.0 and loss.get("p", "model") == "model"
    return "cross_entropy" if name == "confidence_limited" and plain else name


def label(run: RunData) -> str:
    """The objective of a run, or its name where the objective is unknown."""
    return objective(run) or run.name


def objective(run: RunData) -> str:
    """`Confidence-limited N = 256`, `DPO dpo_norm`, `RLVR dapo, mean_std advantage`; empty where unknown."""
    section = run.section("loss")
    loss = str(section.get("name", ""))
    if loss in LOSSES:
        text, key = LOSSES[loss]
        value = number(section.get(key)) if key else None
        if value is not None:
            text += f" {SYMBOL['n' if key == 'n' else loss]} = {value:g}"
        for control, name in (("label_smoothing", "smoothing"), ("entropy_bonus", "entropy bonus")):
            if weight := number(section.get(control)):
                text += f", {name} {weight:g}"
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
    """One distinct label per run: the objective; the name where several share an objective; else the path."""
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
