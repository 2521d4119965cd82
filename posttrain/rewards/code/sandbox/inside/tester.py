"""The tester's process: runs the tests, calls the candidate through proxies, and reports to the caller.

Tests, setup, prompt and reference are trusted code of the data set. A name in the tests is looked up in this
order: what they bind themselves, built-ins, the standard library, then the candidate. So a program that
defines `all`, `isinstance` or `math` changes nothing here.
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
from .survey import KNOWN, free_names, module_names, standard, survey, under_test
from .wire import Gone, receive, send

CAUSE = 300
"""Characters of a reported cause."""


class Tester:
    """Runs the tests of one row."""

    def __init__(self, candidate_fd, payload):
        self.payload = payload
        self.module = types.ModuleType("tests")
        sys.modules["tests"] = self.module
        self.names = self.module.__dict__
        self.session = Session(candidate_fd, self.names)
        self.failures, self.passed, self.total = [], 0, 0
        self.used = self.setup_uses_program = False

    def run(self):
        """{"passed", "total", "failures": [[number, cause]], "stopped", "limit", "gone"}, or {"broken"}"""
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
        """Loads the program, binds the names and runs the setup."""
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
        if not roots and not more:  # the function under test has the name of a library function
            more = under_test(self.trees)
        names.update({n: value for n, value in trusted.items() if n not in more})
        shared = set().union(*(found.classes for found in surveys))
        if top is not None:
            shared |= survey(top).classes
        shared -= {*roots, *more}  # the prompt may contain a stub of what is tested
        self.used = bool(roots or more)  # depends on the row alone, not on the program
        self.setup_uses_program = True  # so do loading it and finding its entry point
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
        """Runs one test: its statements, then the `check`, TestCase classes and `test_*` that it defines."""
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
        """One test for each input; the reference computes the expected value in this process."""
        scope = {"__name__": "reference"}
        exec(compile(self.payload["reference"], "reference.py", "exec", dont_inherit=True), scope)
        reference = eval(self.payload["entry_point"], scope)
        residual = scope.get("poly") if self.payload["entry_point"] == "find_zero" else None
        atol = self.payload.get("atol") or 0.0

        def one(args):
            expected = reference(*copy.deepcopy(args))
            got = self.entry(*copy.deepcopy(args))
            if residual is not None:  # any root is right
                assert isinstance(got, (int, float)) and abs(residual(*copy.deepcopy(args), got)) <= atol, (
                    "no root"
                )
            else:
                assert close(got, expected, atol), f"{short(got)} instead of {short(expected)}"

        for args in self.payload["inputs"]:
            yield lambda args=args: one(args)


def memory(error):
    """Whether an exception says that the memory is exhausted."""
    return isinstance(error, MemoryError) or getattr(error, "of_the_program", "").startswith("MemoryError")


def cause(error):
    """A failed test's exception as text."""
    told = getattr(error, "of_the_program", None)
    if told is not None:
        return f"the program raised {told}"[:CAUSE]
    text = str(error)
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:CAUSE]


def short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def main(candidate_fd, caller_fd):
    """Reads the payload, runs its tests and reports."""
    payload = receive(caller_fd)
    try:
        report = Tester(candidate_fd, payload).run()
    except MemoryError:
        report = {"passed": 0, "total": 1, "failures": [], "stopped": None, "limit": "memory", "gone": False}
    send(caller_fd, report)
