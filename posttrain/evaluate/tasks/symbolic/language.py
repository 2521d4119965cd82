"""The expressions of a template: parsed by `ast`, of which a short list of nodes is understood.

Nothing is executed: a name is a value or one of `FUNCTIONS`, and there are no attributes. Numbers are exact:
`7/2` is a fraction and 0.1 is a tenth, so that `int(0.29 * 100)` is 29 and a condition holds or does not.
Sizes are bounded, so that no text takes long. Left out: random choices (`template.py`).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import isfinite
from typing import Any

from posttrain.errors import did_you_mean, what_is_there
from posttrain.evaluate.tasks.symbolic.functions import (
    ARITHMETIC,
    COMPARISONS,
    FUNCTIONS,
    Worded,
    exact,
    items,
    number,
    short,
    truth,
)

LONGEST_TEXT = 4000
"""Characters of an expression."""
DEEPEST = 100
"""Levels of its tree."""

Code = Callable[[Mapping[str, Any]], Any]
"""A compiled expression, a function of the values of names. Raises ValueError."""


def compiled(text: str, known: Mapping[str, Any] | frozenset[str] = frozenset()) -> Code:
    """`text` as a function of the values of the names in `known`.

    Raises:
        ValueError: it is not an expression of this language, or it is too long.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"an expression of {len(text)} characters is too long; {LONGEST_TEXT} are allowed")
    level: list[ast.AST] = [tree := parsed(text)]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise ValueError(f"{short(text)} is nested too deeply")
    return _code(tree, known)


def parsed(text: str) -> ast.expr:
    """The tree of an expression. Raises ValueError if it is not an expression."""
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        raise ValueError(f"{short(text)} is not an expression") from None


def _code(node: ast.AST, known: Any) -> Code:
    make = NODES.get(type(node))
    if make is None:
        raise ValueError(f"{short(ast.unparse(node))} is not allowed in a template ({type(node).__name__})")
    return make(node, known)


def _constant(node: ast.Constant, known: Any) -> Code:
    value = node.value
    if isinstance(value, float) and isfinite(value):
        value = exact(Fraction(repr(value)))
    elif isinstance(value, int):
        value = exact(value)
    elif not isinstance(value, str):
        raise ValueError(f"{short(repr(value))} is not a number or a text")
    return lambda names: value


def _name(node: ast.Name, known: Any) -> Code:
    name = node.id
    if name not in known:
        near = what_is_there(name, known, "the template")
        raise ValueError(f"{name!r} is not defined{near}")
    return lambda names: names[name]


def _list(node: ast.List | ast.Tuple, known: Any) -> Code:
    parts = [_code(each, known) for each in node.elts]
    if isinstance(node, ast.List):
        return lambda names: [part(names) for part in parts]
    if len(parts) != 2:
        raise ValueError(f"{short(ast.unparse(node))}: a pair is a text and its number")

    def pair(names: Mapping[str, Any]) -> Worded:
        text, value = (part(names) for part in parts)
        return Worded(text if isinstance(text, str) else str(number(text)), number(value))

    return pair


def _binary(node: ast.BinOp, known: Any) -> Code:
    if type(node.op) not in ARITHMETIC:
        raise ValueError(f"{short(ast.unparse(node))}: this operator is not allowed")
    function, left, right = ARITHMETIC[type(node.op)], _code(node.left, known), _code(node.right, known)
    return lambda names: function(left(names), right(names))


def _unary(node: ast.UnaryOp, known: Any) -> Code:
    inner = _code(node.operand, known)
    if isinstance(node.op, ast.Not):
        return lambda names: not truth(inner(names))
    if isinstance(node.op, ast.USub):
        return lambda names: -number(inner(names))
    raise ValueError(f"{short(ast.unparse(node))}: this operator is not allowed")


def _both(node: ast.BoolOp, known: Any) -> Code:
    parts = [_code(each, known) for each in node.values]
    found = all if isinstance(node.op, ast.And) else any
    return lambda names: found(truth(part(names)) for part in parts)


def _compare(node: ast.Compare, known: Any) -> Code:
    if not all(type(op) in COMPARISONS for op in node.ops):
        raise ValueError(f"{short(ast.unparse(node))}: this comparison is not allowed")
    functions = [COMPARISONS[type(op)] for op in node.ops]
    parts = [_code(each, known) for each in (node.left, *node.comparators)]

    def compare(names: Mapping[str, Any]) -> bool:
        values = [part(names) for part in parts]
        if any(isinstance(value, str) for value in values):
            values = [value.text if isinstance(value, Worded) else value for value in values]
            if not all(isinstance(v, str) for v in values) or {*functions} - {operator.eq, operator.ne}:
                raise ValueError(f"{short(ast.unparse(node))} compares a text with a number")
        else:
            values = [number(value) for value in values]
        return all(f(a, b) for f, a, b in zip(functions, values, values[1:], strict=False))

    return compare


def _either(node: ast.IfExp, known: Any) -> Code:
    test, yes, no = (_code(each, known) for each in (node.test, node.body, node.orelse))
    return lambda names: yes(names) if truth(test(names)) else no(names)


def _part(node: ast.Subscript, known: Any) -> Code:
    whole = _code(node.value, known)
    if isinstance(node.slice, ast.Slice):
        ends = [_whole(end) for end in (node.slice.lower, node.slice.upper, node.slice.step)]
        if ends[2] == 0:
            raise ValueError(f"{short(ast.unparse(node))}: the step of a slice is 0")
        return lambda names: items(whole(names))[slice(*ends)]
    if (at := _whole(node.slice)) is None:
        raise ValueError(f"{short(ast.unparse(node))}: an index must be a whole number")

    def item(names: Mapping[str, Any]) -> Any:
        found = items(whole(names))
        if not -len(found) <= at < len(found):
            raise ValueError(f"{short(ast.unparse(node))}: there are only {len(found)} items")
        return found[at]

    return item


def _whole(node: ast.expr | None) -> int | None:
    if node is None:
        return None
    value = node.value if isinstance(node, ast.Constant) else None
    if type(value) is not int:
        raise ValueError(f"{short(ast.unparse(node))} is not a whole number")
    return value


def _call(node: ast.Call, known: Any) -> Code:
    name = ast.unparse(node.func)
    if name not in FUNCTIONS:
        raise ValueError(f"{short(name)} is not a function of templates{did_you_mean(name, FUNCTIONS)}")
    least, most, function = FUNCTIONS[name]
    if node.keywords or not least <= len(node.args) <= most:
        raise ValueError(f"{short(ast.unparse(node))}: {name} takes {least} to {most} values")
    parts = [_code(each, known) for each in node.args]
    return lambda names: function(*[part(names) for part in parts])


NODES: dict[type, Callable[[Any, Any], Code]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.List: _list,
    ast.Tuple: _list,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _both,
    ast.Compare: _compare,
    ast.IfExp: _either,
    ast.Subscript: _part,
    ast.Call: _call,
}
