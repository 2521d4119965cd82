"""Expressions as tuples: `(kind, ...)`. No values, no comparison.

`("num", Fraction)`, `("sym", name)`, `("const", "pi" | "e" | "i")`, `("inf",)`, `("add", parts)`, `("mul",
parts)`, `("pow", base, exponent)`, `("fn", name, arguments)`. A difference is `add` of a `mul` with -1, a
quotient `mul` with a `pow` of -1: one way to say each thing.
"""

from __future__ import annotations

from fractions import Fraction

Tree = tuple
MINUS_ONE: Tree = ("num", Fraction(-1))


def num(value: int | Fraction) -> Tree:
    return ("num", Fraction(value))


def add(parts: list[Tree]) -> Tree:
    return parts[0] if len(parts) == 1 else ("add", tuple(parts))


def mul(parts: list[Tree]) -> Tree:
    return parts[0] if len(parts) == 1 else ("mul", tuple(parts))


def negative(tree: Tree) -> Tree:
    return ("num", -tree[1]) if tree[0] == "num" else ("mul", (MINUS_ONE, tree))


def inverse(tree: Tree) -> Tree:
    return ("pow", tree, MINUS_ONE)


def children(tree: Tree) -> tuple[Tree, ...]:
    """The trees directly below `tree`."""
    kind = tree[0]
    if kind in ("add", "mul"):
        return tree[1]
    if kind == "pow":
        return tree[1:]
    return tree[2] if kind == "fn" else ()


def symbols(tree: Tree) -> frozenset[str]:
    """Names of the variables; of unknown functions as `name()`."""
    found, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if node[0] == "sym" or (node[0] == "fn" and node[1].endswith("()")):
            found.add(node[1])
        waiting.extend(children(node))
    return frozenset(found)
