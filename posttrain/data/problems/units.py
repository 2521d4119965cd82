"""Units of length, mass, volume, time and speed. Every answer is a finite decimal."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from posttrain.data.problems.base import Family

LADDERS = (
    {"mm": 1, "cm": 10, "m": 1000, "km": 1_000_000},
    {"mg": 1, "g": 1000, "kg": 1_000_000, "t": 1_000_000_000},
    {"ml": 1, "cl": 10, "dl": 100, "l": 1000},
    {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400},
)


def make(rng: Random, level: int) -> tuple[str, str]:
    """`How many cm are 3 m?`"""
    ladder = rng.choice(LADDERS)
    names = list(ladder)
    low = rng.randrange(3)
    small, large = names[low], names[rng.randint(low + 1, 3)]
    ratio = ladder[large] // ladder[small]
    number = rng.randint(2, 999)
    if level == 1:
        return f"How many {small} are {number} {large}?", str(number * ratio)
    if level == 2:
        number = Fraction(rng.randint(1, 9999), rng.choice((2, 4, 5, 10, 20, 100)))
        return f"How many {large} are {decimal(number * ratio)} {small}?", decimal(number)
    if level == 3:
        rest = rng.randint(1, 999)
        asked = f"How many {small} are {number} {large} and {rest} {small}?"
        return asked, str(number * ratio + rest)
    if level == 4:
        speed = 18 * rng.randint(1, 3000)  # tenths of km/h that are whole tenths of m/s
        if rng.random() < 0.5:
            return f"How many m/s are {decimal(Fraction(speed, 10))} km/h?", _slow(speed)
        return f"How many km/h are {_slow(speed)} m/s?", decimal(Fraction(speed, 10))
    square = rng.choice((2, 3))
    length = {"mm": 1, "cm": 10, "dm": 100, "m": 1000}
    small, large = rng.choice((("mm", "cm"), ("mm", "dm"), ("cm", "dm"), ("cm", "m"), ("dm", "m")))
    ratio = (length[large] // length[small]) ** square
    number = Fraction(rng.randint(1, 9999), rng.choice((1, 2, 4, 10)))
    if rng.random() < 0.5:
        asked = f"How many {small}^{square} are {decimal(number)} {large}^{square}?"
        return asked, decimal(number * ratio)
    return f"How many {large}^{square} are {decimal(number)} {small}^{square}?", decimal(number / ratio)


def _slow(tenths: int) -> str:
    return decimal(Fraction(tenths, 36))


def decimal(number: Fraction) -> str:
    """A fraction as a decimal without trailing zeros. Raises ValueError if the decimal is not finite."""
    digits = 0
    while (number * 10**digits).denominator != 1:
        digits += 1
        if digits > 20:
            raise ValueError(f"{number} is not a finite decimal")
    whole = str(abs(int(number * 10**digits))).rjust(digits + 1, "0")
    text = f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole
    return f"-{text}" if number < 0 else text


FAMILY = Family("unit_conversion", make, "math")
