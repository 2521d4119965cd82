"""Values for the slots of a template, drawn evenly from all that fulfil its conditions.

Slots that no condition joins are drawn apart from each other. Slots that are joined are drawn until their
conditions hold. Where that is rare, conditions on few values are solved first: all that they allow together
is listed, and drawn from as one. Left out: the text of a template (`template.py`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from math import perm, prod
from random import Random
from typing import Any

from posttrain.evaluate.tasks.symbolic.functions import items, truth
from posttrain.evaluate.tasks.symbolic.language import Code, compiled, parsed
from posttrain.evaluate.tasks.symbolic.pools import POOLS

QUICK = 30
"""Draws after which conditions on few values are solved."""
PATIENCE = 100_000
"""Draws after that."""
FEW = 20_000
"""Values that are tried to solve a condition."""


@dataclass(frozen=True)
class Drawn:
    """A line of `#init`: `names` together get neighbours in `values` (`in_order`), or different ones."""

    names: tuple[str, ...]
    values: list[Any]
    in_order: bool = False

    def pick(self, rng: Random) -> Sequence[Any]:
        """A value for each name."""
        if self.in_order:
            return self._from(_below(rng, len(self.values)))
        if len(self.names) == 1:
            return (self.values[_below(rng, len(self.values))],)
        left = list(self.values)
        return [left.pop(_below(rng, len(left))) for _ in self.names]

    def every(self) -> Iterator[Sequence[Any]]:
        """All that `pick` may give."""
        if self.in_order:
            return (self._from(start) for start in range(len(self.values)))
        return permutations(self.values, len(self.names))

    @property
    def size(self) -> int:
        return len(self.values) if self.in_order else perm(len(self.values), len(self.names))

    def _from(self, start: int) -> list[Any]:
        return [self.values[(start + i) % len(self.values)] for i in range(len(self.names))]


@dataclass(frozen=True)
class Solved:
    """Lines whose common conditions are solved: each of `rows` is a value for each name."""

    names: tuple[str, ...]
    rows: list[Sequence[Any]]

    def pick(self, rng: Random) -> Sequence[Any]:
        return self.rows[_below(rng, len(self.rows))]

    def every(self) -> Iterator[Sequence[Any]]:
        return iter(self.rows)

    @property
    def size(self) -> int:
        return len(self.rows)


def drawn(names: tuple[str, ...], text: str) -> Drawn:
    """How values for `names` are drawn: `sample(values)`, `sample(values, n)`, `sample_sequential(values,
    n)`, or values of which one is drawn. Raises ValueError."""
    tree = parsed(text)
    called = tree.func.id if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) else ""
    parts = [tree]
    if called in ("sample", "sample_sequential"):
        parts = tree.args
        if tree.keywords or not 1 <= len(parts) <= 2:
            raise ValueError(f"{called} takes values and how many are drawn")
    values, *many = (compiled(ast.unparse(each), POOLS)(POOLS) for each in parts)
    values, count = items(values), many[0] if many else 1
    if type(count) is not int or count != len(names):
        raise ValueError(f"there are {len(names)} names for {count} values")
    if len(values) < max(count, 1):
        raise ValueError(f"{count} of {len(values)} values cannot be drawn")
    return Drawn(names, list(values), called == "sample_sequential")


@dataclass(frozen=True)
class Condition:
    """An expression that must be true, and the slots that it reads."""

    names: frozenset[str]
    code: Code


@dataclass
class Joined:
    """Lines of `#init` that conditions join, directly or through others, and these conditions."""

    lines: list[Drawn] | list[Drawn | Solved]
    conditions: list[Condition]

    @property
    def names(self) -> list[str]:
        return [name for line in self.lines for name in line.names]

    def draw(self, rng: Random) -> dict[str, Any] | None:
        """Values that fulfil the conditions; None where there are none. Raises ValueError where a condition
        cannot be computed, or values that fulfil all are too rare to be found."""
        found = self._try(rng, QUICK)
        if found is not None:
            return found
        if not all(line.size for line in self.solved.lines):
            return None
        if (found := self.solved._try(rng, PATIENCE)) is None:
            raise ValueError(f"in {PATIENCE} draws no values of {', '.join(self.names)} fulfil them all")
        return found

    def _try(self, rng: Random, draws: int) -> dict[str, Any] | None:
        for _ in range(draws):
            if (values := self._drawn(rng)) is not None:
                return values
        return None

    def _drawn(self, rng: Random) -> dict[str, Any] | None:
        values: dict[str, Any] = {}
        for line, codes in self.steps:
            values.update(zip(line.names, line.pick(rng), strict=True))
            for code in codes:
                if not truth(code(values)):
                    return None
        return values

    @cached_property
    def steps(self) -> list[tuple[Drawn | Solved, list[Code]]]:
        """Each line with the conditions that can be tried once it is drawn."""
        seen: set[str] = set()
        waiting = list(self.conditions)
        steps = []
        for line in self.lines:
            seen |= {*line.names}
            steps.append((line, [c.code for c in waiting if c.names <= seen]))
            waiting = [c for c in waiting if not c.names <= seen]
        return steps

    @cached_property
    def solved(self) -> Joined:
        """The same with conditions on few values solved, those on the fewest first."""
        lines: list[Drawn | Solved] = list(self.lines)
        waiting = list(self.conditions)
        while waiting:
            touched = [[line for line in lines if c.names & {*line.names}] for c in waiting]
            parts = min(touched, key=_work)
            if _work(parts) > FEW:
                break
            names = tuple(name for line in parts for name in line.names)
            ready = [c for c in waiting if c.names <= {*names}]
            rows = [
                [value for part in each for value in part]
                for each in product(*(line.every() for line in parts))
            ]
            rows = [row for row in rows if _holds(ready, dict(zip(names, row, strict=True)))]
            lines = [Solved(names, rows), *(line for line in lines if line not in parts)]
            waiting = [c for c in waiting if c not in ready]
        return Joined(lines, waiting)


def _work(lines: list[Drawn | Solved]) -> int:
    return prod(line.size for line in lines)


def _holds(conditions: list[Condition], values: dict[str, Any]) -> bool:
    return all(truth(each.code(values)) for each in conditions)


def joined(lines: list[Drawn], conditions: list[Condition]) -> list[Joined]:
    """`lines` in the parts that are drawn apart."""
    groups = [{*line.names} for line in lines]
    for condition in conditions:
        touched = [group for group in groups if group & condition.names]
        apart = [group for group in groups if not group & condition.names]
        groups = [*apart, set[str]().union(*touched)]
    parts = [
        Joined([d for d in lines if {*d.names} & group], [c for c in conditions if c.names & group])
        for group in groups
    ]
    return sorted(parts, key=lambda part: lines.index(part.lines[0]))


def _below(rng: Random, n: int) -> int:
    return int(rng.random() * n)  # the one method whose numbers no version of Python changes
