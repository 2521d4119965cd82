"""A row of scores.jsonl, and one of samples/, checked: a report computes with numbers that can be.

Left out: reading the files, and reporting their damaged rows (`reading.py`).
"""

from __future__ import annotations

import json
import re
from typing import Any

from posttrain.base.files import number
from posttrain.rundir.scores import SCORE_FIELDS
from posttrain.types import Score

LARGEST = 2**53
"""Integers from here on are not all floats."""
SHARE = re.compile(r"(pass|maj)@\d+|accuracy|truncated|parsed")
"""Metrics whose values are shares or probabilities."""
SLACK = 1e-6
"""By how much rounding may take a value out of its bounds."""
PASS_AT = re.compile(r"pass@([1-9]\d{0,8})")


def pass_k(metric: str) -> int | None:
    """k of a metric `pass@k`, None for any other metric."""
    match = PASS_AT.fullmatch(metric)
    return int(match[1]) if match else None


def whole(value: Any, least: int = 0) -> int | None:
    """`value` as an integer from `least` to `LARGEST`, else None."""
    found = number(value)
    return int(found) if found is not None and found.is_integer() and least <= found < LARGEST else None


def in_json(value: Any) -> str:
    """`value` as JSON has it, at most 40 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"


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
    name = f"{score.task}/{score.metric} of {score.checkpoint}"
    value, step, n = number(score.value), whole(score.step), whole(score.n, 1)
    if step is None:
        raise ValueError(f"{name}: step is {in_json(score.step)}, no integer from 0 to 2^53")
    if n is None:
        raise ValueError(f"{name}: n is {in_json(score.n)}, no integer from 1 to 2^53")
    if value is None:
        raise ValueError(f"{name}: value is {in_json(score.value)}, no finite number")
    if SHARE.fullmatch(score.metric) and not -SLACK <= value <= 1 + SLACK:
        raise ValueError(f"{name}: value is {in_json(score.value)}, not between 0 and 1")
    score.value, score.step, score.n = value, step, n
    score.low, score.high = number(score.low), number(score.high)
    if score.low is None or score.high is None:
        score.low = score.high = None
    elif not score.low - SLACK <= value <= score.high + SLACK:
        bounds = f"[{in_json(score.low)}, {in_json(score.high)}]"
        raise ValueError(f"{name}: value is {in_json(value)}, not within its interval {bounds}")
    if not isinstance(score.differs, dict):
        score.differs = {}
    return score


def sample_fault(row: dict[str, Any]) -> str:
    """What is wrong with the log-probabilities and verdicts of a row of samples; empty where nothing is."""
    heats = row.get("logp_at", {})
    if not isinstance(heats, dict):
        return f"logp_at is {in_json(heats)}"
    for value in (row.get("logp"), *heats.values()):
        if value is not None and ((found := number(value)) is None or found > SLACK):
            return f"a logp is {in_json(value)}"
    drawn = row.get("completions") or []
    if not isinstance(drawn, list) or not all(isinstance(c, dict) for c in drawn):
        return f"completions is {in_json(drawn)}"
    wrong = [c["value"] for c in drawn if c.get("value") is not None and number(c["value"]) is None]
    return f"a value is {in_json(wrong[0])}" if wrong else ""


def step_fault(row: dict[str, Any]) -> str:
    """What is wrong with the step of a row of metrics.jsonl; empty if nothing, or it has none."""
    wrong = "step" in row and whole(row["step"]) is None
    return f"step is {in_json(row['step'])}, no integer from 0 to 2^53" if wrong else ""
