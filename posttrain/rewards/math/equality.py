"""Whether two expressions are equal.

Without variables: exact fractions are compared as such; otherwise both are computed at two precisions that
cover the smallest term in either, and are equal if the difference shrinks with the precision, so that no
absolute cut-off exists and 1/2^99 is not 1/2^98. With variables: at 12 to 20 pseudo-random points drawn from
a hash of both texts, where the reference is real (complex ones if it never is); one differing point proves
that they differ, agreement of all valid points (at least 4, exact fractions or 60 and more digits) is taken
for equality. This replaces a simplifier: it cannot hang, and is wrong only for functions that agree at every
point drawn. Variables must be the same on both sides.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from fractions import Fraction

from posttrain.rewards.math.arithmetic import Arithmetic, Value
from posttrain.rewards.math.limits import TooCostly, Undefined
from posttrain.rewards.math.tree import Tree, symbols

START = 60
"""The least number of decimal digits of a comparison."""
RANGES = (
    (0, 1),
    (0, 5),
    (-4, 4),
    (0, 60),
    (-1, 1),
    (1, 9),
    (-30, 0),
    (2, 4),
    (0, 3),
    (-9, 9),
    (5, 300),
    (1, 2),
)
FURTHER = ((100, 1000), (-1000, -100), (5, 50), (-60, -5), (1000, 10**5), (0, 1), (20, 200), (-1, 0))
"""For functions that are not real anywhere near 0."""
ENOUGH = 4


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may be from the reference. Zero means exact equality."""

    relative: float = 0.0
    absolute: float = 0.0

    def __bool__(self) -> bool:
        return self.relative > 0 or self.absolute > 0


EXACT = Tolerance()


def equal(gold: Tree, answer: Tree, within: Tolerance = EXACT) -> bool:
    """Whether two trees are equal; `within` only applies to numbers. The module describes how.

    Raises:
        TooCostly: either is refused.
    """
    if gold == answer:
        return True
    if gold[0] == "num" == answer[0] and not within:
        return gold[1] == answer[1]
    if infinite(gold) or infinite(answer):
        return infinite(gold) == infinite(answer)
    names = symbols(gold)
    if names != symbols(answer):
        return False
    try:
        return _same_function(gold, answer, names) if names else _same_number(gold, answer, within)
    except Undefined:
        return False


def infinite(tree: Tree) -> int:
    """1 or -1 for plus or minus infinity alone, 0 for anything else."""
    if tree[0] == "inf":
        return 1
    return -1 if tree[0] == "mul" and tree[1] == (("num", Fraction(-1)), ("inf",)) else 0


def number(tree: Tree) -> Value:
    """The value of an expression without variables, at 60 digits or exact.

    Raises:
        Undefined: it has no value.
    """
    if symbols(tree):
        raise Undefined("it has variables")
    return Arithmetic(START).value(tree, {})


def _same_number(gold: Tree, answer: Tree, within: Tolerance) -> bool:
    sums = Arithmetic(START)
    first, second = sums.value(gold, {}), sums.value(answer, {})
    if within:
        first, second = sums.mpf(first), sums.mpf(second)
        allowed = max(sums.mp.mpf(within.absolute), within.relative * abs(first))
        return bool(abs(first - second) <= allowed)
    return _agree(sums, gold, answer, {}, first, second)


