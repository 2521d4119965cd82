"""What an answer can be: a number or expression, words, a collection, a region, a relation. No rules."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from posttrain.rewards.math.tree import Tree
from posttrain.rewards.math.units import Unit


@dataclass(frozen=True, slots=True)
class Scalar:
    """One expression; `tree` is without its percent sign and unit."""

    tree: Tree
    percent: bool = False
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """Text in lower case with single spaces and without punctuation around it."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """`kind` is `list` (no brackets, no order), `set` (braces) or `tuple` (with its brackets and order)."""

    kind: str
    items: tuple[Node, ...]
    brackets: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval; a point is a closed one from itself to itself."""

    low: Tree
    high: Tree
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals; `variable` is its name if it was written with one."""

    pieces: tuple[Piece, ...]
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Named:
    """`x = ...`, `f(x) = ...`, `x in ...`."""

    name: str
    inner: Node


@dataclass(frozen=True, slots=True)
class Chain:
    """`a = b = c` of values; `rounded` says for each whether `≈` came before it."""

    members: tuple[Node, ...]
    rounded: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """`left op right` with variables on either side; `op` is `=`, `<`, `≤` or `≠`."""

    left: Tree
    op: str
    right: Tree


@dataclass(frozen=True, slots=True)
class InBase:
    """A number written in a base, `1011_2`."""

    value: Fraction
    base: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """`a:b:c`; `clock` if it could be a time of day."""

    parts: tuple[Fraction, ...]
    clock: bool


@dataclass(frozen=True, slots=True)
class Time:
    """A time of day; `half` is `a` or `p` if it was given."""

    hour: int
    minute: int
    second: int
    half: str = ""


Node = Scalar | Words | Items | Region | Matrix | Named | Chain | Relation | InBase | Ratio | Time
