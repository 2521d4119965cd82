"""The judge's process: runs the tests, calls the candidate through stand-ins, and reports to the caller.

Tests, setup, prompt and reference are trusted code of the data set. A name that the tests use is looked for in this
order: what they bind themselves, built-ins, the standard library, then the candidate. So a program that defines
`all`, `isinstance` or `math` changes nothing here.
"""

import ast
import builtins
import copy
import sys
import types
import unittest

from .compare import close
from .program import prompt_code
from .session import CannotCross, Session
from .wire import Gone, receive, send

STDLIB = {"np": "numpy", "numpy": "numpy"}
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
CAUSE = 300
"""Characters of a cause that is reported."""


class Judge:
    """One row's tests. `report` of `run` is what the caller gets."""

    def __init__(self, candidate_fd, payload):
        self.payload = payload
        self.module = types.ModuleType("tests")
        sys.modules["tests"] = self.module
        self.names = self.module.__dict__
        self.session = Session(candidate_fd, self.names)
        self.failures, self.passed, self.total = [], 0, 0
        self.used = self.setup_uses_program = False

    def run(self):
        """{"passed", "total", "failures": [[number, cause]], "stopped"}"""
        self.total = len(self.payload["tests"]) or len(self.payload.get("inputs") or ())
        try:
            self.prepare()
        except Gone as gone:
            return self.report(f"the program ended while it was loaded ({gone})", gone=True)
        except SyntaxError as error:
            return self.report(error.msg or cause(error))
        except Exception as error:
            if not hasattr(error, "of_the_program") and self.setup_uses_program:
                return self.report(f"the setup failed on the program: {cause(error)}", error)
            if not hasattr(error, "of_the_program"):
                return {"broken": f"the setup raised {type(error).__name__}: {error}"[:CAUSE]}
            return self.report(f"the program raised {error.of_the_program}", error)
        for number, test in enumerate(self.tests(), 1):
            try:
                test()
            except CannotCross as error:
                return {"broken": str(error)[:CAUSE]}
            except Gone as gone:
                self.failures.append([number, f"the program ended ({gone})"])
                return self.report(None, gone=True)
            except BaseException as error:
                self.failures.append([number, cause(error)])
                if memory(error):
                    return self.report(None, error)
            else:
                self.passed += 1
                continue
            if self.payload.get("grade") == "all":
                break
        if not self.used:
            return {"broken": "no test calls the program"}
        return self.report(None)

    def report(self, stopped, error=None, gone=False):
        limit = "memory" if error is not None and memory(error) else ""
        return {
            "passed": self.passed,
            "total": self.total,
            "failures": self.failures[:5],
            "stopped": stopped,
            "limit": limit,
            "gone": gone,
        }

    def prepare(self):
        """Loads the program, binds the names, runs the setup."""
        payload, names = self.payload, self.names
        setup = payload.get("setup") or ""
        before = survey(ast.parse(setup))
        self.trees = [ast.parse(source) for source in payload["tests"]]
        self.surveys = [survey(tree) for tree in self.trees]
        surveys = [before, *self.surveys]
        prompt = payload.get("prompt") or ""
        top, code = prompt_code(prompt)
        if code is not None:
            exec(code, names)
        entry = payload.get("entry_point") or ""
        roots = sorted({n.id for n in ast.walk(ast.parse(entry)) if isinstance(n, ast.Name)}) if entry else []
        free = {n for n in free_names(surveys) if n not in names} - set(roots)
        modules = module_names(surveys)
        trusted = {n: standard(n) for n in free if n in KNOWN or n in modules}
        trusted = {n: value for n, value in trusted.items() if value is not None}
        more = sorted(n for n in free if n not in trusted and not hasattr(builtins, n))
        if not roots and not more:  # the function under test is called like one of the library's
            more = under_test(self.trees)
        names.update({n: value for n, value in trusted.items() if n not in more})
        shared = set().union(*(found.classes for found in surveys))
        if top is not None:
            shared |= survey(top).classes
        shared -= {*roots, *more}  # the prompt may hold a stub of what is judged
        self.used = bool(roots or more)  # says something of the row alone, not of the program
        self.setup_uses_program = True  # so do loading it and looking for its entry
        found = self.session.load(payload, roots or more, more if roots else [], sorted(shared))
        names.update({n: v for n, v in found.items() if n in roots or n in more})
        missing = [n for n in roots if n not in found]
        if missing:
            raise SyntaxError(f"the program does not define {missing[0]!r}")
        self.entry = eval(entry, names) if entry else None
        self.setup_uses_program = bool(free_names([before]) & {*roots, *more})
        if setup:
            exec(compile(setup, "setup.py", "exec", dont_inherit=True), names)

    def tests(self):
        for each in zip(self.payload["tests"], self.trees, self.surveys):  # noqa: B905
            yield lambda each=each: self.unit(*each)
        if not self.payload["tests"] and self.payload.get("inputs"):
            yield from self.inputs()

    def unit(self, source, tree, found):
        """One test: statements; then `check(entry)`, unittest classes and `test_*` functions that it defined."""
        names = self.names
        before = dict(names)
        exec(compile(source, "test.py", "exec", dont_inherit=True), names)
        if not any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in tree.body):
            return
        new = {n: v for n, v in names.items() if before.get(n) is not v}
        called = found.called
        if (
            isinstance(new.get("check"), types.FunctionType)
            and "check" not in called
            and self.entry is not None
        ):
            new["check"](self.entry)
        for name, value in new.items():
            if isinstance(value, types.FunctionType) and name.startswith("test_") and name not in called:
                value()
            elif isinstance(value, type) and issubclass(value, unittest.TestCase):
                value.setUpClass()
                for case in unittest.defaultTestLoader.loadTestsFromTestCase(value):
                    case.debug()
                value.tearDownClass()

    def inputs(self):
        """One test an input: the reference computes what is expected, here."""
        scope = {"__name__": "reference"}
        exec(compile(self.payload["reference"], "reference.py", "exec", dont_inherit=True), scope)
        reference = eval(self.payload["entry_point"], scope)
        residual = scope.get("poly") if self.payload["entry_point"] == "find_zero" else None
        atol = self.payload.get("atol") or 0.0

        def one(args):
            expected = reference(*copy.deepcopy(args))
            got = self.entry(*copy.deepcopy(args))
            if residual is not None:  # any root will do
                assert isinstance(got, (int, float)) and abs(residual(*copy.deepcopy(args), got)) <= atol, (
                    "no root"
                )
            else:
                assert close(got, expected, atol), f"{short(got)} instead of {short(expected)}"

        for args in self.payload["inputs"]:
            yield lambda args=args: one(args)


