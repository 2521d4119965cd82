"""What the checker refuses: exceptions and numbers. Left out: time and memory, which the worker limits."""

from __future__ import annotations

LONGEST = 1000
"""Characters of an answer or of a reference."""
DEEPEST = 100
"""Levels of nesting."""
EXACT_BITS = 50_000
"""Bits of a numerator or denominator that is computed exactly."""
DIGITS = 6000
"""The most decimal digits that a comparison computes with."""
LARGEST_FACTORIAL = 3000
LARGEST_EXPONENT = 5000
"""Of scientific notation, either sign."""
WORK = 30_000_000
"""Units of arithmetic of one comparison, see `arithmetic.Arithmetic`: about half a second."""


class TooCostly(ValueError):
    """An answer that is refused before it is computed."""


class Unreadable(ValueError):
    """Text that this checker cannot read as an answer."""


class Undefined(ArithmeticError):
    """An expression without a value, such as 1/0."""
