"""Boolean expressions of not, and, or; xor from level 3, implication from level 5, deeper with each level."""

from __future__ import annotations

from random import Random

from posttrain.data.problems.base import Family

OPERATORS = ("and", "or", "xor", "implies")


def make(rng: Random, level: int) -> tuple[str, str]:
    """`p = true, q = false, r = true. Is (p and not q) or r true or false?`"""
    names = "pqrstu"[: 2 + level]
    values = {name: rng.random() < 0.5 for name in names}
    text, value = _expression(rng, level, level + 1, values)
    given = ", ".join(f"{name} = {str(values[name]).lower()}" for name in names)
    return f"{given}. Is {text} true or false?", str(value).lower()


def _expression(rng: Random, level: int, depth: int, values: dict[str, bool]) -> tuple[str, bool]:
    if depth == 0 or (depth < level and rng.random() < 0.3):
        name = rng.choice(list(values))
        text, value = name, values[name]
    else:
        left, a = _expression(rng, level, depth - 1, values)
        right, b = _expression(rng, level, min(depth - 1, 1), values)
        sign = rng.choice(OPERATORS[: 2 if level < 3 else 3 if level < 5 else 4])
        value = {"and": a and b, "or": a or b, "xor": a != b, "implies": not a or b}[sign]
        text = f"({left} {sign} {right})"
    if rng.random() < 0.25:
        text, value = f"not {text}", not value
    return text, value


FAMILY = Family("boolean_logic", make, "exact")