class Survey:
    """What names a piece of code reads, binds, calls, takes attributes of, and which classes it defines."""

    def __init__(self):
        self.read, self.bound, self.called, self.bases, self.bare = (set(), set(), set(), set(), set())
        self.classes = set()


def survey(tree):
    """One pass over the tree; `ast.walk` would take most of a short check."""
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
"""What may hold a name; operators and contexts hold none."""


def free_names(surveys):
    """Names that the code reads and does not bind at any level."""
    return set().union(*(s.read for s in surveys)) - set().union(*(s.bound for s in surveys))


def module_names(surveys):
    """Names of library modules that the code only takes attributes of."""
    bases = set().union(*(s.bases for s in surveys)) - set().union(*(s.bare for s in surveys))
    return {n for n in bases if n in STDLIB or n in sys.stdlib_module_names}


def under_test(trees):
    """[the name that every test calls first], outermost first."""
    calls = [
        [n.func.id for n in ast.walk(t) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        for t in trees
    ]
    shared = set.intersection(*map(set, calls)) if calls else set()
    return [n for n in calls[0] if n in shared][:1] if shared else []


def standard(name):
    """The standard library's object of a name, as tests use it without an import; None if there is none."""
    try:
        if name in KNOWN:
            return getattr(__import__(KNOWN[name]), name)
        return __import__(STDLIB.get(name, name))
    except ImportError:
        return None


def memory(error):
    return isinstance(error, MemoryError) or getattr(error, "of_the_program", "").startswith("MemoryError")


def cause(error):
    told = getattr(error, "of_the_program", None)
    if told is not None:
        return f"the program raised {told}"[:CAUSE]
    text = str(error)
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:CAUSE]


def short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def main(candidate_fd, caller_fd):
    """Reads the payload, judges, reports."""
    payload = receive(caller_fd)
    try:
        report = Judge(candidate_fd, payload).run()
    except MemoryError:
        report = {"passed": 0, "total": 1, "failures": [], "stopped": None, "limit": "memory", "gone": False}
    send(caller_fd, report)
