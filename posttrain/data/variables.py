"""The variables that a chat template reads before it sets them itself, so that they can be set from outside.

`jinja2.meta` also names those that are set in one branch and read behind it, such as `content`. Left out:
what every template is given (rendering.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

SCOPES = ("Macro", "CallBlock", "FilterBlock", "With", "Scope", "ScopedEvalContextModifier", "Block")
"""What is set in one of these is not set behind it."""


def read_first(source: str, environment: Environment) -> frozenset[str]:
    """Raises jinja2.TemplateSyntaxError."""
    from jinja2.meta import find_undeclared_variables

    tree = environment.parse(source)
    read: set[str] = set()
    _walk([tree], set(), read)
    return frozenset(find_undeclared_variables(tree) & read)


def _walk(found: Iterable[nodes.Node], known: set[str], read: set[str]) -> None:
    """Adds to `read` the names that are read in `found` before they are `known`, and to `known` those that
    are set there, in the order in which the template does it."""
    for node in found:
        kind = type(node).__name__
        if kind == "Name":
            if node.ctx != "load":
                known.add(node.name)
            elif node.name not in known:
                read.add(node.name)
        elif kind == "If":
            _walk([node.test], known, read)
            branches = [node.body, *([each] for each in node.elif_), node.else_]
            ends = [set(known) for _ in branches]
            for branch, end in zip(branches, ends, strict=True):
                _walk(branch, end, read)
            known |= set().union(*ends)
        elif kind == "For":
            _walk([node.iter], known, read)
            inside = set(known)
            _walk([node.target, *filter(None, [node.test]), *node.body], inside, read)
            _walk(node.else_, set(known), read)
        elif kind == "Assign":
            _walk([node.node, node.target], known, read)
        elif kind == "AssignBlock":
            _walk(node.body, set(known), read)
            _walk([node.target], known, read)
        else:
            if kind == "Macro":
                known.add(node.name)
            inner = set(known) if kind in SCOPES else known
            _walk(node.iter_child_nodes(), inner, read)
