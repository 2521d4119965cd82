"""What a stage did, in a few facts: rewards and lengths of RLVR, margins of DPO, counts of a sampling stage.

`facts` are (what, how much) for the terminal, the card and the page; `headline` is one sentence for a run
without scores. Means are over the first and last tenth of the logged steps (`numbers.trend`). Left out:
pictures, and warnings (`alerts.py`).
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from posttrain.base.files import number
from posttrain.report.numbers import Trend, mean, trend
from posttrain.report.text import printable, share
from posttrain.rundir.reading import RunData
from posttrain.rundir.rollouts import whole

SAMPLING = ("pairs", "pass_rate")
"""Stages that sample and judge but do not train."""
SHARES = ("timeout", "error", "unparseable", "limit")
"""Shares of checks that are logged for each component of the reward besides its mean
(`rewards/compose.py`)."""
RLVR = (
    ("success", "success", "share"),
    ("reward", "reward", "free"),
    ("completions/mean_length", "tokens a completion", "free"),
    ("completions/truncated", "cut off", "percent"),
    ("checks_failed", "failed checks", "percent"),
    ("groups/zero_variance", "groups without gradient", "percent"),
    ("kl", "KL to the reference", "free"),
    ("entropy", "entropy", "free"),
    ("sampler/logp_diff_mean", "sampler: mean |Δ log p|", "free"),
    ("sampler/logp_diff_max", "sampler: largest |Δ log p|", "free"),
    ("sampler/ratio_mean", "sampler: mean ratio", "free"),
    ("sampler/masked", "sampler: masked", "percent"),
    ("sampler/truncated", "sampler: truncated", "percent"),
)
DPO = (
    ("rewards/accuracies", "accuracy", "share"),
    ("rewards/margins", "margin", "free"),
    ("rewards/chosen", "reward of chosen", "free"),
    ("rewards/rejected", "reward of rejected", "free"),
    ("logratio/chosen", "log-ratio of chosen", "free"),
    ("logratio/rejected", "log-ratio of rejected", "free"),
    ("kl", "KL estimate", "free"),
)
FAILED_CHECKS = 0.01
"""Share of failed checks above which they are highlighted."""
MASKED = 0.1
"""Share of importance weights beyond the bounds above which the sampler is called apart from the policy."""
HELD_OUT = ("rewards/accuracies", "rewards/margins")
"""Metrics of DPO that are shown for held-out pairs too."""


def facts(run: RunData) -> dict[str, str]:
    """what -> how much, in reading order; empty for a stage that has no facts of its own, or none yet."""
    if run.stage in ("rlvr", "dpo"):
        found = {}
        for key, title, form in RLVR if run.stage == "rlvr" else DPO:
            for split, prefix in (("train", ""), ("heldout", "held-out ")):
                t = trend(run.metrics.get(split, []), key)
                if t is not None and (split == "train" or key in HELD_OUT):
                    found[prefix + title] = _moved(t, form)
        for source, lines in trained_shares(run):
            drawn, trained = (fmean(column) for column in zip(*lines, strict=True))
            found[f"share of {printable(source)}"] = f"{drawn:.1%} drawn, {trained:.1%} with gradient"
        return found
    return sampled(run.outcome)


def trained_shares(run: RunData) -> list[tuple[str, list[tuple[float, float]]]]:
    """(source, its shares of the prompts drawn and of the groups with a gradient in each line that has both),
    of an RLVR run with several sources."""
    train = run.metrics.get("train", [])
    names = dict.fromkeys(k.removeprefix("share/") for row in train for k in row if k.startswith("share/"))
    found = []
    for name in names:
        lines = [
            (number(row.get(f"share/{name}")), number(row.get(f"trained_share/{name}"))) for row in train
        ]
        found.append((name, [line for line in lines if None not in line]))
    return [(name, lines) for name, lines in found if lines]


def _moved(t: Trend, form: str) -> str:
    if t.steps[0] == t.steps[1]:
        return f"{value(t.last, form)} at step {t.steps[1]:,}"
    return f"{value(t.first, form)} → {value(t.last, form)}"


def value(x: float, form: str) -> str:
    """.312 of a `share`, 3.1% of a `percent`, 12.3 of anything else."""
    if form == "share":
        return share(x)
    text = f"{x:.1%}" if form == "percent" else f"{x:.3g}" if abs(x) < 1000 else f"{x:,.0f}"
    return text.replace("-", "−")


def sampled(outcome: dict[str, Any]) -> dict[str, str]:
    """Counts of pairs.json or pass_rate.json."""
    found = {k: f"{n:,}" for k in ("prompts", "completions") if (n := whole(outcome.get(k))) is not None}
    prompts, rates = whole(outcome.get("prompts")), success_counts(outcome)
    for key in ("pairs", "kept"):
        n = whole(outcome.get(key))
        if n is not None:
            part = f" ({n / prompts:.0%} of the prompts)" if key == "kept" and prompts else ""
            found[key] = f"{n:,}{part}"
    if rates:
        n, total = len(rates) - 1, sum(rates)
        right = sum(i * c for i, c in enumerate(rates)) / (n * total)
        found["right"] = f"{share(right)} of the completions, {n} a prompt"
    if unjudged := whole(outcome.get("unjudged")):
        found["not judged"] = f"{unjudged:,}"
    tokens = outcome.get("mean_tokens")
    tokens = tokens if isinstance(tokens, dict) else {}
    sides = {s: v for s in ("chosen", "rejected") if (v := number(tokens.get(s))) is not None}
    if len(sides) == 2:
        found["tokens"] = ", ".join(f"{side} {value(v, 'free')}" for side, v in sides.items())
    reasons = none_reasons(outcome)
    if reasons:
        found["no pair from"] = ", ".join(f"{reason} {n:,}" for reason, n in reasons)
    return found


def success_counts(outcome: dict[str, Any]) -> list[int]:
    """Number of prompts by how many of their n completions were right, n + 1 numbers; empty where it is not
    known."""
    counts = outcome.get("success_by_count")
    if not isinstance(counts, list) or len(counts) < 2:
        return []
    known = all((n := whole(c)) is not None and n >= 0 for c in counts)
    return counts if known and sum(counts) else []


def none_reasons(outcome: dict[str, Any]) -> list[tuple[str, int]]:
    """(why prompts gave no pair, how many prompts), the most frequent first."""
    none = outcome.get("none")
    found = none.items() if isinstance(none, dict) else ()
    counted = [(str(k).replace("_", " "), n) for k, n in found if isinstance(n, int) and n]
    return sorted(counted, key=lambda item: -item[1])


def headline(run: RunData, name: str) -> str | None:
    """One sentence about a run without scores; None where its stage has logged nothing."""
    found = facts(run)
    if not found:
        return None
    if run.stage in ("rlvr", "dpo"):
        steps = [row["step"] for row in run.metrics.get("train", [])]
        parts = [f"{what} {moved}" for what, moved in list(found.items())[:3]]
        return (
            f"{name}: no checkpoint scored yet; {', '.join(parts)} from step {steps[0]:,} to {steps[-1]:,}."
        )
    of = f" of {found['prompts']} prompts" if "prompts" in found else ""
    parts = [
        f"{found[key].split(' ')[0]} {words}{of}"
        for key, words in (("pairs", "pairs made from completions"), ("kept", "kept"))
        if key in found
    ]
    if "right" in found:
        parts.append(f"{found['right'].split(' ')[0]} of the completions right")
    if "no pair from" in found:
        parts.append(f"no pair from {found['no pair from']}")
    return f"{name}: {'; '.join(parts)}." if parts else None


def components(run: RunData) -> list[str]:
    """Labels of the rewards, in the order of the recipe, then of the log."""
    logged: list[str] = []
    for row in run.metrics.get("train", []):
        logged += [_label(key) for key in row if key.startswith("reward/")]
    seen = set(logged)
    return list(dict.fromkeys([*(a for a in _weights(run) if a in seen), *logged]))


def _weights(run: RunData) -> dict[str, float | None]:
    """label -> weight of each reward of the recipe."""
    rewards = run.recipe.get("rewards")
    listed = [r for r in rewards if isinstance(r, dict)] if isinstance(rewards, list) else []
    return {str(r.get("label") or r.get("name")): number(r.get("weight")) for r in listed}


def _label(key: str) -> str:
    label = key.removeprefix("reward/")
    head, _, kind = label.rpartition("/")
    return head if head and kind in (*SHARES, "ms") else label


def component_rows(run: RunData) -> list[dict[str, Any]]:
    """One row per component: its mean over time, and over the complete run the shares of checks in
    `SHARES`."""
    weights = _weights(run)
    rows, train = [], run.metrics.get("train", [])
    for label in components(run):
        t, at = trend(train, f"reward/{label}"), f"reward/{label}/"
        shares = {kind: mean(train, at + kind) for kind in SHARES}
        ms = mean(train, at + "ms")
        failed = (shares["timeout"] or 0.0) + (shares["error"] or 0.0)
        rows.append(
            {
                "label": label,
                "weight": "–" if weights.get(label) is None else f"{weights[label]:g}",
                "mean": "–" if t is None else _moved(t, "free"),
                **{kind: "–" if x is None else f"{x:.1%}" for kind, x in shares.items()},
                "ms": "–" if ms is None else f"{ms:.3g}",
                "failed": failed,
                "highlight": failed > FAILED_CHECKS,
            }
        )
    return rows


def component_table(run: RunData) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `component_rows` as text, for the terminal and Markdown."""
    columns = ("label", "weight", "mean", *SHARES, "ms")
    return ["reward", *columns[1:]], [[row[c] for c in columns] for row in component_rows(run)]
