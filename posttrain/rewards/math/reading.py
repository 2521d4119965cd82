r"""Cleaned text to a node: which shape an answer has. The order of the tests in `read` is the grammar.

Left out: reversed brackets `]1, 3[`, set-builder notation other than `\{x | x > 2\}`.
"""

from __future__ import annotations

import re

from posttrain.rewards.math.limits import TooCostly, Unreadable
from posttrain.rewards.math.nodes import Items, Matrix, Named, Node, Region, Scalar, Words
from posttrain.rewards.math.notation import read_notation
from posttrain.rewards.math.regions import FULL, common, join, minus_points, pieces_of
from posttrain.rewards.math.relations import is_name, read_relation
from posttrain.rewards.math.scalar import PLAIN, read_scalar
from posttrain.rewards.math.split import RELATIONS, divide, enclosed, listed
from posttrain.rewards.math.tree import mul, num
from posttrain.rewards.math.words import EMPTY, NUMBERS, REALS, as_words

EMPTY_SET = Items("set", (), "{}")
MATRIX = re.compile(
    r"(.*?)\\begin\s*\{(pmatrix|bmatrix|matrix|smallmatrix|array)\}(?:\s*\{[clr| ]+\})?(.*)\\end\s*\{\2\}",
    re.DOTALL,
)
WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
KINDS = {("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), ("{", "}"), (r"\{", r"\}"), (r"\langle", r"\rangle")}
LEVELS = 100


def read(text: str, thousands: bool = True, level: int = 0) -> Node:
    """The node that `text` is. With `thousands`, the comma of `1,234` is not a list's.

    Raises:
        Unreadable: it is not an answer. TooCostly: it is refused.
    """
    if level > LEVELS:
        raise TooCostly(f"more than {LEVELS} levels of structure")
    text = text.strip()
    if not text:
        raise Unreadable("nothing")
    if PLAIN.fullmatch(text) and thousands:
        return read_scalar(text)
    if text in ("∅", r"\{\}", "{}", r"\{ \}"):
        return EMPTY_SET
    if text == r"\R":
        return Region(FULL)
    if (whole := WHOLE_TEXT.fullmatch(text)) and not as_words(text):
        return read(whole[1], thousands, level + 1)
    parts, marks = listed(WHOLE_TEXT.fullmatch(text)[1] if whole else text, thousands)
    if len(parts) > 1:
        nodes = [read(rf"\text{{{p}}}" if whole else p, thousands, level + 1) for p in parts]
        return _list(nodes, marks)
    if whole and whole[1].strip()[:1].isdigit():
        text, whole = whole[1].strip(), None
    if (phrase := as_words(text)) is not None and (whole or text[0].isalpha() or text[0] == "\\"):
        if (notation := read_notation(text)) is not None:
            return notation
        return _phrase(phrase)
    if (notation := read_notation(text)) is not None:
        return notation
    for marks, reader in (("∪∖", _union), (RELATIONS, _relation)):
        parts, found = divide(text, marks)
        if found:
            return reader(parts, found, level)
    if (matrix := MATRIX.fullmatch(text)) is not None:
        return _matrix(matrix, level)
    if (held := enclosed(text)) is not None and (held[0], held[2]) in KINDS:
        return _bracketed(*held, level)
    if "±" in text or "∓" in text:
        return _plus_minus(text, level)
    try:
        return read_scalar(text)
    except Unreadable:
        if (phrase := as_words(text)) is not None:
            return _phrase(phrase)
        raise


def _phrase(phrase: str) -> Node:
    if phrase in NUMBERS:
        return Scalar(num(NUMBERS[phrase]))
    if phrase in EMPTY:
        return EMPTY_SET
    return Region(FULL) if phrase in REALS else Words(phrase)


def _list(nodes: list[Node], marks: list[str]) -> Node:
    """The list of `nodes`, simplified.

    A name that all members share is lifted, `x < 1 or x > 3` becomes a region, and members with `±` are
    spread.
    """
    named = [n for n in nodes if isinstance(n, Named)]
    if (
        named
        and {n.name for n in named} == {named[0].name}
        and (nodes[0] in named or len(named) == len(nodes))
    ):
        rest = [n.inner if isinstance(n, Named) else n for n in nodes]
        return Named(named[0].name, _list(rest, marks))
    if all(isinstance(n, Region) for n in nodes) and len({n.variable for n in nodes}) == 1:
        if set(marks) == {"or"}:
            return Region(join([p for n in nodes for p in n.pieces]), nodes[0].variable)
        if set(marks) == {"and"} and nodes[0].variable:
            return Region(common([n.pieces for n in nodes]), nodes[0].variable)
    spread: list[Node] = []
    for node in nodes:
        if isinstance(node, Items) and node.kind == "list":
            spread.extend(node.items)
        else:
            spread.append(node)
    return Items("list", tuple(spread))


def _union(parts: list[str], marks: list[str], level: int) -> Node:
    nodes = [read(part, False, level + 1) for part in parts]
    if marks == ["∖"]:
        return Region(minus_points(nodes[0], nodes[1]))
    if set(marks) != {"∪"}:
        raise Unreadable("a difference among unions")
    if all(isinstance(n, Items) and n.kind == "set" for n in nodes):
        return Items("set", tuple(item for n in nodes for item in n.items), "{}")
    return Region(join([piece for node in nodes for piece in pieces_of(node)]))


def _relation(parts: list[str], marks: list[str], level: int) -> Node:
    return read_relation(parts, marks, lambda part: read(part, True, level + 1))


def _plus_minus(text: str, level: int) -> Node:
    upper = text.replace("±", "+").replace("∓", "-")
    lower = text.replace("±", "-").replace("∓", "+")
    return _list([read(upper, True, level + 1), read(lower, True, level + 1)], [","])


def _matrix(match: re.Match[str], level: int) -> Node:
    factor = read_scalar(match[1].rstrip(" *")) if match[1].strip() else None
    rows = [row for row in divide(match[3], "↵")[0] if row and row != r"\hline"]
    cells = [[read(cell, True, level + 1) for cell in divide(row, "&")[0]] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1:
        raise Unreadable("rows of different lengths")
    if factor is not None:
        if not all(isinstance(c, Scalar) for row in cells for c in row) or factor.unit or factor.percent:
            raise Unreadable("a factor before a matrix that is not of numbers")
        cells = [[Scalar(mul([factor.tree, c.tree])) for c in row] for row in cells]
    return Matrix(tuple(tuple(row) for row in cells))


def _bracketed(opener: str, inner: str, closer: str, level: int) -> Node:
    if opener == r"\{":
        if not inner:
            return EMPTY_SET
        for mark in "|:":
            head, found = divide(inner, mark)
            if len(found) == 1 and is_name(head[0].partition("∈")[0].strip()):
                return read(head[1], False, level + 1)
    parts, _ = listed(inner, False)
    if len(parts) == 1 and opener != r"\{":
        node = read(inner, opener != "[", level + 1)
        return node if opener in "({" or isinstance(node, Matrix) else Items("tuple", (node,), "[]")
    nodes = [read(part, False, level + 1) for part in parts]
    if opener in (r"\{", "{"):
        spread = _list(nodes, [","])
        items = spread.items if isinstance(spread, Items) and spread.kind == "list" else (spread,)
        return Items("set", items, "{}")
    brackets = "()" if opener == r"\langle" else opener + closer
    if brackets == "[]" and all(isinstance(n, Items) and n.brackets == "[]" for n in nodes):
        rows = tuple(n.items for n in nodes)
        if len({len(row) for row in rows}) == 1:
            return Matrix(rows)
    return Items("tuple", tuple(nodes), brackets)
