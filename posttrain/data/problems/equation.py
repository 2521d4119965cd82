"""Linear equations in one unknown: one step, two steps, x on both sides, brackets, fractional answers."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from posttrain.data.problems.base import Family


def make(rng: Random, level: int) -> tuple[str, str]:
    """`Solve for x: 3x + 4 = 19`"""
    x = rng.randint(-40, 40)
    a, b = rng.randint(2, 12), _nonzero(rng, 60)
    if level == 1:
        b = _nonzero(rng, 200)
        text = f"x {_signed(b)} = {x + b}"
    elif level == 2:
        text = f"{a}x {_signed(b)} = {a * x + b}"
    elif level == 3:
        c = rng.choice([n for n in range(2, 13) if n != a])
        text = f"{a}x {_signed(b)} = {c}x {_signed(a * x + b - c * x)}"
    elif level == 4:
        c = rng.choice([n for n in range(2, 13) if n != a])
        d = _nonzero(rng, 30)
        text = f"{a}(x {_signed(b)}) = {c}(x {_signed(d)}) {_signed(a * (x + b) - c * (x + d))}"
    else:
        c = rng.choice([n for n in range(2, 13) if n != a])
        d, e = _nonzero(rng, 60), _nonzero(rng, 60)
        text = f"{a}(x {_signed(b)}) {_signed(e)} = {c}x {_signed(d)}"
        return f"Solve for x: {text}", str(Fraction(d - e - a * b, a - c))
    return f"Solve for x: {text}", str(x)


def _nonzero(rng: Random, most: int) -> int:
    return rng.choice((-1, 1)) * rng.randint(1, most)


def _signed(number: int) -> str:
    return f"+ {number}" if number >= 0 else f"- {-number}"


FAMILY = Family("linear_equation", make, "math")
