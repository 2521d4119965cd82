"""From counts or log-probabilities of a problem to its pass@k, pass^k and maj@k, in closed form; and values
whose mean is a weighted or a harmonic one.

One value per problem; `intervals` has means and their intervals. Left out: calibration, diversity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

UNBOUNDED = ("nll", "tokens_mean", "bits_per_byte", "blank_perplexity")
"""Metrics of `score.py` whose values are not shares or probabilities."""
SHARES = ("inst_strict", "inst_loose", "f1")
"""Shares whose values, those of `weighted` and `harmonic`, may lie outside 0 to 1."""


def pass_at_k(correct: ArrayLike, n: ArrayLike, k: int) -> np.ndarray:
    """Probability that k of the n samples, drawn without replacement, include a correct one; [M].

    1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1), for all c at once by
    q_0 = 1, q_{c+1} = q_c (n-c-k) / (n-c). `correct` [M] counts the correct ones of `n` (one number, or [M]).

    Raises:
        ValueError: n < k, k < 1, or counts that are not whole numbers in 0..n.
    """
    return _by_count(correct, n, k, lambda size: 1.0 - _misses(size, k))


def pass_all_k(correct: ArrayLike, n: ArrayLike, k: int) -> np.ndarray:
    """pass^k: probability that all of k samples drawn without replacement are correct, C(c, k) / C(n, k);
    [M].

    Raises: as `pass_at_k`.
    """
    return _by_count(correct, n, k, lambda size: _misses(size, k)[::-1])


def _misses(n: int, k: int) -> np.ndarray:
    """C(n-c, k) / C(n, k) for c = 0..n."""
    c = np.arange(n)
    return np.concatenate([[1.0], np.cumprod(np.maximum(n - c - k, 0) / (n - c))])


def _by_count(correct: ArrayLike, n: ArrayLike, k: int, table) -> np.ndarray:
    correct = np.atleast_1d(np.asarray(correct))
    if correct.dtype.kind not in "iu" or np.asarray(n).dtype.kind not in "iu":
        raise ValueError("counts must be whole numbers")
    n = np.broadcast_to(n, correct.shape)
    if k < 1 or (n < k).any():
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples per problem, not {n.min()}")
    if (correct < 0).any() or (correct > n).any():
        raise ValueError("a problem has more correct samples than samples, or a negative number")
    values = np.empty(correct.shape)
    for size in np.unique(n):
        values[n == size] = table(int(size))[correct[n == size]]
    return values


def weighted(values: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Values whose mean is R = sum(w v) / sum(w) and whose spread is that of R; [M].

    R + w (v - R) / mean(w): the mean is exact, the spread to first order. For a mean over the parts of
    problems with the problem as the sampling unit: `values` [M] are means over the `weights` [M] parts.
    """
    v, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    ratio = float(w @ v / w.sum())
    return ratio + w * (v - ratio) / w.mean()


def harmonic(values: ArrayLike, first: ArrayLike) -> np.ndarray:
    """Values whose mean is F = 2 a b / (a + b) and whose spread is that of F; [M]. 0 where a and b are 0.

    a is the mean of the M_a of the `values` [M] where `first` [M] is true, b that of the others.
    F + dF/da (v - a) M / M_a, or the same of b: the mean is exact, the spread to first order.

    Raises:
        ValueError: `first` is the same everywhere.
    """
    v, of = np.asarray(values, dtype=np.float64), np.asarray(first, dtype=bool)
    if of.all() or not of.any():
        raise ValueError("a harmonic mean needs values of both kinds")
    a, b = float(v[of].mean()), float(v[~of].mean())
    if a + b == 0.0:
        return np.zeros(len(v))
    slope_a, slope_b = 2 * (b / (a + b)) ** 2, 2 * (a / (a + b)) ** 2
    away = np.where(of, slope_a * (v - a) / of.mean(), slope_b * (v - b) / (~of).mean())
    return 2 * a * b / (a + b) + away


def of_known(
    change: Callable[[ArrayLike, ArrayLike], np.ndarray],
    values: Sequence[float | None],
    beside: Sequence[Any],
) -> list[float | None]:
    """`change(values, beside)` over the problems that have a value; None for the others."""
    known = [i for i, value in enumerate(values) if value is not None]
    found: list[float | None] = [None] * len(values)
    if known:
        changed = change([values[i] for i in known], [beside[i] for i in known]).tolist()
        for i, value in zip(known, changed, strict=True):
            found[i] = value
    return found


