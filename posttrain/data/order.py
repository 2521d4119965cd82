"""The two orders a mixture is made of, as pure functions: which row of a source, which source of a mixture.

`permute` is a seeded permutation of range(n) that is never stored. `Schedule` gives the source at position i
such that every prefix realises the weights to within one example per source. Both have random access, and the
memory of neither grows with the number of examples (`Schedule` keeps one small array of counts every 65,536
positions). Left out: the contents of the sources, caps, epochs and errors that name recipe keys (mixture.py).
The permutation is for shuffling; it is not cryptographic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from heapq import heapify, heappop, heappush
from math import gcd, isqrt, lcm

import numpy as np

ROUNDS, SMALL_ROUNDS, SMALL = 8, 16, 256
"""Feistel rounds, and those below SMALL elements, where eight do not make all orders equally likely."""
BLOCK = 1 << 16
"""Positions of a schedule that are computed and kept together."""
MAX_PERIOD = 1 << 20
"""Weights that are not short decimals are rounded to multiples of 1 / MAX_PERIOD."""

_MASK = (1 << 64) - 1
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key_of(*parts: object) -> int:
    """A 64-bit key from plain values (ints, strings); the same on every machine and in every process."""
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=4096)
def _network(n: int, key: int) -> tuple[int, int, tuple[int, ...]]:
    """Sides a, b of the domain (a * b >= n), and the round keys."""
    a = isqrt(n - 1) + 1
    b = -(-n // a)
    # With both sides odd every round is an even permutation, and half of all orders would never occur.
    rounds = SMALL_ROUNDS if n < SMALL else ROUNDS
    return a, b + b % 2, tuple(key_of(key, r) for r in range(rounds))


def permute(i: int, n: int, key: int) -> int:
    """Element i of the permutation of range(n) that belongs to `key`. O(1) time and memory.

    A generalised Feistel network over Z_a x Z_b, a ~ b ~ sqrt(n), with cycle walking: an image outside
    range(n) is mapped again until it falls inside (Black & Rogaway 2002, "Ciphers with arbitrary finite
    domains"). a * b exceeds n by about 2 sqrt(n) at most, so this is rare. The round function is the
    finaliser of splitmix64.
    """
    if not 0 <= i < n:
        raise IndexError(f"element {i} of a permutation of {n}")
    a, b, keys = _network(n, key)
    while True:
        left, right = divmod(i, b)
        for r in range(0, len(keys), 2):
            x = (right + keys[r]) & _MASK
            x = ((x ^ (x >> 30)) * _M1) & _MASK
            x = ((x ^ (x >> 27)) * _M2) & _MASK
            left = (left + (x ^ (x >> 31))) % a
            x = (left + keys[r + 1]) & _MASK
            x = ((x ^ (x >> 30)) * _M1) & _MASK
            x = ((x ^ (x >> 27)) * _M2) & _MASK
            right = (right + (x ^ (x >> 31))) % b
        i = left * b + right
        if i < n:
            return i


def permute_array(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """`permute` of many elements at once: int64 [K] -> int64 [K], the same values."""
    out = np.array(indices, dtype=np.int64)
    if out.size and (out.min() < 0 or out.max() >= n):
        raise IndexError(f"elements outside a permutation of {n}")
    walking = np.arange(out.size)
    a, b, keys = _network(max(n, 1), key)
    a64, b64 = np.uint64(a), np.uint64(b)
    while walking.size:
        left, right = np.divmod(out[walking].astype(np.uint64), b64)
        for r in range(0, len(keys), 2):
            # The scalar version adds before it reduces; here the sum would wrap, so reduce first.
            left = (left + _finalise(right + np.uint64(keys[r])) % a64) % a64
            right = (right + _finalise(left + np.uint64(keys[r + 1])) % b64) % b64
        image = (left * b64 + right).astype(np.int64)
        out[walking] = image
        walking = walking[image >= n]
    return out


def _finalise(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014), uint64 wrapping."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    return x ^ (x >> np.uint64(31))


def integer_weights(weights: Sequence[float | int | Fraction]) -> tuple[tuple[int, ...], float]:
    """Whole numbers in the proportions of `weights`, and the largest change of a share by rounding.

    Short decimals and whole numbers are exact (0.7, 0.2, 0.1 -> 7, 2, 1; change 0). Where their sum would
    exceed MAX_PERIOD they are rounded to shares of it by largest remainder, and a positive weight stays
    positive. Weights must be finite, not negative and not all zero.
    """
    # `repr` is the shortest decimal of a float, so 0.1 is a tenth and not 3602879701896397 / 2**55.
    exact = [Fraction(repr(float(w))) if isinstance(w, float) else Fraction(w) for w in weights]
    scale = lcm(*(w.denominator for w in exact))
    whole = [int(w * scale) for w in exact]
    whole = [w // gcd(*whole) for w in whole]
    if sum(whole) <= MAX_PERIOD:
        return tuple(whole), 0.0
    total = sum(whole)
    quotas = [Fraction(w * MAX_PERIOD, total) for w in whole]
    rounded = [max(int(q), 1) if q else 0 for q in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda s: rounded[s] - quotas[s])
    for s in by_remainder[: max(0, MAX_PERIOD - sum(rounded))]:
        rounded[s] += 1
    change = max(
        abs(Fraction(r, sum(rounded)) - Fraction(w, total)) for r, w in zip(rounded, whole, strict=True)
    )
    rounded = [r // gcd(*rounded) for r in rounded]
    return tuple(rounded), float(change)


class Schedule:
    """The source at each position i >= 0, for whole-number weights W_s with period P = sum W_s.

    For m sources and every i, |examples of s among the first i - i W_s / P| <= 1 - 1 / (2m - 2) < 1, and
    after P positions the counts are exactly W_s. Tijdeman 1980, "The chairman assignment problem", Discrete
    Mathematics 32:323-330, theorem 1: of the sources whose next example may come, take the one whose deadline
    is nearest.

    The choice at a position depends only on the counts before it, so a block of positions is computed from
    the counts at its start. The first pass over the positions costs about 1 microsecond each.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 0 or not any(weights):
            raise ValueError(f"weights must be whole numbers of at least 0, one of them positive: {weights}")
        common = gcd(*weights)
        self.weights = tuple(w // common for w in weights)
        self.period = sum(self.weights)
        self._starts = {0: (0,) * len(self.weights)}  # counts at the start of each known block
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getitem__(self, i: int) -> tuple[int, int]:
        """(source, k): position i holds the k-th example of that source, k = 0, 1, ..."""
        if i < 0:
            raise IndexError(f"position {i}")
        cycle, i = divmod(i, self.period)
        number, i = divmod(i, BLOCK)
        sources, ranks = self._blocks.get(number) or self._block(number)
        s = int(sources[i])
        return s, cycle * self.weights[s] + self._starts[number][s] + int(ranks[i])

    def counts(self, i: int) -> list[int]:
        """Examples of each source among the first i positions."""
        cycle, i = divmod(i, self.period)
        number, i = divmod(i, BLOCK)
        counts = [cycle * w for w in self.weights]
        if i or number:
            sources, _ = self._blocks.get(number) or self._block(number)
            within = np.bincount(sources[:i], minlength=len(counts))
            start = self._starts[number]
            counts = [c + a + int(b) for c, a, b in zip(counts, start, within, strict=True)]
        return counts

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources [BLOCK] of a block, and the number of each example among those of its source there [BLOCK].

        The blocks before it are computed once.
        """
        for before in range(len(self._starts) - 1, number):
            self._compute(before)
        return self._compute(number)

    def _compute(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        first = number * BLOCK
        counts = list(self._starts[number])
        chosen = _chairmen(self.weights, counts, first, min(first + BLOCK, self.period))
        self._starts[number + 1] = tuple(counts)
        sources = np.array(chosen, dtype=np.uint16)
        ranks = np.empty(len(sources), dtype=np.uint16)
        for s in np.unique(sources):
            of_source = sources == s
            ranks[of_source] = np.arange(np.count_nonzero(of_source))
        while len(self._blocks) >= 2 * MAX_PERIOD // BLOCK:
            self._blocks.pop(next(iter(self._blocks)), None)
        self._blocks[number] = sources, ranks
        return sources, ranks


def _chairmen(weights: Sequence[int], counts: list[int], first: int, stop: int) -> list[int]:
    """The sources at positions first..stop-1, given the counts before `first`, which it advances.

    With d = 2m - 2, example c of a source of weight W must not come before position (c + 1/d) P / W (counted
    from 1) nor after floor((c + 1 - 1/d) P / W) + 1. Whole-number deadlines are enough: earliest deadline
    first meets every set of unit jobs that can be met at all, and Tijdeman proves that this one can be met.
    """
    m, period = len(weights), sum(weights)
    d = max(2, 2 * m - 2)
    # Heaps of time * m + source, because numbers compare faster than tuples. `-(-x // y)` rounds up.
    waiting = [-(-period * (counts[s] * d + 1) // (d * w)) * m + s for s, w in enumerate(weights) if w]
    heapify(waiting)
    ready: list[int] = []
    chosen = []
    for position in range(first + 1, stop + 1):
        while waiting and waiting[0] < (position + 1) * m:
            s = heappop(waiting) % m
            due = period * ((counts[s] + 1) * d - 1) // (d * weights[s]) + 1
            heappush(ready, due * m + s)
        s = heappop(ready) % m
        chosen.append(s)
        counts[s] = count = counts[s] + 1
        heappush(waiting, -(-period * (count * d + 1) // (d * weights[s])) * m + s)
    return chosen


@lru_cache(maxsize=16)
def schedule(weights: tuple[int, ...]) -> Schedule:
    """The schedule of these weights, computed once a process."""
    return Schedule(weights)
