"""Warnings about a run: scores that are missing, failed checks, failed gates, groups without gradient,
completions of vLLM that are masked, chosen replies that become less likely.

Each is a sentence computed from what was logged, with its threshold. Left out: the caveats that apply to
every result (`findings.caveats`).
"""

from __future__ import annotations

import math
from statistics import fmean, stdev

from posttrain.base.files import number
from posttrain.report.facts import FAILED_CHECKS, MASKED, component_rows, trained_shares
from posttrain.report.numbers import mean, series, trend
from posttrain.report.score_tables import metric_text
from posttrain.report.swept import run_names
from posttrain.report.text import printable
from posttrain.rundir.reading import RunData

FALL = 0.1
"""Nats that the chosen side must have lost, besides twice its standard error, to be called falling (our
choice)."""
NO_GRADIENT, UNFILLED = 0.5, 0.1
"""Largest shares without a warning: of trained groups without variance, of groups that refilling did not
replace."""
SHIFT, FEW = 0.1, 5
"""Largest difference without a warning between a source's shares of the prompts and of the groups with a
gradient, besides twice its standard error over the logged lines; fewer lines are not judged."""


def alerts(runs: list[RunData]) -> list[str]:
    """The sentences, run by run; empty where there is nothing to warn about."""
    found = []
    for run, name in zip(runs, run_names(runs), strict=True):
        parts = (holes, _gates, _checks, _groups, _shares, _sampler, _chosen)
        each = [line for part in parts for line in part(run)]
        found += [f"{name}: {text}" for text in each]
    return found


def holes(run: RunData, checkpoint: str | None = None) -> list[str]:
    """A sentence for each task and reason for which checkpoints, or this one, were not scored."""
    found: dict[tuple[str, str], list[str]] = {}
    for u in (u for u in run.unscored if checkpoint in (None, u.checkpoint)):
        found.setdefault((u.task, u.reason), []).append(u.checkpoint)
    sentences = []
    for (task, reason), names in found.items():
        were = "was" if len(names) == 1 else "were"
        why = reason and f": {printable(reason).rstrip('.')}"
        sentences.append(f"{', '.join(names)} {were} not scored on {task}{why}.")
    return sentences


def _gates(run: RunData) -> list[str]:
    """The latest failure of each gate, and how many checkpoints failed it."""
    last: dict[tuple[str, str], list[dict]] = {}
    for row in run.gates:
        if all(number(row.get(key)) is not None for key in ("value", "reference", "max_drop", "step")):
            last.setdefault((str(row.get("task")), str(row.get("metric"))), []).append(row)
    found = []
    for (task, metric), rows in last.items():
        row = max(rows, key=lambda r: r["step"])
        value, reference = (metric_text(metric, row[key]) for key in ("value", "reference"))
        against = "the start" if row.get("against") == "start" else "the best so far"
        more = f" ({len(rows)} checkpoints failed it)" if len(rows) > 1 else ""
        stopped = row.get("action") == "stop"
        action = "the run stopped" if stopped else "the checkpoint is never chosen as best"
        found.append(
            f"gate failed: {task}/{metric} {value} at step {row['step']:,} against {reference} of {against},"
            f" more than {metric_text(metric, row['max_drop'])} worse; {action}{more}."
        )
    return found


def _checks(run: RunData) -> list[str]:
    train = run.metrics.get("train", [])
    failed = mean(train, "checks_failed")
    if failed is None or failed <= FAILED_CHECKS:
        return []
    steps, values = series(train, "checks_failed")
    worst = max(range(len(values)), key=values.__getitem__)
    by = [
        f"{r['label']} (timeout {r['timeout']}, error {r['error']})"
        for r in component_rows(run)
        if r["failed"]
    ]
    of = f", of {', '.join(by)}" if by else ""
    return [
        f"{failed:.1%} of the checks failed{of}, at worst {values[worst]:.1%} at step {steps[worst]:,};"
        " these completions are left out of rewards and training, so means describe only the rest."
    ]


def _groups(run: RunData) -> list[str]:
    found, train = [], run.metrics.get("train", [])
    idle = trend(train, "groups/zero_variance")
    if idle is not None and idle.last > NO_GRADIENT:
        found.append(
            f"{idle.last:.0%} of the trained groups gave no gradient at the end"
            " (all rewards of such a group are equal)."
        )
    sampled, unfilled = (trend(train, f"groups/{key}") for key in ("sampled", "unfilled"))
    if sampled and unfilled and sampled.last and unfilled.last / sampled.last > UNFILLED:
        found.append(
            f"refilling left {unfilled.last:.3g} groups per batch unfilled at the end"
            f" ({sampled.last:.3g} were sampled)."
        )
    return found


def _sampler(run: RunData) -> list[str]:
    """vLLM's completions are weighted for what they differ from the policy's; a run that masks many of them
    trains on few."""
    train = run.metrics.get("train", [])
    for key in ("masked", "truncated"):
        share = trend(train, f"sampler/{key}")
        if share is not None and share.last > MASKED:
            apart = trend(train, "sampler/logp_diff_mean")
            nats = f" (mean |log policy − log sampler| {apart.last:.2g} nats per token)" if apart else ""
            return [f"the correction {key} {share.last:.0%} of vLLM's importance weights at the end{nats}."]
    return []


def _shares(run: RunData) -> list[str]:
    """Sources that teach much more or much less than the mixture says; differences within sampling noise are
    not reported."""
    shifted = []
    for source, lines in trained_shares(run):
        apart = [trained - drawn for drawn, trained in lines]
        if len(lines) < FEW or abs(fmean(apart)) <= max(SHIFT, 2 * stdev(apart) / math.sqrt(len(lines))):
            continue
        drawn, trained = (fmean(column) for column in zip(*lines, strict=True))
        shifted.append(f"{printable(source)} is {drawn:.0%} of the prompts, {trained:.0%} of those groups")
    if not shifted:
        return []
    return [
        f"the sources' shares of the groups with a gradient differ from the mixture: {'; '.join(shifted)}."
    ]


def _chosen(run: RunData) -> list[str]:
    """A margin can grow while the chosen reply becomes less likely, if the rejected one loses more."""
    if run.stage != "dpo":
        return []
    train = run.metrics.get("train", [])
    for key, what in (("logratio", "log-ratio to the reference"), ("logps", "log-probability")):
        chosen, rejected = trend(train, f"{key}/chosen"), trend(train, f"{key}/rejected")
        if chosen is None or rejected is None:
            continue
        if not (chosen.change < -FALL and chosen.clear):
            return []
        moves = [f"{t.first:.3g} → {t.last:.3g}".replace("-", "−") for t in (chosen, rejected)]
        return [
            f"the chosen replies become less likely: their {what} falls {moves[0]} nats per reply"
            f" (rejected {moves[1]}) from step {chosen.steps[0]:,} to {chosen.steps[1]:,}."
        ]
    return []
