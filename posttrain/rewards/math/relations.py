r"""Text with `=`, `<`, `\in` and the like: names, chains of values, equations, inequalities."""

from __future__ import annotations

import re
from collections.abc import Callable

from posttrain.rewards.math.limits import Unreadable
from posttrain.rewards.math.nodes import Chain, Items, Named, Node, Piece, Region, Relation, Scalar, Words
from posttrain.rewards.math.regions import INFINITY
from posttrain.rewards.math.scalar import read_scalar
from posttrain.rewards.math.tree import Tree, negative, symbols

INDEX = r"(?:_(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\}|[A-Za-z0-9]))?"
NAME = re.compile(
    rf"\\?[A-Za-z]+{INDEX}'*(?:\([A-Za-z](?:,[A-Za-z])*\))?"
    rf"|\((?:\\?[A-Za-z]+{INDEX})(?:,\\?[A-Za-z]+{INDEX})+\)"
    rf"|(?:\\(?:angle|triangle)|m\\angle|∠)(?:[A-Z]{INDEX})+"
    r"|\\frac\{d[a-z]\}\{d[a-z]\}"
    r"|[A-Z]{2,4}|\\text\{[A-Za-z ]{1,40}\}|\|[A-Z]{2}\|"
)
NO_NAMES = frozenset({"e", "i", "pi", r"\pi", "infinity"})
Reader = Callable[[str], Node]


def is_name(text: str) -> bool:
    r"""Whether `text` could name a result in `text = 3`: `x`, `x_1`, `f(x)`, `(x, y)`, `\angle ABC`."""
    text = name_of(text)
    return text not in NO_NAMES and NAME.fullmatch(text) is not None


def name_of(text: str) -> str:
    """A name without spaces and plain braces."""
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"^(?:\\vec)?\{([A-Za-z]+)\}$", r"\1", text)
    text = re.sub(r"_\{([A-Za-z0-9])\}", r"_\1", text)
    return re.sub(r"\\(?:text)\{([A-Za-z]+)\}", r"\1", text)


def read_relation(parts: list[str], marks: list[str], read: Reader) -> Node:
    """The node of `parts` with `marks` between them.

    Raises:
        Unreadable: the relation is not supported.
    """
    if not parts[0]:
        if marks[0] not in "=≈":
            raise Unreadable("a relation without a left side")
        parts, marks = parts[1:], marks[1:]
        if not marks:
            return read(parts[0])
    if not all(parts):
        raise Unreadable("a relation without a right side")
    if set(marks) <= {"=", "≈"}:
        return _equalities(parts, marks, read)
    if marks == ["∈"] and is_name(parts[0]):
        return Named(name_of(parts[0]), read(parts[1]))
    if marks == ["≠"]:
        return _unequal(parts)
    if set(marks) <= {"<", "≤"}:
        return _ordered(parts, marks)
    if set(marks) <= {">", "≥"}:
        flipped = ["<" if mark == ">" else "≤" for mark in reversed(marks)]
        return _ordered(parts[::-1], flipped)
    raise Unreadable("mixed relations")


def _equalities(parts: list[str], marks: list[str], read: Reader) -> Node:
    if is_name(parts[0]):
        rest = read(parts[1]) if len(parts) == 2 else _chain(parts[1:], marks[1:], read)
        return Named(name_of(parts[0]), rest)
    if len(parts) == 2 and is_name(parts[1]) and marks == ["="]:
        return Named(name_of(parts[1]), read(parts[0]))
    if len(parts) == 2 and marks == ["="]:
        try:
            left, right = _side(parts[0]), _side(parts[1])
        except Unreadable:
            return _chain(parts, marks, read)
        if symbols(left) or symbols(right):
            return Relation(left, "=", right)
    return _chain(parts, marks, read)


def _chain(parts: list[str], marks: list[str], read: Reader) -> Node:
    members = tuple(read(part) for part in parts)
    if any(isinstance(member, Words) for member in members):
        raise Unreadable("words in an equation")
    return Chain(members, (False, *(mark == "≈" for mark in marks)))


def _side(text: str) -> Tree:
    node = read_scalar(text)
    if not isinstance(node, Scalar) or node.percent:
        raise Unreadable("not an expression")
    return node.tree


def _unequal(parts: list[str]) -> Node:
    left, right = _side(parts[0]), _side(parts[1])
    if is_name(parts[0]) and not symbols(right):
        pieces = (Piece(negative(INFINITY), right, False, False), Piece(right, INFINITY, False, False))
        return Region(pieces, name_of(parts[0]))
    return Relation(left, "≠", right)


def _ordered(parts: list[str], marks: list[str]) -> Node:
    """A region for `a < x ≤ b` and the like, otherwise the relations of neighbours."""
    trees = [_side(part) for part in parts]
    closed = [mark == "≤" for mark in marks]
    if len(parts) == 2 and (size := _absolute(parts, trees, closed[0])) is not None:
        return size
    if len(parts) == 2:
        for at, other in ((0, 1), (1, 0)):
            if is_name(parts[at]) and not is_name(parts[other]) and _free(trees[at], trees[other]):
                bound = trees[other]
                piece = (
                    Piece(negative(INFINITY), bound, False, closed[0])
                    if at == 0
                    else Piece(bound, INFINITY, closed[0], False)
                )
                return Region((piece,), name_of(parts[at]))
        return Relation(trees[0], "≤" if closed[0] else "<", trees[1])
    if len(parts) == 3 and is_name(parts[1]) and _free(trees[1], trees[0]) and _free(trees[1], trees[2]):
        return Region((Piece(trees[0], trees[2], *closed),), name_of(parts[1]))
    relations = [Relation(a, "≤" if c else "<", b) for a, b, c in zip(trees, trees[1:], closed, strict=False)]
    return Items("tuple", tuple(relations), "<>")


def _absolute(parts: list[str], trees: list[Tree], closed: bool) -> Region | None:
    """The region of `|x| < a` or `|x| > a` for a positive number a; None for anything else."""
    for at, bound in ((0, trees[1]), (1, trees[0])):
        name = parts[at].strip("| ")
        if trees[at] == ("fn", "abs", (("sym", name),)) and bound[0] == "num" and bound[1] > 0:
            below = negative(bound)
            if at == 0:
                return Region((Piece(below, bound, closed, closed),), name)
            outer = (Piece(negative(INFINITY), below, False, closed), Piece(bound, INFINITY, closed, False))
            return Region(outer, name)
    return None


def _free(variable: Tree, bound: Tree) -> bool:
    return not symbols(variable) & symbols(bound)
