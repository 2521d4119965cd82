"""Sets of real numbers as unions of intervals: joined, sorted, compared.

Ends without variables are sorted by value and touching pieces are merged; ends with variables keep their
order.
"""

from __future__ import annotations

from functools import cmp_to_key

from posttrain.rewards.math.equality import START, Arithmetic, equal, infinite
from posttrain.rewards.math.limits import Undefined, Unreadable
from posttrain.rewards.math.nodes import Items, Node, Piece, Region, Scalar
from posttrain.rewards.math.tree import Tree, negative, symbols

INFINITY: Tree = ("inf",)
FULL = (Piece(negative(INFINITY), INFINITY, False, False),)


def as_region(node: Node) -> Region | None:
    """An interval, a set of numbers or a region as a region; None for anything else."""
    try:
        return Region(pieces_of(node), node.variable if isinstance(node, Region) else "")
    except Unreadable:
        return None


def pieces_of(node: Node) -> tuple[Piece, ...]:
    """The intervals of a node.

    Raises:
        Unreadable: it is not a set of numbers.
    """
    if isinstance(node, Region):
        return node.pieces
    if isinstance(node, Items) and all(_plain(item) for item in node.items):
        ends = [item.tree for item in node.items if isinstance(item, Scalar)]
        if node.kind == "set":
            return tuple(Piece(end, end, True, True) for end in ends)
        if node.kind == "tuple" and len(ends) == 2:
            return (Piece(*ends, node.brackets[0] == "[", node.brackets[1] == "]"),)
    raise Unreadable("not a set of numbers")


def _plain(node: Node) -> bool:
    return isinstance(node, Scalar) and not node.percent


def compare_ends(first: Tree, second: Tree) -> int:
    """-1, 0 or 1: the order of two ends on the real line.

    Raises:
        Undefined: they have no order.
    """
    if equal(first, second):
        return 0
    if infinite(first) or infinite(second):
        return 1 if infinite(first) > infinite(second) else -1
    if symbols(first) or symbols(second):
        raise Undefined("it has variables")
    sums = Arithmetic(START)
    a, b = sums.mpf(sums.value(first, {})), sums.mpf(sums.value(second, {}))
    if sums.mp.im(a) or sums.mp.im(b):
        raise Undefined("not a real number")
    if a == b:
        raise Undefined("too close to tell")
    return -1 if a < b else 1


def join(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Pieces in order, with touching ones merged; unchanged if an end has no order."""
    try:
        return _join(pieces)
    except Undefined:
        return tuple(pieces)


def _join(pieces: list[Piece]) -> tuple[Piece, ...]:
    def order(a: Piece, b: Piece) -> int:
        return compare_ends(a.low, b.low) or (b.low_closed - a.low_closed)

    merged: list[Piece] = []
    for piece in sorted(pieces, key=cmp_to_key(order)):
        if merged:
            last = merged[-1]
            gap = compare_ends(last.high, piece.low)
            if gap > 0 or (gap == 0 and (last.high_closed or piece.low_closed)):
                further = compare_ends(last.high, piece.high)
                end = piece if further < 0 else last
                closed = end.high_closed or (further == 0 and piece.high_closed)
                merged[-1] = Piece(last.low, end.high, last.low_closed, closed)
                continue
        merged.append(piece)
    return tuple(merged)


def common(unions: list[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """The intersection of single intervals.

    Raises:
        Unreadable: more than an interval each, ends without an order, or nothing in common.
    """
    if any(len(union) != 1 for union in unions):
        raise Unreadable("an intersection of unions")
    result = unions[0][0]
    try:
        for (piece,) in unions[1:]:
            low, high = compare_ends(result.low, piece.low), compare_ends(result.high, piece.high)
            left = piece if low < 0 or (low == 0 and result.low_closed) else result
            right = piece if high > 0 or (high == 0 and result.high_closed) else result
            result = Piece(left.low, right.high, left.low_closed, right.high_closed)
        if compare_ends(result.low, result.high) >= 0:
            raise Unreadable("nothing in common")
    except Undefined:
        raise Unreadable("an intersection with variables") from None
    return (result,)


def minus_points(whole: Node, points: Node) -> tuple[Piece, ...]:
    """An interval or union without the members of a set.

    Raises:
        Unreadable: not a region and a set of numbers.
    """
    pieces = list(pieces_of(whole))
    if not (isinstance(points, Items) and points.kind == "set"):
        raise Unreadable("a difference with something other than points")
    for point in pieces_of(points):
        for index, piece in enumerate(pieces):
            try:
                inside = compare_ends(piece.low, point.low) < 0 < compare_ends(piece.high, point.low)
            except Undefined:
                raise Unreadable("a difference with variables") from None
            if inside:
                cut = Piece(piece.low, point.low, piece.low_closed, False)
                pieces[index : index + 1] = [cut, Piece(point.low, piece.high, False, piece.high_closed)]
                break
    return tuple(pieces)


def same_region(gold: Region, answer: Region) -> bool:
    """Whether two regions are the same set of numbers. Variables count if both name one."""
    if gold.variable and answer.variable and gold.variable != answer.variable:
        return False
    first, second = join(list(gold.pieces)), join(list(answer.pieces))
    return len(first) == len(second) and all(
        a.low_closed == b.low_closed
        and a.high_closed == b.high_closed
        and equal(a.low, b.low)
        and equal(a.high, b.high)
        for a, b in zip(first, second, strict=True)
    )
