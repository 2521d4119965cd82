"""Names in test code: which ones it reads and binds, and which of them the standard library provides.

Nothing is run here. Left out: names inside strings (`eval("f(1)")`).
"""

import ast
import sys

ABBREVIATED = {"np": "numpy", "numpy": "numpy"}
FROM = {
    "collections": ("Counter", "defaultdict", "deque", "OrderedDict", "namedtuple"),
    "typing": ("Any", "Callable", "Dict", "Iterable", "List", "Optional", "Set", "Tuple", "Union"),
    "math": ("ceil", "factorial", "floor", "gcd", "inf", "isclose", "log", "pi", "sqrt"),
    "itertools": ("chain", "combinations", "permutations", "product"),
    "functools": ("cmp_to_key", "lru_cache", "partial", "reduce"),
    "fractions": ("Fraction",),
    "decimal": ("Decimal",),
    "copy": ("deepcopy",),
}
KNOWN = {name: module for module, names in FROM.items() for name in names}
DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
INNER = (
    ast.stmt,
    ast.expr,
    ast.comprehension,
    ast.excepthandler,
    ast.arguments,
    ast.arg,
    ast.keyword,
    ast.alias,
    ast.withitem,
    ast.match_case,
    ast.pattern,
)
"""Nodes that may contain a name; operators and contexts contain none."""


class Survey:
    """The names that a piece of code reads, binds and calls, and the classes it defines."""

    def __init__(self):
        self.read, self.bound, self.called, self.classes = set(), set(), set(), set()
        self.bases, self.bare = set(), set()  # names of which an attribute is taken; names without one


def survey(tree):
    """The names of a tree in one pass; `ast.walk` would take most of the time of a short check."""
    found, waiting = Survey(), [tree]
    while waiting:
        node = waiting.pop()
        kind = type(node)
        if kind is ast.Name:
            found.bare.add(node.id)
            (found.read if type(node.ctx) is ast.Load else found.bound).add(node.id)
            continue
        if kind is ast.Attribute and type(node.value) is ast.Name:
            found.bases.add(node.value.id)
            found.read.add(node.value.id)
            continue
        if kind is ast.Call and type(node.func) is ast.Name:
            found.called.add(node.func.id)
        elif kind in DEFINITIONS:
            found.bound.add(node.name)
            if kind is ast.ClassDef:
                found.classes.add(node.name)
        elif kind is ast.arg:
            found.bound.add(node.arg)
        elif kind is ast.alias:
            found.bound.add((node.asname or node.name).partition(".")[0])
        for value in node.__dict__.values():
            if type(value) is list:
                waiting.extend(v for v in value if isinstance(v, INNER))
            elif isinstance(value, INNER):
                waiting.append(value)
    return found


def free_names(surveys):
    """Names that the code reads and does not bind at any level."""
    return set().union(*(s.read for s in surveys)) - set().union(*(s.bound for s in surveys))


def module_names(surveys):
    """Names of library modules of which the code only takes attributes."""
    bases = set().union(*(s.bases for s in surveys)) - set().union(*(s.bare for s in surveys))
    return {n for n in bases if n in ABBREVIATED or n in sys.stdlib_module_names}


def under_test(trees):
    """[the outermost name that all tests call], or an empty list."""
    calls = [
        [n.func.id for n in ast.walk(t) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        for t in trees
    ]
    shared = set.intersection(*map(set, calls)) if calls else set()
    return [n for n in calls[0] if n in shared][:1] if shared else []


def standard(name):
    """The object of the standard library that tests use under a name without importing it, or None."""
    try:
        if name in KNOWN:
            return getattr(__import__(KNOWN[name]), name)
        return __import__(ABBREVIATED.get(name, name))
    except ImportError:
        return None
