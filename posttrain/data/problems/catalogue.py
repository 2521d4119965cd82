"""Rows that are made, not read: the registry of generators, and arithmetic for the exact evaluation task.

Pure Python, and the same numbers on every machine; other families are in `generated`. `train` and `test` of
`multiplication` and `addition` are the two ends of one seeded permutation of all operand pairs, so they are
disjoint, and either keeps its rows when the other's size changes. Pairs are ordered: `34*12=` may be tested
while `12*34=` was trained on. Left out: carries inside a worked completion, operands of different length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from posttrain.base.registry import Registry
from posttrain.data.problems import FAMILIES
from posttrain.data.problems.base import check_split
from posttrain.data.problems.reasoning_gym import REASONING_GYM
from posttrain.errors import RequestError, did_you_mean


@dataclass(frozen=True)
class ArithmeticOptions:
    """Which operand pairs there are, and which of them are rows."""

    digits: int = 2
    """Digits of each operand, without a leading zero: 2 is 10..99, 8,100 ordered pairs."""
    split: str = "train"
    """`train` or `test`."""
    train_size: int = 3000
    test_size: int = 1000
    seed: int = 0

    def check(self, name: str) -> None:
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
        return (9 * 10 ** (self.digits - 1)) ** 2


@dataclass(frozen=True)
class AnswerOptions(ArithmeticOptions):
    """Settings of `multiplication` and `addition`."""

    worked: bool = False
    """Whether the completion is a chain of thought: one part a place, highest first, then `=` and the answer, all
    without leading zeros. The pairs and their order stay the same."""
    skip: int = 0
    """Training problems to pass over first: those that an earlier stage has seen."""

    def check(self, name: str) -> None:
        super().check(name)
        if self.skip < 0 or self.skip + self.train_size + self.test_size > self.pairs:
            raise RequestError(
                f"generator {name}: skip = {self.skip} with train_size + test_size = "
                f"{self.train_size + self.test_size} is not within the {self.pairs} problems"
            )


class Options(Protocol):
    """Settings of a generator: a frozen dataclass whose every field has a default."""

    def check(self, name: str) -> None:
        """Raises `RequestError` for a value out of range."""


class Generator(Protocol):
    """Makes rows of its `options`."""

    options: type[Any]

    def __call__(self, options: Any, /) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Arithmetic:
    """A generator of all pairs of operands."""

    make: Callable[[AnswerOptions], list[dict[str, str]]]

    options = AnswerOptions

    def __call__(self, options: AnswerOptions) -> list[dict[str, str]]:
        return self.make(options)


GENERATORS: Registry[Generator] = Registry("generator")
WANTED = {int: "a whole number", bool: "true or false", str: "text"}


def generate(name: str, options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Rows {prompt, completion, answer, id} of a registered generator.

    Raises:
        RequestError: unknown generator or option, a value of the wrong type or out of range.
    """
    return GENERATORS[name](check(name, options or {}))


def check(name: str, options: Mapping[str, Any]) -> Any:
    """The typed options, without making rows; raises as `generate` does."""
    kind = GENERATORS[name].options
    known = {field.name: type(field.default) for field in fields(kind)}
    for key, value in options.items():
        if key not in known:
            near = did_you_mean(key, known)
            raise RequestError(f"generator {name}: unknown option {key!r}{near}")
        if type(value) is not known[key]:  # a bool is an int to isinstance
            wanted = WANTED[known[key]]
            raise RequestError(f"generator {name}: {key} must be {wanted}, not {value!r}")
    typed = kind(**options)
    typed.check(name)
    return typed


def _arithmetic(name: str):
    def add(make: Callable[[AnswerOptions], list[dict[str, str]]]):
        GENERATORS.register(name)(Arithmetic(make))
        return make

    return add


@_arithmetic("multiplication")
def multiplication(options: AnswerOptions) -> list[dict[str, str]]:
    """`12*34=` -> `0408`: the product in 2 x digits places. Worked: `360+48=408`, that is 12*30 + 12*4."""

    def parts(a: int, b: int) -> list[int]:
        return [a * part for part in _places(b)]

    return _rows(options, "*", parts, width=2 * options.digits)


@_arithmetic("addition")
def addition(options: AnswerOptions) -> list[dict[str, str]]:
    """`12+34=` -> `046`: the sum in digits + 1 places. Worked: `40+6=46`, that is (10+30) + (2+4)."""

    def parts(a: int, b: int) -> list[int]:
        return [x + y for x, y in zip(_places(a), _places(b), strict=True)]

    return _rows(options, "+", parts, width=options.digits + 1)


def _places(number: int) -> list[int]:
    """What each digit stands for, highest first: 304 -> [300, 0, 4]."""
    digits = str(number)
    return [int(digit) * 10**place for place, digit in enumerate(reversed(digits))][::-1]


def _rows(
    options: AnswerOptions, sign: str, split: Callable[[int, int], list[int]], width: int
) -> list[dict[str, str]]:
    """Rows whose answer is the sum of `split(a, b)`; zero-padded to `width` unless worked."""
    order = list(range(options.pairs))
    random.Random(options.seed).shuffle(order)
    train = options.split == "train"
    chosen = order[options.skip :][: options.train_size] if train else order[-options.test_size :]
    low = 10 ** (options.digits - 1)
    rows = []
    for index in chosen:
        a, b = (low + part for part in divmod(index, 9 * low))
        parts = split(a, b)
        answer = str(sum(parts)) if options.worked else f"{sum(parts):0{width}d}"
        thought = f"{'+'.join(map(str, parts))}=" if options.worked else ""
        rows.append(
            {
                "prompt": f"{a}{sign}{b}=",
                "completion": thought + answer,
                "answer": answer,
                "id": f"{a}{sign}{b}",
            }
        )
    return rows


for _name, _family in {**FAMILIES, REASONING_GYM.name: REASONING_GYM}.items():
    GENERATORS.register(_name)(_family)
