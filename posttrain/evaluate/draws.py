"""What several samples of a problem tell besides pass@k and maj@k; a task file asks for it in `metrics`.

Each is the expectation over k samples drawn without replacement from the n judged ones. Left out: pass@k and
maj@k (`metrics.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import comb

from posttrain.evaluate.metrics import pass_all_k
from posttrain.evaluate.values import Row, judged_of, mean_value
from posttrain.recipe import schema

FURTHER = ("pass^k", "avg@n", "distinct@k", "best_of@k")
"""What `metrics` of a task file may list. `pass^k`: all of k samples are right. `avg@n`: the mean of the
values, which need not be 0 or 1. `distinct@k`: different answers among k samples; all right ones are one.
`best_of@k`: the value of the sample that the reward `best_of` rates highest."""


def further(names: Iterable[str], task: schema.Task) -> list[str]:
    """The metrics that `names` of `FURTHER` stand for, in order."""
    found = []
    for name in names:
        of = [task.samples] if name.endswith("@n") else [k for k in task.k or [] if k > 1]
        found += [f"{name[:-1]}{k}" for k in of]
    return found


def further_values(rows: list[Row], names: Iterable[str], task: schema.Task) -> dict[str, list[float | None]]:
    """metric -> one value per problem; None where fewer than k samples could be judged or rated."""
    judged = judged_of(rows)
    return {metric: [_value(metric, part) for part in judged] for metric in further(names, task)}


def _value(metric: str, judged: list[Row]) -> float | None:
    name = metric.rstrip("0123456789")
    k = int(metric.removeprefix(name))
    if name == "avg@":
        return mean_value(judged)
    if name == "best_of@":
        judged = [c for c in judged if c.get("rated") is not None]
    if len(judged) < k:
        return None
    if name == "pass^":
        return float(pass_all_k(sum(c["value"] >= 1.0 for c in judged), len(judged), k)[0])
    if name == "best_of@":
        return best_of_k([c["rated"] for c in judged], [c["value"] for c in judged], k)
    answers = ["" if c["value"] >= 1.0 else c["read"] for c in judged]
    return distinct_at_k(Counter(a for a in answers if a is not None).values(), len(judged), k)


def distinct_at_k(counts: Iterable[int], n: int, k: int) -> float:
    """Expected number of different answers among k of n samples: sum_a 1 - C(n - n_a, k) / C(n, k) over
    answers that n_a samples gave. Samples without an answer are in n only."""
    return sum(1 - comb(n - count, k) / comb(n, k) for count in counts)


def best_of_k(ratings: Sequence[float], values: Sequence[float], k: int) -> float:
    """Expected value of the sample rated highest among k of n; equal ratings are equally likely to be chosen.

    Of the m samples rated at most r, j below r: the best of k has rating r with probability
    (C(m, k) - C(j, k)) / C(n, k).
    """
    total = 0.0
    for rating in set(ratings):
        same = [v for r, v in zip(ratings, values, strict=True) if r == rating]
        below = sum(r < rating for r in ratings)
        total += (comb(below + len(same), k) - comb(below, k)) * sum(same) / len(same)
    return total / comb(len(ratings), k)