def kendall_tau(scores: Sequence[float]) -> float:
    """Kendall's tau-a of scores with their order: the share of pairs that rise less the share that fall, 1
    where every later checkpoint is better. NaN below four scores, which say too little."""
    n = len(scores)
    if n < 4:
        return math.nan
    signs = [np.sign(scores[j] - scores[i]) for i in range(n) for j in range(i + 1, n)]
    return float(sum(signs)) / len(signs)


def log1mexp(logp: ArrayLike) -> np.ndarray:
    """log(1 - exp(logp)) for logp <= 0, to full precision at both ends; -inf at 0 (Maechler 2012).

    A log-probability above 0 is taken as 0: sums of float32 terms overshoot by a rounding error.
    """
    a = np.maximum(-np.asarray(logp, dtype=np.float64), 0.0)
    with np.errstate(divide="ignore"):
        return np.where(a <= math.log(2), np.log(-np.expm1(-a)), np.log1p(-np.exp(-a)))


def pass_at_n(logp: ArrayLike, n: float) -> np.ndarray:
    """1 - (1-p)^n for p = exp(logp): exact pass@N of an answer whose probability is known."""
    return -np.expm1(n * log1mexp(logp))


def pooled_pass_at_n(logps: ArrayLike, n: float) -> np.ndarray:
    """pass@n of each problem when n attempts are spread evenly over K checkpoints; [K, M] -> [M].

    1 - prod_k (1-p_k)^(n/K); with n below K each checkpoint gets a fraction of an attempt, i.e. the geometric
    mean of the probabilities to miss.
    """
    return -np.expm1(n * log1mexp(logps).mean(axis=0))


def maj_at_k(correct: int, wrong: Sequence[int], abstained: int, k: int) -> float:
    """Probability that the most frequent answer among k samples drawn without replacement is correct.

    `correct` samples gave the correct answer, `wrong` lists how many gave each other answer, `abstained` gave
    none. Ties are broken evenly; where all k abstain there is no answer, which counts as wrong. Exact:
    sum_{m=1..k} C(correct, m) sum_t (1+t)^-1 [x^(k-m) y^t] prod_b (sum_{j<m} C(n_b,j) x^j + y C(n_b,m) x^m)
    times sum_j C(abstained,j) x^j, over C(n,k). y counts the answers that tie.

    Raises:
        ValueError: fewer than k samples, or k < 1.
    """
    n = correct + sum(wrong) + abstained
    if k < 1 or n < k:
        raise ValueError(f"maj@{k} needs at least {max(k, 1)} samples, not {n}")
    return _maj(correct, tuple(sorted(w for w in wrong if w)), abstained, k)


@lru_cache(maxsize=65536)
def _maj(correct: int, wrong: tuple[int, ...], abstained: int, k: int) -> float:
    total = 0.0
    for m in range(1, min(correct, k) + 1):
        rest = k - m  # samples that are not the correct answer
        ways = np.zeros((rest // m + 1, rest + 1))  # [answers that tie, samples drawn]
        ways[0, : abstained + 1] = _binomials(abstained, rest)[: rest + 1]
        for count in wrong:
            ways = _draw(ways, _binomials(count, min(m, rest)), m)
        total += math.comb(correct, m) * float(ways[:, rest] @ (1 / np.arange(1, len(ways) + 1)))
    n = correct + sum(wrong) + abstained
    return total / math.comb(n, k)


def _draw(ways: np.ndarray, choices: np.ndarray, m: int) -> np.ndarray:
    """`ways` after another wrong answer was drawn j times in choices[j] ways; m times is a tie."""
    out = np.zeros_like(ways)
    for j, number in enumerate(choices):
        moved = ways[:, : ways.shape[1] - j] * number
        if j < m:
            out[:, j:] += moved
        else:
            out[1:, j:] += moved[:-1]
    return out


def _binomials(n: int, most: int) -> np.ndarray:
    """C(n, j) for j = 0..min(n, most)."""
    return np.array([float(math.comb(n, j)) for j in range(min(n, most) + 1)])
