"""Multiplication and addition over every pair of operands, the problems of the exact evaluation task.

`train` and `test` are the two ends of one seeded permutation of all operand pairs, so they are disjoint, and
either keeps its rows when the size of the other changes. Pairs are ordered: `34*12=` may be tested while
`12*34=` was trained on. The rows are the same on every machine. Left out: carries inside a worked completion,
operands of different length.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from posttrain.data.problems.base import check_split
from posttrain.errors import RequestError


@dataclass(frozen=True)
class ArithmeticOptions:
    """Which operand pairs there are, and which of them become rows."""

    digits: int = 2
    """Digits of each operand, without a leading zero: 2 is 10..99, 8,100 ordered pairs."""
    split: str = "train"
    """`train` or `test`."""
    train_size: int = 3000
    test_size: int = 1000
    seed: int = 0

    def check(self, name: str) -> None:
        """Raises `RequestError` for a value out of range."""
        if self.digits not in (1, 2, 3):
            raise RequestError(f"generator {name}: digits must be 1, 2 or 3, not {self.digits}")
        check_split(self, name)
        if self.train_size + self.test_size > self.pairs:
            raise RequestError(
                f"generator {name}: train_size + test_size is "
                f"{self.train_size + self.test_size}, but there are {self.pairs} problems"
            )

    @property
    def pairs(self) -> int:
        """How many operand pairs there are."""
        return (9 * 10 ** (self.digits - 1)) ** 2


@dataclass(frozen=True)
class AnswerOptions(ArithmeticOptions):
    """Settings of `multiplication` and `addition`."""

    worked: bool = False
    """Whether the completion is a chain of thought: one part for each place, highest first, then `=` and the
    answer, all without leading zeros. The pairs and their order stay the same."""
    skip: int = 0
    """Training problems to pass over first: those that an earlier stage has seen."""

    def check(self, name: str) -> None:
        super().check(name)
        if self.skip < 0 or self.skip + self.train_size + self.test_size > self.pairs:
            raise RequestError(
                f"generator {name}: skip = {self.skip} with train_size + test_size = "
                f"{self.train_size + self.test_size} is not within the {self.pairs} problems"
            )


@dataclass(frozen=True)
class Operation:
    """A generator whose answers are the sums of `parts(a, b)`."""

    name: str
    sign: str
    parts: Callable[[int, int], list[int]]
    """What a worked completion writes out, one number for each place, highest first."""
    width: Callable[[int], int]
    """Digits of the operands to places of the answer, which is padded with zeros unless it is worked."""

    options = AnswerOptions

    def __call__(self, options: AnswerOptions) -> list[dict[str, str]]:
        """Rows {prompt, completion, answer, id}, each pair once."""
        order = list(range(options.pairs))
        random.Random(options.seed).shuffle(order)
        train = options.split == "train"
        chosen = order[options.skip :][: options.train_size] if train else order[-options.test_size :]
        low = 10 ** (options.digits - 1)
        pairs = (divmod(index, 9 * low) for index in chosen)
        return [self._row(low + a, low + b, options) for a, b in pairs]

    def _row(self, a: int, b: int, options: AnswerOptions) -> dict[str, str]:
        parts = self.parts(a, b)
        total = sum(parts)
        answer = str(total) if options.worked else f"{total:0{self.width(options.digits)}d}"
        thought = f"{'+'.join(map(str, parts))}=" if options.worked else ""
        text = f"{a}{self.sign}{b}"
        return {"prompt": f"{text}=", "completion": thought + answer, "answer": answer, "id": text}


def _places(number: int) -> list[int]:
    """What each digit stands for, highest first: 304 -> [300, 0, 4]."""
    digits = str(number)
    return [int(digit) * 10**place for place, digit in enumerate(reversed(digits))][::-1]


def _products(a: int, b: int) -> list[int]:
    return [a * part for part in _places(b)]


def _sums(a: int, b: int) -> list[int]:
    return [x + y for x, y in zip(_places(a), _places(b), strict=True)]


MULTIPLICATION = Operation("multiplication", "*", _products, lambda digits: 2 * digits)
"""`12*34=` -> `0408`: the product in 2 x digits places. Worked: `360+48=408`, that is 12*30 + 12*4."""
ADDITION = Operation("addition", "+", _sums, lambda digits: digits + 1)
"""`12+34=` -> `046`: the sum in digits + 1 places. Worked: `40+6=46`, that is (10+30) + (2+4)."""