def _agree(sums: Arithmetic, gold: Tree, answer: Tree, point: dict, first: Value, second: Value) -> bool:
    """Whether two values at one point are the same number."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    spread = sums.spread  # of the first evaluation: later ones see the noise of zeros
    sums.mpf(first), sums.mpf(second)
    needed = START + 2 * spread + sums.longest
    if needed > sums.digits:
        sums.precision(needed)
        first, second = sums.value(gold, point), sums.value(answer, point)
    try:
        mp, digits = sums.mp, sums.digits
        size = max(abs(sums.mpf(first)), abs(sums.mpf(second)))
        apart = abs(sums.mpf(first) - sums.mpf(second))
        if size > mp.mpf(10) ** (-digits // 2) and apart > size * mp.mpf(10) ** -20:
            return False
        sums.precision(2 * digits)
        first, second = sums.mpf(sums.value(gold, point)), sums.mpf(sums.value(answer, point))
        still = abs(first - second)
        rounding = mp.mpf(10) ** (15 - 2 * digits)
        if still <= rounding * max(abs(first), abs(second)):
            return True
        if apart == 0:  # lost below the first precision, or noise of a zero
            return bool(still <= rounding * mp.mpf(10) ** (2 * spread))
        return bool(still <= apart * mp.mpf(10) ** (-digits // 2))
    finally:
        sums.precision(START)


def _same_function(gold: Tree, answer: Tree, names: frozenset[str]) -> bool:
    sums = Arithmetic(START)
    drawn = points(gold, answer, names)
    for complex_values in (False, True):
        agreed = _agreeing(sums, gold, answer, drawn, complex_values)
        if agreed is not None:
            return agreed
    return False


def _agreeing(
    sums: Arithmetic, gold: Tree, answer: Tree, drawn: list[dict], complex_values: bool
) -> bool | None:
    """Whether the functions agree where the reference is real (or is not); None if there is no such point."""
    agreed, refused = 0, None
    for tried, point in enumerate(drawn):
        if tried >= len(RANGES) and agreed >= ENOUGH:
            break
        sums.spread = sums.longest = 0
        try:
            first = sums.value(gold, point)
            if (sums.went_complex or not real(sums, first)) != complex_values:
                continue
            second = _value_of_answer(sums, answer, point)
            if second is None or not _agree(sums, gold, answer, point, first, second):
                return False
        except Undefined:
            continue
        except TooCostly as error:  # e^(x^5) may be too large at this point only
            sums.precision(START)
            refused = error
            continue
        agreed += 1
    if refused is not None and agreed < ENOUGH:
        raise refused
    return agreed >= ENOUGH if agreed else None


def _value_of_answer(sums: Arithmetic, answer: Tree, point: dict[str, Fraction]) -> Value | None:
    """The value of the answer; None if it has none at a point where the reference has one."""
    try:
        return sums.value(answer, point)
    except Undefined:
        return None


def real(sums: Arithmetic, value: Value) -> bool:
    """Whether the imaginary part is only rounding."""
    if isinstance(value, Fraction):
        return True
    return bool(abs(sums.mp.im(value)) <= abs(value) * sums.mp.mpf(10) ** -30)


def points(gold: Tree, answer: Tree, names: frozenset[str]) -> list[dict[str, Fraction]]:
    """Where two functions are compared: the same for the same pair, but not predictable from either."""
    draw = random.Random(hashlib.sha256(repr((gold, answer)).encode("utf-8", "replace")).digest())
    variables = sorted(name for name in names if not name.endswith("()"))
    return [
        {v: low + (high - low) * Fraction(draw.randrange(1, 9973), 9973) for v in variables}
        for low, high in RANGES + FURTHER
    ]


def proportional(first: Tree, second: Tree, positive: bool = False) -> bool:
    """Whether `first` = k * `second` for a number k other than 0 (`positive`: k > 0).

    Raises:
        TooCostly: either is refused.
    """
    names = symbols(first)
    if names != symbols(second) or not names:
        return False
    sums = Arithmetic(START)
    factor = None
    agreed = 0
    for point in points(first, second, names):
        try:
            a, b = sums.value(first, point), sums.value(second, point)
        except (Undefined, TooCostly):
            continue
        if a == 0 or b == 0:
            continue
        ratio = a / b if isinstance(a, Fraction) and isinstance(b, Fraction) else sums.mpf(a) / sums.mpf(b)
        if not real(sums, ratio):
            continue
        if factor is None:
            factor = ratio
        if abs(sums.mpf(ratio) - sums.mpf(factor)) > abs(sums.mpf(factor)) * sums.mp.mpf(10) ** -30:
            return False
        agreed += 1
    return agreed >= ENOUGH and (not positive or sums.mp.re(sums.mpf(factor)) > 0)
