"""Which training metrics a page shows for each kind of stage.

`STAGES` is the list to extend. Left out: from runs to pictures (`training_figures.py`), and how a picture is
drawn (`step_plots.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.base.printable import printable
from posttrain.report.facts import FAILED_CHECKS, components
from posttrain.report.step_plots import Scale
from posttrain.rundir.reading import RunData


@dataclass(frozen=True, slots=True)
class Series:
    """A metric of one split. `name` labels the line of a single run; with several runs it is in the note."""

    key: str
    name: str = ""
    style: str = "solid"
    split: str = "train"


@dataclass(frozen=True, slots=True)
class Picture:
    """What one picture shows. `y` names its axis (default: the title); it is left out where `unless` was
    logged."""

    title: str
    note: str
    series: tuple[Series, ...]
    scale: Scale = "free"
    y: str = ""
    rule: float | None = None
    smooth: bool = True
    unless: str = ""
    by_loss: bool = False
    """Whether its values can be compared only under one loss: each has a picture of its own."""


def both(key: str) -> tuple[Series, ...]:
    """A metric of training, solid, and of held-out rows, dashed."""
    return (Series(key, "training"), Series(key, "held-out", "dashed", "heldout"))


def sides(key: str) -> tuple[Series, ...]:
    """A metric of the chosen and of the rejected replies."""
    return (Series(f"{key}/chosen", "chosen"), Series(f"{key}/rejected", "rejected", "dotted"))


def one(title: str, note: str, key: str, scale: Scale = "free", **options: Any) -> Picture:
    """A picture of a single metric."""
    return Picture(title, note, (Series(key),), scale, **options)


SFT = (
    Picture("Loss", "", both("loss"), smooth=False, by_loss=True),
    one("Mean weight F", "1 = cross-entropy's gradient, 0 = none", "weight_mean", "share", smooth=False),
    one(
        "Share with F < 0.1",
        "segments that the loss hardly trains any more",
        "weight_below_0.1",
        "share",
        smooth=False,
    ),
    one("Segment log-probability", "mean over trained segments", "segment_logp", smooth=False),
    one("Entropy", "of the next token, mean, nats", "entropy", smooth=False),
    one("Token accuracy", "most probable token is the label", "token_accuracy", smooth=False),
)
NLL = Picture(
    "Negative log-likelihood", "nats per token, whatever the loss", both("nll"), y="nll", smooth=False
)
"""What runs with different losses can be compared in."""
DPO = (
    Picture(
        "Accuracy",
        "share of pairs whose chosen side has the higher reward",
        both("rewards/accuracies"),
        "share",
    ),
    Picture("Margin", "reward of chosen minus rejected", both("rewards/margins"), rule=0.0, by_loss=True),
    Picture(
        "Implicit rewards",
        "of both sides, as the loss defines them",
        sides("rewards"),
        rule=0.0,
        by_loss=True,
    ),
    Picture(
        "Log-ratio to the reference",
        "below 0: less likely than under it; nats per reply",
        sides("logratio"),
        y="log-ratio",
        rule=0.0,
    ),
    Picture("Log-probability", "nats per reply", sides("logps"), unless="logratio/chosen"),
    Picture("Loss", "", both("loss"), by_loss=True),
    Picture("Length", "tokens per reply", sides("tokens"), "zero", y="tokens"),
    one("KL estimate", "of kto, nats", "kl", "zero"),
    one("Mean weight F", "of the supervised term", "weight_mean", "share"),
)
REWARD = one("Reward", "weighted sum of the components, mean over completions", "reward")
AFTER_REWARD = (
    Picture(
        "Length",
        "tokens per completion",
        (Series("completions/mean_length", "mean"), Series("completions/max_length", "longest", "dotted")),
        "log",
        y="tokens",
    ),
    one(
        "Cut off", "share of completions at the length limit", "completions/truncated", "percent", y="cut off"
    ),
    Picture(
        "Groups without gradient",
        "all right or all wrong: of sampled groups; no variance: of trained groups",
        (
            Series("groups/zero_variance", "no variance"),
            Series("groups/all_right", "all right", "dashed"),
            Series("groups/all_wrong", "all wrong", "dotted"),
        ),
        "share",
        y="groups",
    ),
    one(
        "Failed checks",
        "failures of the check itself; dotted: 1 %",
        "checks_failed",
        "percent",
        y="failed checks",
        rule=FAILED_CHECKS,
        smooth=False,
    ),
    one("KL to the reference", "nats per token", "kl", "zero", y="KL"),
    one("Entropy", "of the next token, nats", "entropy", "zero"),
    Picture(
        "Clipped",
        "share of tokens at the lower and the upper bound of the ratio",
        (Series("clip_ratio/low_mean", "lower"), Series("clip_ratio/high_mean", "upper", "dotted")),
        "percent",
    ),
    Picture(
        "Sampler and policy apart",
        "|log policy − log sampler| of vLLM's tokens, nats",
        (
            Series("sampler/logp_diff_mean", "mean"),
            Series("sampler/logp_diff_max", "largest", "dotted"),
        ),
        "log",
        y="nats",
        smooth=False,
    ),
    one(
        "Importance ratio",
        "policy / sampler before the bounds, mean; dotted: equal programs",
        "sampler/ratio_mean",
        rule=1.0,
        smooth=False,
    ),
    Picture(
        "Corrected",
        "share of importance weights beyond the bounds",
        (Series("sampler/masked", "masked"), Series("sampler/truncated", "truncated", "dotted")),
        "percent",
        smooth=False,
    ),
    Picture(
        "Seconds per step",
        "",
        (Series("seconds/generate", "sampling"), Series("seconds/score", "checks", "dotted")),
        "zero",
        y="seconds",
    ),
)
STAGES = {"sft": "Supervised fine-tuning", "dpo": "Preference optimisation", "rlvr": "Verifiable rewards"}
"""Stages that train, and their titles on the page."""


def pictures(stage: str, runs: list[RunData]) -> list[Picture]:
    """The pictures for runs of one stage; for RLVR one per component of the reward where there are
    several."""
    if stage == "dpo":
        return list(DPO)
    if stage != "rlvr":
        return list(SFT)
    labels = list(dict.fromkeys(label for run in runs for label in components(run)))
    note = "mean over completions, before its weight"
    each = [one(f"Reward: {printable(n)}", note, f"reward/{n}", y=printable(n)) for n in labels]
    success = one("Success", "share of sampled completions that are right", "success", "share")
    return [success, REWARD, *(each if len(each) > 1 else []), *AFTER_REWARD]
