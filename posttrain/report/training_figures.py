"""Which training metrics a page shows for each kind of stage, and their pictures.

A picture has one metric (or a few related ones), a colour per run and a line style per series. `STAGES` is
the list to extend. Left out: how a picture is drawn (`step_plots.py`), tables and sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from posttrain.base.printable import printable
from posttrain.report.facts import (
    FAILED_CHECKS,
    SAMPLING,
    component_rows,
    components,
    facts,
    none_reasons,
    sampled,
    success_counts,
)
from posttrain.report.numbers import mean, series
from posttrain.report.plots import success_bars
from posttrain.report.step_plots import Line, Scale, over_steps, smoothing
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
    Picture("Loss", "", both("loss"), smooth=False),
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
DPO = (
    Picture(
        "Accuracy",
        "share of pairs whose chosen side has the higher reward",
        both("rewards/accuracies"),
        "share",
    ),
    Picture("Margin", "reward of chosen minus rejected", both("rewards/margins"), rule=0.0),
    Picture("Implicit rewards", "of both sides, as the loss defines them", sides("rewards"), rule=0.0),
    Picture(
        "Log-ratio to the reference",
        "below 0: less likely than under it; nats per reply",
        sides("logratio"),
        y="log-ratio",
        rule=0.0,
    ),
    Picture("Log-probability", "nats per reply", sides("logps"), unless="logratio/chosen"),
    Picture("Loss", "", both("loss")),
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


def sections(runs: list[RunData], names: list[str]) -> list[dict[str, Any]]:
    """One section per kind of stage, in order of appearance: title, facts, pictures, tables of rewards."""
    kinds: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        if run.stage in SAMPLING:
            continue
        kinds.setdefault(run.stage if run.stage in STAGES else "sft", []).append(i)
    found = []
    for stage, members in kinds.items():
        held = [runs[i] for i in members]
        figures = []
        for picture in pictures(stage, held):
            prefix = f"m{len(found)}x{len(figures)}"
            if figure := _figure(picture, prefix, members, runs, names):
                figures.append(figure)
        rewards = [(i, component_rows(runs[i])) for i in members] if stage == "rlvr" else []
        if figures:
            section = {"title": STAGES[stage], "figures": figures, "runs": members}
            section |= {"facts": fact_table(members, runs), "rewards": [r for r in rewards if r[1]]}
            found.append(section)
    return found


def fact_table(members: list[int], runs: list[RunData]) -> dict[str, Any]:
    """Columns that any of the runs has, and (run, one value per column); empty where there are none."""
    each = {i: facts(runs[i]) for i in members}
    columns = list(dict.fromkeys(what for told in each.values() for what in told))
    rows = [(i, [told.get(what, "–") for what in columns]) for i, told in each.items()]
    return {"columns": columns, "rows": rows} if columns else {}


def sampling(runs: list[RunData]) -> list[dict[str, Any]]:
    """Runs that sampled and judged: their counts, how often prompts were solved, why prompts gave no pair."""
    found = []
    for i, run in enumerate(runs):
        told = sampled(run.outcome)
        if not told:
            continue
        counts = success_counts(run.outcome)
        svg = Markup(success_bars(f"o{i}", counts, i, kept_range(run))) if counts else ""
        note = "full bars: kept" if kept_range(run) else ""
        reasons = none_reasons(run.outcome)
        found.append({"run": i, "facts": told, "svg": svg, "note": note, "reasons": reasons})
    return found


def kept_range(run: RunData) -> tuple[int, int] | None:
    """(least, most) right completions of a prompt that is kept; None for stages that keep all."""
    low, high = (run.section("keep").get(key) for key in ("at_least", "at_most"))
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (low, high))
    return (low, high) if run.stage == "pass_rate" and whole else None


def _figure(
    picture: Picture, prefix: str, members: list[int], runs: list[RunData], names: list[str]
) -> dict | None:
    lines, shown = [], {}
    for i in members:
        for s in picture.series:
            rows = runs[i].metrics.get(s.split, [])
            steps, values = series(rows, s.key)
            if not steps or (picture.unless and mean(rows, picture.unless) is not None):
                continue
            shown[s.name] = s.style
            smooth = smoothing(len(steps)) if picture.smooth else 1
            lines.append((s, Line("", steps, values, i, s.style, smooth=smooth)))
    if not lines:
        return None
    several = len(members) > 1
    for s, line in lines:
        if several:
            line.label = names[line.run] if s.style == picture.series[0].style else ""
        elif len(shown) > 1:
            line.label = s.name
    y = picture.y or picture.title[0].lower() + picture.title[1:]
    svg = over_steps(prefix, y, [line for _, line in lines], picture.scale, picture.rule)
    warns = picture.rule == FAILED_CHECKS and any(max(line.values) > FAILED_CHECKS for _, line in lines)
    return {
        "title": picture.title,
        "note": _note(picture, shown, several),
        "svg": Markup(svg),
        "run": None,
        "highlight": warns,
    }


def _note(picture: Picture, shown: dict[str, str], several: bool) -> str:
    parts = [picture.note] if picture.note else []
    if several and len(shown) > 1:
        parts.append(", ".join(f"{name} {style}" for name, style in shown.items()))
    return "; ".join(parts)
