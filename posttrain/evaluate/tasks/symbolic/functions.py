"""Values of templates, their arithmetic and the functions that a template may call; numbers are exact.

Every result is bounded. Left out: the syntax (`language.py`).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from posttrain.rewards.math.words import NUMBERS

LONGEST_LIST = 10_000
LARGEST = 10**30
"""Numerators and denominators are smaller."""
HIGHEST = 100
"""The largest exponent."""
WORDS = {value: word for word, value in reversed(NUMBERS.items())}
"""42 -> `forty-two`."""


@dataclass(frozen=True, slots=True)
class Worded:
    """A number that is written in words: `half`, `twice`, `twelve-sided`. As text it is the words, in
    arithmetic the number; `[0]` and `[1]` are the two."""

    text: str
    number: int | Fraction


def number(value: Any) -> int | Fraction:
    """What `value` is in arithmetic. Raises ValueError if it is not a number."""
    kind = type(value)
    if kind is int or kind is Fraction or kind is bool:
        return value
    if kind is Worded:
        return value.number
    raise ValueError(f"{short(repr(value))} is not a number")


def truth(value: Any) -> bool:
    """Whether a condition holds. Raises ValueError if it is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{short(repr(value))} is neither true nor false")
    return value


def exact(value: int | Fraction) -> int | Fraction:
    """A whole number as `int`. Raises ValueError where a number is too large."""
    if type(value) is int:
        if -LARGEST < value < LARGEST:
            return value
    elif -LARGEST < value.numerator < LARGEST and value.denominator < LARGEST:
        return value if value.denominator != 1 else value.numerator
    raise ValueError("a number is too large")


def items(value: Any) -> Any:
    """The list, or the parts of a pair or a text. Raises ValueError where there are none."""
    if isinstance(value, Worded):
        return [value.text, value.number]
    if isinstance(value, list | str):
        return value
    raise ValueError(f"{short(repr(value))} has no parts")


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, list) and isinstance(right, list):
        return _long(left, len(left) + len(right)) + right
    return exact(number(left) + number(right))


def _multiply(left: Any, right: Any) -> Any:
    if isinstance(left, list) and type(right) is int:
        return _long(left, len(left) * max(right, 0)) * right
    return exact(number(left) * number(right))


def _long(items: list[Any], length: int) -> list[Any]:
    if length > LONGEST_LIST:
        raise ValueError(f"a list of {length} items is too long; {LONGEST_LIST} are allowed")
    return items


def _divide(left: Any, right: Any) -> int | Fraction:
    left, right = number(left), _not_zero(right)
    return exact(Fraction(left, right))


def _not_zero(value: Any) -> int | Fraction:
    if not (found := number(value)):
        raise ValueError("a division by zero")
    return found


def _power(left: Any, right: Any) -> int | Fraction:
    left, right = number(left), number(right)
    if right.denominator != 1 or not 0 <= right <= HIGHEST:
        raise ValueError(f"an exponent must be a whole number of 0 to {HIGHEST}")
    return exact(left**right.numerator)


def _span(start: Any, end: Any, step: Any = 1) -> list[int | Fraction]:
    """From `start` in steps, before `end`; like `range`, also in fractions."""
    start, end, step = number(start), number(end), _not_zero(step)
    length = max(0, -((start - end) // step))
    _long([], length)
    return [exact(start + i * step) for i in range(length)]


def _whole_span(start: Any, end: Any, *step: Any) -> list[int | Fraction]:
    if any(number(value).denominator != 1 for value in (start, end, *step)):
        raise ValueError("range takes whole numbers; np.arange takes others")
    return _span(start, end, *step)


def _drawn_span(low: Any, high: Any, size: Any) -> list[int | Fraction]:
    return _whole_span(low, high)  # one of them is drawn


def _round(value: Any, digits: Any = 0) -> int | Fraction:
    if (digits := number(digits)) not in range(20):
        raise ValueError("round takes 0 to 19 digits")
    return exact(Fraction(round(Fraction(number(value)), int(digits))))


def _rounded_all(values: Any) -> list[int | Fraction]:
    return [number(value) for value in items(values)]  # they are exact


def _mixed(value: Any) -> str:
    """`3 1/2` of 7/2."""
    whole, rest = divmod(abs(Fraction(number(value))), 1)
    parts = [whole] * (not rest or whole > 0) + [rest] * (rest > 0)
    return "-" * (number(value) < 0) + " ".join(map(str, parts))


def _number_words(low: Any, high: Any) -> list[Worded]:
    return [in_words(n) for n in _whole_span(low, number(high) + 1)]


def in_words(value: int | Fraction) -> Worded:
    """`forty-two`, 42. Raises ValueError outside 0 to 99."""
    if value not in WORDS:
        raise ValueError("numbers_within takes 0 to 99")
    return Worded(WORDS[value], value)


def _fraction(value: Any, below: Any = 1) -> int | Fraction:
    return _divide(value, below)


FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "int": (1, 1, lambda value: int(number(value))),
    "round": (1, 2, _round),
    "is_int": (1, 1, lambda value: number(value).denominator == 1),
    "divides": (2, 2, lambda value, by: number(value) % _not_zero(by) == 0),
    "Fraction": (1, 2, _fraction),
    "format_frac": (1, 1, _mixed),
    "range": (2, 3, _whole_span),
    "frange": (3, 3, _span),
    "np.arange": (3, 3, _span),
    "np.random.randint": (3, 3, _drawn_span),
    "numbers_within": (2, 2, _number_words),
    "list": (1, 1, items),
    "fix_floats": (1, 1, _rounded_all),
    "shuffle_list": (1, 1, items),
}
"""Name -> least and most values, and the function. Those of lists give all that a slot may be."""
ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: _add,
    ast.Sub: lambda left, right: exact(number(left) - number(right)),
    ast.Mult: _multiply,
    ast.Div: _divide,
    ast.FloorDiv: lambda left, right: exact(number(left) // _not_zero(right)),
    ast.Mod: lambda left, right: exact(number(left) % _not_zero(right)),
    ast.Pow: _power,
}
COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def short(text: str, most: int = 60) -> str:
    """`text`, cut to `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
