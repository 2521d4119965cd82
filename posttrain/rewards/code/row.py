"""The tests of a row in one of three styles, and what is wrong with a row.

`tests`: test code (single asserts, `def check(candidate)`, unittest classes, `test_*` functions), with
`setup`, `entry_point` and `prompt`. `stdin_tests`: the complete output of a program for its complete input.
Inputs of EvalPlus (`base_input`, `plus_input`, `atol`, `canonical_solution`): the reference computes the
expected values. A column may contain these as JSON text. Left out: expected outputs in files.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from typing import Any

from posttrain.types import Example

LONGEST_TIMEOUT = 120.0
"""The longest `timeout` of a row or a recipe, in seconds."""
MOST_MEMORY = 1 << 20
"""The largest `memory_mb` of a recipe, in MiB."""


@dataclass(slots=True)
class Tests:
    """The tests of one row. `kind` is `functions`, `inputs` or `stdin`."""

    kind: str
    tests: list[str] = field(default_factory=list)
    setup: str = ""
    entry_point: str = ""
    prompt: str = ""
    inputs: list[list[Any]] = field(default_factory=list)
    reference: str = ""
    atol: float = 0.0
    stdin: list[tuple[str, str]] = field(default_factory=list)
    timeout: float | None = None

    @property
    def total(self) -> int:
        return len(self.tests) or len(self.inputs) or len(self.stdin)


def tests_of(example: Example) -> Tests:
    """The tests of a row. Raises ValueError with what is wrong with the row."""
    row = example.extra
    out = Tests("functions")
    out.timeout = _number(row, "timeout", LONGEST_TIMEOUT)
    out.setup = _text(row, "setup")
    out.entry_point = _text(row, "entry_point").strip()
    out.prompt = row["prompt"] if isinstance(row.get("prompt"), str) else example.prompt or ""
    if out.entry_point:
        _compiles(out.entry_point, "entry_point", "eval")
    tests = row.get("tests") if row.get("tests") is not None else row.get("test")
    if tests is not None:
        out.tests = [_without_import(test) for test in _tests(tests)]
        _compiles(out.setup, "setup")
        for number, test in enumerate(out.tests, 1):
            _compiles(test, f"test {number} of {len(out.tests)}")
            if (
                not out.entry_point
                and "def check(" in test
                and "check(" not in test.replace("def check(", "")
            ):
                raise ValueError("the test defines `check` but never calls it: the row needs `entry_point`")
        return out
    if row.get("stdin_tests") is not None:
        out.kind, out.stdin = "stdin", _stdin(row["stdin_tests"])
        return out
    if row.get("base_input") is not None or row.get("plus_input") is not None:
        return _inputs(out, row)
    raise ValueError("the row has neither `tests` nor `stdin_tests`")


def _tests(value: Any) -> list[str]:
    if isinstance(value, str):
        value = _json(value) if value.lstrip().startswith(("[", '["')) else [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(t, str) for t in value):
        raise ValueError("`tests` must be a list of strings of test code, or one string")
    value = [t for t in value if t.strip()]
    if not value:
        raise ValueError("`tests` is empty")
    return value


def _stdin(value: Any) -> list[tuple[str, str]]:
    value = _json(value) if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError('`stdin_tests` must be a list of at least one {"stdin", "stdout"}')
    out = []
    for number, test in enumerate(value, 1):
        if not isinstance(test, dict) or not isinstance(test.get("stdout"), str):
            raise ValueError(f'stdin test {number} must be {{"stdin", "stdout"}} with strings')
        stdin = test.get("stdin", "")
        if not isinstance(stdin, str):
            raise ValueError(f"stdin test {number}: `stdin` must be a string, not {type(stdin).__name__}")
        out.append((stdin, test["stdout"]))
    return out


def _inputs(out: Tests, row: dict[str, Any]) -> Tests:
    reference = row.get("canonical_solution") or row.get("reference")
    if not isinstance(reference, str) or not out.entry_point:
        raise ValueError(
            "a row with `base_input` or `plus_input` needs `canonical_solution` and `entry_point`"
        )
    for name in ("base_input", "plus_input"):
        value = row.get(name) or []
        value = _json(value) if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(args, (list, tuple)) for args in value):
            raise ValueError(f"`{name}` must be a list of lists of arguments")
        out.inputs += [list(args) for args in value]
    if not out.inputs:
        raise ValueError("`base_input` and `plus_input` contain no input")
    out.kind, out.atol = "inputs", _number(row, "atol", 1e300) or 0.0
    out.reference = out.prompt + reference
    _compiles(out.reference, "canonical_solution")
    return out


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a string, not {type(value).__name__}")
    return value


def _number(row: dict[str, Any], name: str, most: float) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a number of at least 0, not {value!r}")
    if name == "timeout" and not value:
        raise ValueError("`timeout` must be more than 0 seconds")
    return min(float(value), most)


def _without_import(test: str) -> str:
    """A test without its `from solution import f`: names are bound to those of the program anyway."""
    if "solution" not in test:
        return test
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError):
        return test  # `_compiles` reports it
    kept = [n for n in tree.body if not (isinstance(n, ast.ImportFrom) and n.module == "solution")]
    if len(kept) == len(tree.body):
        return test
    if any(a.asname for n in tree.body if n not in kept for a in n.names):
        raise ValueError("a test imports the program under another name (`as`); use the program's own name")
    return ast.unparse(ast.Module(kept, []))


def _compiles(source: str, what: str, mode: str = "exec") -> None:
    try:
        compile(source, what, mode, dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        message = getattr(error, "msg", None) or error
        raise ValueError(f"{what} does not compile: {message}") from None
