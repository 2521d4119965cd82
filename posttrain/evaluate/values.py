"""From the rows of a task, one a problem, to the values of its metrics.

Left out: the formulas (`metrics.py`), means and intervals (`score.py`).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import numpy as np

from posttrain.errors import WorkError
from posttrain.evaluate import metrics
from posttrain.recipe import schema

log = logging.getLogger(__name__)
ATTEMPTS = tuple(2**i for i in range(13))
"""N of pass@N in exact tasks: 1, 2, 4 .. 4096."""
CHOICE_METRICS = (
    *("acc", "acc_norm", "acc_per_char", "acc_uncond", "acc_blank", "valid_mass"),
    *("nll", "bits_per_byte", "blank_perplexity"),
)
Row = dict[str, Any]
"""A line of samples/<checkpoint>/<task>.jsonl."""


def exact_values(rows: list[Row], i: int) -> dict[str, list[float | None]]:
    """metric -> one value per problem, at the task's temperature (`i` = 0) or number `i` of `logp_at`."""
    logp = np.array([[*row["logp_at"].values()][i] if i else row["logp"] for row in rows])
    values = {f"pass@{n}": metrics.pass_at_n(logp, n).tolist() for n in ATTEMPTS}
    values["nll"] = (-logp).tolist()
    values["accuracy"] = [float(row["correct"]) for row in rows]
    return values


def sampled_values(rows: list[Row], task: schema.Task) -> dict[str, list[float | None]]:
    """metric -> one value per problem; None where failed checks left fewer than k judged samples."""
    drawn, judged = [row["completions"] for row in rows], judged_of(rows)
    failed = sum(map(len, drawn)) - sum(map(len, judged))
    if not any(judged):
        why = drawn[0][0]["reason"]
        raise WorkError(f"task {task.name}: the check failed on every completion ({why})")
    if failed:
        log.warning("task %s: the check failed on %d completions; they are left out", task.name, failed)
    right = [sum(c["value"] >= 1.0 for c in part) for part in judged]
    values: dict[str, list[float | None]] = {}
    for k in task.k:
        values[f"pass@{k}"] = [
            float(metrics.pass_at_k(c, len(part), k)[0]) if len(part) >= k else None
            for c, part in zip(right, judged, strict=True)
        ]
    for k in (k for k in task.k if k > 1):
        values[f"maj@{k}"] = [_majority(part, k) if len(part) >= k else None for part in judged]
    values["truncated"] = [_share(part, "finish", "length") for part in drawn]
    values["parsed"] = [_share(part, "status", "scored") for part in judged]
    values["tokens_mean"] = [sum(c["tokens"] for c in part) / len(part) for part in drawn]
    return values


def judged_of(rows: list[Row]) -> list[list[Row]]:
    """The completions of each problem whose check did not fail."""
    return [[c for c in row["completions"] if c["value"] is not None] for row in rows]


def mean_value(judged: list[Row]) -> float | None:
    """The mean value of completions; None of none."""
    return sum(c["value"] for c in judged) / len(judged) if judged else None


def _majority(judged: list[Row], k: int) -> float:
    correct = sum(c["value"] >= 1.0 for c in judged)
    wrong = Counter(c["read"] for c in judged if c["value"] < 1.0 and c["read"] is not None)
    abstained = len(judged) - correct - sum(wrong.values())
    return metrics.maj_at_k(correct, list(wrong.values()), abstained, k)


def _share(completions: list[Row], key: str, value: str) -> float | None:
    return sum(c[key] == value for c in completions) / len(completions) if completions else None


def choice_values(rows: list[Row], i: int) -> dict[str, list[float | None]]:
    """metric -> one value per problem, at the task's temperature (`i` = 0) or number `i` of the others; None
    where a question has no gap, or none of its options was asked for without it."""
    found = [_chosen(row["options"] if not i else _heated(row["options"], i), row["right"]) for row in rows]
    return {metric: [each.get(metric) for each in found] for metric in CHOICE_METRICS}


def _heated(options: list[Row], i: int) -> list[Row]:
    return [option | [*option["at"].values()][i - 1] for option in options]


def _chosen(options: list[Row], right: int) -> dict[str, float]:
    """The values of one question. Among equal options the first is chosen."""
    logp = np.array([option["logp"] for option in options])
    sizes = {key: np.array([option[key] for option in options]) for key in ("bytes", "characters")}
    # the same text twice is one possibility
    distinct = {option["text"]: option["logp"] for option in options}
    found = {
        "acc": logp.argmax() == right,
        "acc_norm": (logp / sizes["bytes"]).argmax() == right,
        "acc_per_char": (logp / sizes["characters"]).argmax() == right,
        "valid_mass": min(1.0, math.fsum(map(math.exp, distinct.values()))),
        "nll": -logp[right],
        "bits_per_byte": -logp[right] / math.log(2) / sizes["bytes"][right],
    }
    if "unconditional" in options[0]:
        alone = np.array([option["unconditional"] for option in options])
        found["acc_uncond"] = (logp - alone).argmax() == right
    if "filled" in options[0]:
        each = [math.exp(-option["filled"] / option["filled_tokens"]) for option in options]
        found["acc_blank"] = min(range(len(each)), key=each.__getitem__) == right
        found["blank_perplexity"] = each[right]
    return {metric: float(value) for metric, value in found.items()}
