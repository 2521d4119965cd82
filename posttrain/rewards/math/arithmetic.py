"""The value of a tree at a point: exact fractions where possible, otherwise mpmath at a set precision.

Every operation is counted before it runs, and refused where it would be large (`TooCostly`). `spread` is the
largest number of decimal digits between the terms of a sum, or between the argument of a function and 1: what
the precision must cover for a tiny term not to vanish. Real roots are preferred: (-8)^(1/3) is -2. Left out:
intervals of error; `equality` compares two precisions.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any

from posttrain.rewards.math.limits import (
    DIGITS,
    EXACT_BITS,
    LARGEST_FACTORIAL,
    WORK,
    TooCostly,
    Undefined,
    Unreadable,
)
from posttrain.rewards.math.tree import Tree

Value = Any
"""A Fraction, or an mpf or mpc of the context."""
LARGEST_GAMMA = 1000
LONGEST_DECIMAL = 1500
"""Digits that a constant of 1,000 characters can have without powers."""
PLAIN = frozenset(str.split("sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln log10 exp cbrt"))
MPMATH = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}


@cache
def context() -> Any:
    """Our own mpmath context, so that its precision is not shared."""
    # mpmath takes longer to import than all of this package: listing the rewards must not wait for it
    from mpmath.ctx_mp import MPContext

    return MPContext()


class Arithmetic:
    """Evaluates trees with `digits` decimal digits; `work` counts what it cost."""

    def __init__(self, digits: int = 60) -> None:
        self.mp = context()
        self.work = 0
        self.spread = 0
        self.longest = 0
        """Digits of the longest fraction that met a floating-point number: 3.14159... may be close to pi."""
        self.went_complex = False
        """Whether a real number became complex on the way, as in the square root of -1."""
        self.precision(digits)

    def precision(self, digits: int) -> None:
        if digits > DIGITS:
            raise TooCostly(f"a comparison at {digits:,} digits")
        self.digits = digits
        self.mp.dps = digits

    def value(self, tree: Tree, point: dict[str, Fraction]) -> Value:
        """The value of `tree` where its variables are `point`.

        Raises:
            Undefined: it has no value. TooCostly: it is refused.
        """
        self.went_complex = False
        try:
            result = self._value(tree, point)
        except (ZeroDivisionError, OverflowError) as error:
            raise Undefined(str(error)) from None
        except (ValueError, TypeError, NotImplementedError, self.mp.NoConvergence) as error:
            if isinstance(error, TooCostly | Unreadable):
                raise
            raise Undefined(str(error)) from None
        if not isinstance(result, Fraction) and not self.mp.isfinite(result):
            raise Undefined("not finite")
        return result

    def _value(self, tree: Tree, point: dict[str, Fraction]) -> Value:
        kind = tree[0]
        if kind == "num":
            return tree[1]
        if kind == "sym":
            return point[tree[1]]
        if kind == "const":
            self._spend(self.digits)
            return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.j}[tree[1]]
        if kind == "pow":
            values = [self._value(tree[1], point), self._value(tree[2], point)]
            return self._left_line(values, self._seen(self._power(*values)))
        if kind == "fn":
            values = [self._value(t, point) for t in tree[2]]
            return self._left_line(values, self._seen(self._function(tree[1], values)))
        if kind == "inf":
            raise Undefined("infinity is not a number")
        values = [self._value(part, point) for part in tree[1]]
        if kind == "add":
            self._cover(values)
        total = values[0]
        for value in values[1:]:
            if isinstance(total, Fraction) != isinstance(value, Fraction):
                total, value = self.mpf(total), self.mpf(value)
            self._spend(_bits(total) * _bits(value) >> 10 if isinstance(total, Fraction) else self.digits)
            total = self._seen(total + value if kind == "add" else total * value)
        return total

    def _cover(self, values: list[Value]) -> None:
        """Records how far apart the terms of a sum, or an argument and 1, are in magnitude: see `spread`."""
        sizes = [size for size in map(self._size, values) if size is not None]
        if sizes:
            self.spread = max(self.spread, (max(sizes) - min(sizes)) * 3 // 10)

    def _size(self, value: Value) -> int | None:
        """Binary order of magnitude; None for zero."""
        if isinstance(value, Fraction):
            return value.numerator.bit_length() - value.denominator.bit_length() if value else None
        size = self.mp.mag(value)
        return size if isinstance(size, int) else None

    def mpf(self, value: Value) -> Value:
        """`value` as a number of mpmath."""
        if not isinstance(value, Fraction):
            return value
        self._spend(self.digits)
        self.longest = max(self.longest, min(_bits(value) * 3 // 10, LONGEST_DECIMAL))
        return self.mp.mpf(value.numerator) / value.denominator

    def _left_line(self, values: list[Value], result: Value) -> Value:
        if self._complex(result) and not any(map(self._complex, values)):
            self.went_complex = True
        return result

    def _seen(self, value: Value) -> Value:
        """A fraction with too many digits becomes a floating-point number."""
        if isinstance(value, Fraction) and _bits(value) > 2 * EXACT_BITS:
            return self.mpf(value)
        return value

    def _spend(self, units: int) -> None:
        self.work += 20 + units
        if self.work > WORK:
            raise TooCostly("too much arithmetic")

    def _power(self, base: Value, exponent: Value) -> Value:
        if isinstance(exponent, Fraction) and isinstance(base, Fraction):
            exact = self._exact_power(base, exponent)
            if exact is not None:
                return exact
        if isinstance(exponent, Fraction) and exponent.denominator == 2 and exponent.numerator == 1:
            self._spend(self.digits)
            return self.mp.sqrt(self.mpf(base))
        if base == 0:
            if self.mp.re(self.mpf(exponent)) <= 0:
                raise Undefined("a power of zero")
            return Fraction(0)
        if (
            isinstance(exponent, Fraction)
            and exponent.denominator % 2
            and not self._complex(base)
            and base < 0
        ):
            size = self._power(-base, exponent)
            return -size if exponent.numerator % 2 else size
        self._cover([exponent, Fraction(1)])
        base, exponent = self.mpf(base), self.mpf(exponent)
        size = abs(exponent) * (abs(self.mp.mag(base)) + 5)
        if size > 4 * DIGITS:
            raise TooCostly("a power that is too large")
        self._spend(self.digits**2 // 150 + 1500)
        return self.mp.power(base, exponent)

    def _exact_power(self, base: Fraction, exponent: Fraction) -> Fraction | None:
        if exponent.denominator == 1:
            power = exponent.numerator
            if base == 0 and power < 0:
                raise Undefined("division by zero")
            if abs(base) == 1 or power in (0, 1):
                return Fraction(1) if power % 2 == 0 else base
            if abs(power) * _bits(base) > EXACT_BITS:
                return None
            self._spend((abs(power) * _bits(base)) ** 2 >> 12)
            return base**power
        if base < 0 or exponent.denominator > 64 or abs(exponent.numerator) > 64:
            return None
        top, bottom = (_root(n, exponent.denominator) for n in (base.numerator, base.denominator))
        if top is None or bottom is None:
            return None
        return self._exact_power(Fraction(top, bottom), Fraction(exponent.numerator))

    def _complex(self, value: Value) -> bool:
        return not isinstance(value, Fraction) and bool(self.mp.im(value))

    def _function(self, name: str, values: list[Value]) -> Value:
        if name.endswith("()"):  # an unknown function: any fixed smooth function will do
            x = values[0]
            return x * x * x * (ord(name[0]) % 7 + 2) + x / 3 + Fraction(ord(name[0]), 97)
        if name in ("factorial", "factorial2"):
            return self._factorial(name, values[0])
        if name == "binomial":
            return self._binomial(*values)
        if name == "abs":
            return abs(values[0])
        if name in ("floor", "ceil"):
            return self._round(name, values[0])
        if name == "root":
            degree = values[1]
            if not isinstance(degree, Fraction) or degree == 0:
                raise Unreadable("a root whose degree is not a number")
            return self._power(values[0], 1 / degree)
        self._spend(self.digits**2 // 150 + 1500)
        if name == "logb":
            x, base = values
            if isinstance(x, Fraction) and x == 1:
                return Fraction(0)
            return self.mp.ln(self.mpf(x)) / self.mp.ln(self.mpf(base))
        if name not in PLAIN:
            raise Unreadable(f"the function {name}")
        self._cover([values[0], Fraction(1)])
        x = self.mpf(values[0])
        if name == "exp" or name.endswith("h"):
            if abs(x) > 4 * DIGITS:
                raise TooCostly("an exponential that is too large")
        elif self.mp.mag(x) > 4 * DIGITS:
            raise TooCostly("an angle that is too large")
        if name == "cbrt":
            return self._power(values[0], Fraction(1, 3))
        return getattr(self.mp, MPMATH.get(name, name))(x)

    def _round(self, name: str, x: Value) -> Value:
        if isinstance(x, Fraction):
            return Fraction(math.floor(x) if name == "floor" else math.ceil(x))
        if self._complex(x) or self.mp.mag(x) > 3 * self.digits:
            raise Undefined("no integer nearby")
        near = self.mp.nint(x)
        if abs(x - near) < self.mp.mpf(10) ** (-self.digits // 2):
            return Fraction(int(near))
        return Fraction(int(getattr(self.mp, name)(x)))

    def _factorial(self, name: str, x: Value) -> Value:
        if isinstance(x, Fraction) and x.denominator == 1:
            n = x.numerator
            if n < 0:
                raise Undefined("a factorial of a negative number")
            if n > LARGEST_FACTORIAL:
                raise TooCostly(f"the factorial of {n:,}" if n < 10**9 else "a huge factorial")
            self._spend(n * n // 4)
            return Fraction(math.factorial(n) if name == "factorial" else math.prod(range(n, 0, -2)))
        if name == "factorial2":
            raise Undefined("a double factorial of a number that is not an integer")
        self._gamma(x)
        return self.mp.factorial(self.mpf(x))

    def _gamma(self, *arguments: Value) -> None:
        for x in arguments:
            if abs(x) > LARGEST_GAMMA or self.digits > 400:
                raise TooCostly("a factorial that is too large")
            self._spend(self.digits**2 + 2000)

    def _binomial(self, n: Value, k: Value) -> Value:
        whole = all(isinstance(x, Fraction) and x.denominator == 1 for x in (n, k))
        if whole and n >= 0:
            n, k = n.numerator, k.numerator
            if n > 10_000 and (not 0 <= min(k, n - k) <= 20 or n > 10**30):
                raise TooCostly("a binomial coefficient that is too large")
            if k < 0 or k > n:
                return Fraction(0)
            self._spend(n * min(k, n - k) // 16)
            return Fraction(math.comb(n, k))
        self._gamma(n, k)
        return self.mp.binomial(self.mpf(n), self.mpf(k))


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _root(n: int, degree: int) -> int | None:
    """The integer `degree`-th root of n >= 0, or None if there is none."""
    if n in (0, 1):
        return n
    if degree == 2:
        root = math.isqrt(n)
    else:
        if n.bit_length() > 1000:
            return None
        low, high = 1, 1 << (n.bit_length() // degree + 1)
        while low < high:  # the largest root whose power is not above n
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= n else (low, middle - 1)
        root = low
    return root if root**degree == n else None
