"""A row of scores.jsonl, and one of samples/, checked: what a report computes with is a number.

Left out: reading the files, and reporting their damaged rows (`reading.py`).
"""

from __future__ import annotations

import re
from typing import Any

from posttrain.base.files import number
from posttrain.rundir.scores import SCORE_FIELDS
from posttrain.types import Score

PASS_AT = re.compile(r"pass@([1-9]\d{0,8})")


def pass_k(metric: str) -> int | None:
    """k of a metric `pass@k`, None for any other metric."""
    match = PASS_AT.fullmatch(metric)
    return int(match[1]) if match else None


def score_of(row: dict[str, Any]) -> Score:
    """The score in a row. Bounds that are no numbers are unknown.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        score = Score(**{k: v for k, v in row.items() if k in SCORE_FIELDS})
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not all(isinstance(text, str) for text in (*score.key(), score.checkpoint)):
        raise ValueError("checkpoint, task, metric, settings and digest must be texts")
    value, step, n = number(score.value), number(score.step), number(score.n)
    if value is None or step is None or n is None:
        raise ValueError(
            f"{score.task}/{score.metric} is {str(score.value)[:40]}, step {str(score.step)[:40]}"
        )
    if pass_k(score.metric) is not None and not -1e-9 <= value <= 1 + 1e-9:
        raise ValueError(f"{score.task}/{score.metric} is {value:g}, no probability")
    score.value, score.step, score.n = float(value), int(step), int(n)
    score.low, score.high = number(score.low), number(score.high)
    if score.low is None or score.high is None:
        score.low = score.high = None
    if not isinstance(score.differs, dict):
        score.differs = {}
    return score


def is_sample(row: dict[str, Any]) -> bool:
    """Whether the log-probabilities and verdicts of a row of samples are numbers, where it has them."""
    logps = [row.get("logp"), *(at.values() if isinstance(at := row.get("logp_at", {}), dict) else [""])]
    if any(value is not None and number(value) is None for value in logps):
        return False
    drawn = row.get("completions") or []
    if not isinstance(drawn, list) or not all(isinstance(c, dict) for c in drawn):
        return False
    return all(c.get("value") is None or number(c["value"]) is not None for c in drawn)
