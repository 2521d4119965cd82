"""The next term of a sequence: steps, factors, growing steps, sums of two terms, two interleaved."""

from __future__ import annotations

from random import Random

from posttrain.data.problems.base import Family


def make(rng: Random, level: int) -> tuple[str, str]:
    """`What number comes next: 3, 7, 11, 15?`"""
    terms = (_steps, _factors, _growing, _sums, _two)[level - 1](rng)
    given = ", ".join(map(str, terms[:-1]))
    return f"What number comes next: {given}?", str(terms[-1])


def _steps(rng: Random) -> list[int]:
    first, step = rng.randint(-50, 99), rng.choice((-1, 1)) * rng.randint(2, 40)
    return [first + step * n for n in range(5)]


def _factors(rng: Random) -> list[int]:
    first, factor = rng.randint(2, 400), rng.choice((-3, -2, 2, 3, 4, 5))
    return [first * factor**n for n in range(5)]


def _growing(rng: Random) -> list[int]:
    first, step, more = rng.randint(-50, 99), rng.randint(1, 30), rng.randint(1, 12)
    return [first + step * n + more * n * (n - 1) // 2 for n in range(6)]


def _sums(rng: Random) -> list[int]:
    terms = [rng.randint(1, 90), rng.randint(1, 90)]
    while len(terms) < 7:
        terms.append(terms[-1] + terms[-2])
    return terms


def _two(rng: Random) -> list[int]:
    one, two = _steps(rng), _steps(rng)
    return [term for pair in zip(one, two, strict=True) for term in pair][:9]


FAMILY = Family("number_sequence", make, "math")
