"""Sums of whole-number terms: products from level 2, brackets from level 3, exact quotients from level 4."""

from __future__ import annotations

from random import Random

from posttrain.data.problems.base import Family

LARGEST = (0, 99, 99, 99, 250, 999)
"""The largest operand at each level."""


def make(rng: Random, level: int) -> tuple[str, str]:
    """`What is 12 + 7 * 3 - (4 + 9) * 2?`"""
    text, value = _term(rng, level)
    for _ in range(level):
        sign = rng.choice("+-")
        more, number = _term(rng, level)
        text, value = f"{text} {sign} {more}", value + (number if sign == "+" else -number)
    return f"What is {text}?", str(value)


def _term(rng: Random, level: int) -> tuple[str, int]:
    a, b = rng.randint(2, LARGEST[level]), rng.randint(2, 12)
    kind = rng.randint(1, level)
    if kind == 1:
        return str(a), a
    if kind == 2:
        return f"{a} * {b}", a * b
    if kind == 3:
        c = rng.randint(1, a)
        return f"({a} - {c}) * {b}", (a - c) * b
    if kind == 4:
        return f"{a * b} / {b}", a
    c = rng.randint(1, LARGEST[level])
    return f"({a * b} / {a} + {c}) * {a}", (b + c) * a


FAMILY = Family("arithmetic_chain", make, "math")
