"""Several rewards as one verifier: all of them, any, a weighted mean, or a gate before the rest.

The section `rewards:` of a recipe sums components and logs each (compose.py); this reward gives one value in
[0, 1] that can decide success. If the check of a part failed, the value is unknown unless the other parts
decide it. Left out: shaping terms.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from posttrain.errors import RequestError, did_you_mean
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.registry import Bound, bind, reward
from posttrain.types import Example, Verdict

How = Literal["all", "any", "weighted", "gated"]
Parts = list[tuple[str, float, Bound]]
DECISIVE = {"all": 0.0, "any": 1.0}
"""A part with this value decides the result, whatever the values of the others."""
KEYS = ("name", "options", "weight", "label")


def check_row(example: Example, rewards: list[dict[str, Any]], how: How) -> None:
    """Raises `RequestError` if a part cannot score the row, or the parts themselves are wrong."""
    for _, _, bound in _parts(rewards, how):
        bound.check_row(example)


@reward("combine", check_row=check_row, runs="batch", limit_s=10.0)
def combine(
    completions: list[str],
    examples: list[Example],
    rewards: list[dict[str, Any]],
    how: How = "all",
    gate_at_least: float = 1.0,
) -> list[Verdict]:
    """Several rewards as one: `all` (minimum), `any` (maximum), `weighted` (mean), `gated` (first must pass).

    `rewards`: a list of `{name, options, weight, label}`. `gated`: 0 if the first is below `gate_at_least`,
    otherwise the weighted mean of the others. Parts that cannot change the value are not run.
    """
    parts = _parts(rewards, how)
    given: list[dict[str, Verdict]] = [{} for _ in completions]
    for k, (label, _, bound) in enumerate(parts):
        open_ = [i for i, found in enumerate(given) if not _decided(how, found, k, gate_at_least)]
        texts, rows = [completions[i] for i in open_], [examples[i] for i in open_]
        for i, verdict in zip(open_, score_batch(bound, texts, rows), strict=True):
            given[i][label] = verdict
    weights = {label: weight for label, weight, _ in parts}
    verdicts = [_together(how, found, weights, gate_at_least) for found in given]
    for verdict, found in zip(verdicts, given, strict=True):
        verdict.ms = sum(part.ms for part in found.values())
    return verdicts


def _decided(how: How, found: dict[str, Verdict], k: int, gate: float) -> bool:
    """Whether the first `k` parts decide the value."""
    values = [v.value for v in found.values()]
    if how == "gated":
        return k > 0 and (values[0] is None or values[0] < gate)
    return how in DECISIVE and DECISIVE[how] in values


def _together(how: How, found: dict[str, Verdict], weights: dict[str, float], gate: float) -> Verdict:
    """The verdict of the parts that were run, by label."""
    parts = {label: {"value": v.value, "status": v.status, "reason": v.reason} for label, v in found.items()}
    details = {"parts": parts}
    first = next(iter(found))
    if how == "gated":
        passed = found[first].value is not None and found[first].value >= gate
        if not passed:
            verdict = _like(found, first, details)
            verdict.value = None if verdict.value is None else 0.0
            return verdict
        found = {label: v for label, v in found.items() if label != first}
    for label, verdict in found.items():
        if how in DECISIVE and verdict.value == DECISIVE[how]:
            return _like(found, label, details)
    lost = [label for label, v in found.items() if v.value is None]
    if lost:
        return _like(found, lost[0], details)
    if how in ("all", "any"):
        pick = min if how == "all" else max
        return _like(found, pick(found, key=lambda label: found[label].value), details)
    total = math.fsum(weights[label] for label in found)
    value = math.fsum(weights[label] * v.value for label, v in found.items()) / total
    wrong = [f"{label}: {v.reason or 'below 1'}" for label, v in found.items() if v.value < 1]
    return Verdict(min(1.0, max(0.0, value)), reason="; ".join(wrong)[:500], details=details)


def _like(found: dict[str, Verdict], label: str, details: dict[str, Any]) -> Verdict:
    """The verdict of the part that decides, with the details of all."""
    part = found[label]
    reason = part.reason if part.reason in ("", "limit") else f"{label}: {part.reason}"
    return Verdict(part.value, part.status, reason, details=details)


def _parts(rewards: list[dict[str, Any]], how: How) -> Parts:
    """(label, weight, reward) of each part. Raises RequestError."""
    least = 2 if how == "gated" else 1
    if len(rewards) < least:
        given = f"{least} or more rewards, not {len(rewards)}"
        raise RequestError(f"reward 'combine': how = {how!r} needs {given}")
    found: Parts = []
    for i, part in enumerate(rewards):
        at = f"reward 'combine': rewards[{i}]"
        for key in part:
            if key not in KEYS:
                raise RequestError(f"{at}: unknown key {key!r}{did_you_mean(key, KEYS)}")
        if not isinstance(part.get("name"), str):
            raise RequestError(f"{at}: name is missing; it takes {', '.join(KEYS)}")
        label, weight = part.get("label") or part["name"], part.get("weight", 1.0)
        bound = bind(part["name"], part.get("options"), at)
        if bound.spec.shaping:
            raise RequestError(f"{at}: {bound.name!r} is a shaping term, not a verifier")
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise RequestError(f"{at}: weight = {weight!r} must be a number above 0")
        if label in [other for other, _, _ in found]:
            raise RequestError(f"{at}: {label!r} is listed twice; give one of them a label")
        found.append((label, float(weight), bound))
    return found
