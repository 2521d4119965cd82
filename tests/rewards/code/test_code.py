"""The reward `code`: styles of tests, the program in a completion, verdicts, bad rows and options."""

from __future__ import annotations

import pytest

from posttrain.errors import RequestError
from posttrain.rewards.code import check, check_row, code, extract, row, stdio
from posttrain.rewards.registry import bind
from posttrain.rewards.simple.visible import after_thinking
from posttrain.types import Example

ADD = "def add(a, b):\n    return a + b\n"


def judge(completion: str, options: dict | None = None, **row):
    return code(completion, Example(extra=row), **({"timeout": 5.0} | (options or {})))


# ---- verdicts


def test_right_and_wrong_with_the_first_failure():
    tests = ["assert add(1, 2) == 3", "assert add(2, 2) == 5", "assert add(0, 0) == 0"]
    verdict = judge(ADD, tests=tests)
    assert (verdict.value, verdict.status) == (0.0, "scored")
    assert verdict.reason == "test 2 of 3 failed: AssertionError"
    assert verdict.details["passed"] == 1 and verdict.details["total"] == 3  # stopped at the first
    assert verdict.details["backend"] in ("bubblewrap", "namespaces", "landlock")
    assert judge(ADD, tests=tests[:1]).value == 1.0


def test_fraction_counts_the_tests_behind_a_failure():
    tests = [
        "assert add(1, 2) == 3",
        "assert add(2, 2) == 5",
        "assert add(0, 0) == 0",
        "assert add(1, 1) == 2",
    ]
    assert judge(ADD, {"grade": "fraction"}, tests=tests).value == 0.75


def test_an_exception_of_the_program_is_named():
    verdict = judge("def add(a, b):\n    return {}['no']", tests=["assert add(1, 2) == 3"])
    assert verdict.reason == "test 1 of 1 failed: the program raised KeyError: 'no'"


def test_a_reason_can_be_written_anywhere():
    """A program may raise lone surrogates, which no file takes."""
    program = "def add(a, b): raise ValueError(chr(0xd800))"
    verdict = judge(program, tests=["assert add(1, 2) == 3"])
    assert verdict.reason.endswith("ValueError: \\ud800") and verdict.value == 0.0
    (verdict.reason + str(verdict.details["failures"][0])).encode()


def test_a_syntax_error_while_it_runs_is_zero():
    verdict = judge(ADD + "exec('1 +')", tests=["assert add(1, 2) == 3"])
    assert (verdict.value, verdict.status) == (0.0, "scored")
    assert "SyntaxError" in verdict.reason


def test_a_syntax_error_is_zero_with_its_line():
    verdict = judge("```python\ndef add(a, b)\n    return 1\n```", tests=["assert add(1, 2) == 3"])
    assert (verdict.value, verdict.status) == (0.0, "scored")
    assert verdict.reason.startswith("syntax error") and "line 1" in verdict.reason


@pytest.mark.parametrize("text", ["", " \n\t ", "<think>def add(a, b): return a + b", "```python\n```"])
def test_no_program_is_unparseable(text):
    verdict = judge(text, tests=["assert add(1, 2) == 3"])
    assert (verdict.value, verdict.status) == (0.0, "unparseable")


@pytest.mark.parametrize(
    "body, limit",
    [
        ("while True: pass", "1 s of time"),
        ("x = [0] * 10 ** 10", "memory"),
        ("return [0] * 3 * 10 ** 7", "memory"),
    ],
)
def test_exhaustion_is_zero_by_limit(body, limit):
    verdict = judge(f"def add(a, b):\n    {body}", {"timeout": 1.0}, tests=["assert add(1, 2) == 3"])
    assert (verdict.value, verdict.status, verdict.reason) == (0.0, "scored", "limit")
    assert limit in verdict.details["limit"] or "time" in verdict.details["limit"]


def test_a_program_that_ends_itself_is_wrong_not_an_error():
    for end in ("import os; os._exit(0)", "raise SystemExit", "import os; os.closerange(3, 400)"):
        verdict = judge(f"def add(a, b):\n    {end}", tests=["assert add(1, 2) == 3"])
        assert (verdict.value, verdict.status) == (0.0, "scored"), end


def test_the_same_verdict_twice():
    program = "import random\ndef add(a, b): return random.random()\n"
    row = {"tests": ["assert add(1, 2) == 0.5"]}
    seen = {
        judge("def add(a, b): return list({'a', 'b', 'c', str(a)})", tests=["assert add(1, 2) == 0"]).reason
    }
    a = judge(program + "x = random.random()\ndef add(a, b): raise ValueError(x)", **row).reason
    assert a == judge(program + "x = random.random()\ndef add(a, b): raise ValueError(x)", **row).reason
    assert len(seen) == 1


# ---- styles


def test_a_name_of_the_library_as_the_function_under_test():
    """MBPP has `sum`, `gcd`: tests must reach the program's; the library's would let anything pass."""
    for name, test in (("sum", "assert sum(10, 15) == 6"), ("gcd", "assert gcd(1, 2) == 9")):
        assert judge(f"def {name}(a, b): return {6 if name == 'sum' else 9}", tests=[test]).value == 1.0
        assert judge(f"def {name}(a, b): return 1", tests=[test]).value == 0.0


def test_names_of_the_library_beside_the_function_are_the_library_s():
    program = "def isclose(*a, **k): return True\nclass math: isclose = isclose\ndef f(): return 2.0\n"
    for test in ("assert isclose(f(), 3.0)", "assert math.isclose(f(), 3.0)"):
        assert judge(program, tests=[test]).value == 0.0
        assert judge(program, tests=[test.replace("3.0", "2.0")]).value == 1.0


def test_helpers_of_the_prompt_are_the_prompt_s():
    """HumanEval 32, 38, 50: a test calls a helper that stands in the prompt; the program may redefine it."""
    prompt = "def poly(xs, x):\n    return sum(c * x ** i for i, c in enumerate(xs))\n\n\n"
    prompt += "def zero(xs):\n    '''A root.'''\n"
    test = "def check(candidate):\n    assert abs(poly([-2, 1], candidate([-2, 1]))) < 1e-9\n"
    row = {"prompt": prompt, "tests": test, "entry_point": "zero"}
    assert judge("    return -xs[0] / xs[1]\n", **row).value == 1.0
    assert judge("def poly(xs, x): return 0\ndef zero(xs): return 7", **row).value == 0.0


def test_mutated_arguments_and_aliases_come_back():
    program = "def f(x, y):\n    x[0].append(y)\n    y['k'] = x\n    del x[1]\n    return x\n"
    test = (
        "a, b = [[1], 2], {}\nr = f(a, b)\nassert r is a and a == [[1, b]] and b['k'] is a and a[0][1] is b"
    )
    assert judge(program, tests=[test]).value == 1.0


def test_callbacks_of_the_test_are_called():
    program = "def f(g, xs): return [g(x) for x in xs] + list(xs)"
    assert judge(program, tests=["assert f(lambda x: x + 1, iter([1, 2])) == [2, 3]"]).value == 1.0


def test_classes_of_the_program_compare_by_data():
    program = (
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\n"
        "    def __add__(s, o): return P(s.x + o.x)\n"
        "class E(Exception): pass\ndef f(): raise E('no')\n"
    )
    tests = [
        "assert P(1) == P(1)",
        "assert P(1) != P(2)",
        "assert P(1) + P(2) == P(3)",
        "assert P(4).x == 4",
        "assert isinstance(P(1), P)",
        "try:\n    f()\nexcept E as e:\n    assert str(e) == 'no'\nelse:\n    assert 0",
        "assert P(1) != 1",
    ]
    verdict = judge(program, {"grade": "fraction"}, tests=tests)
    assert verdict.value == 1.0, verdict.details


def test_numpy_crosses_as_data():
    pytest.importorskip("numpy")
    program = "import numpy as np\ndef f(n): return np.arange(n) * 1.5\ndef g(): return np.int64(3)"
    tests = [
        "import numpy as np\nassert np.allclose(f(3), [0, 1.5, 3])",
        "assert f(2).tolist() == [0, 1.5]",
        "assert g() == 3",
    ]
    verdict = judge(program, {"grade": "fraction", "timeout": 20.0}, tests=tests)
    assert verdict.value == 1.0, verdict.details


def test_inputs_with_a_reference_and_a_tolerance():
    row = {
        "prompt": "def f(x):\n    '''A third.'''\n",
        "canonical_solution": "    return x / 3\n",
        "entry_point": "f",
        "base_input": [[1], [2]],
        "plus_input": [[10]],
        "atol": 1e-3,
    }
    assert judge("    return round(x / 3, 4)\n", **row).value == 1.0
    assert judge("    return round(x / 3, 1)\n", **row).value == 0.0
    assert judge("    return str(x / 3)\n", **row).value == 0.0
    assert (
        judge("    return round(x / 3, 1) if x == 2 else x / 3\n", {"grade": "fraction"}, **row).value
        == 2 / 3
    )


def test_a_row_whose_tests_call_nothing_is_an_error():
    assert judge(ADD, tests=["assert 1 == 1"]).status == "error"


def test_a_setup_that_the_program_breaks_is_zero():
    row = {"setup": "n = Node(1)", "tests": ["assert size(n) == 1"]}
    verdict = judge("def size(n): return 1", **row)
    assert (verdict.value, verdict.status) == (0.0, "scored")
    assert judge("def size(n): return 1", setup="1 / 0", tests=["assert size(1) == 1"]).status == "error"


# ---- standard input


def test_stdin_all_lines_of_equal_number():
    rows_ = [{"stdin": "3\n", "stdout": "0\n1\n2\n"}]
    loop = "for i in range(int(input())): print(i)"
    assert judge(loop, stdin_tests=rows_).value == 1.0
    assert judge(loop + "\nprint(' ')", stdin_tests=rows_).value == 1.0
    for wrong in (loop + "\nprint(3)", "print(0); print(1)", loop.replace("print(i)", "print('', i)")):
        assert judge(wrong, stdin_tests=rows_).value == 0.0, wrong


def test_stdin_failures_by_code_and_by_limit():
    row = {"stdin_tests": [{"stdin": "", "stdout": "1"}]}
    assert "ZeroDivisionError" in judge("print(1); 1 / 0", **row).reason
    assert judge("import sys; print(1); sys.exit(3)", **row).value == 0.0
    assert judge("import sys; print(1); sys.exit(0)", **row).value == 1.0
    assert judge("print(1, flush=True)\nwhile 1: pass", {"timeout": 0.5}, **row).reason == "limit"
    assert judge("while 1: print(1)", **row).details["limit"] == "output"


def test_stdin_fraction_and_large_input():
    tests = [{"stdin": "x" * 300_000, "stdout": "300000"}, {"stdin": "", "stdout": "1"}]
    verdict = judge("import sys; print(len(sys.stdin.read()))", {"grade": "fraction"}, stdin_tests=tests)
    assert verdict.value == 0.5 and "'0' instead of '1'" in verdict.reason


@pytest.mark.parametrize(
    "got, expected, tolerance, same",
    [
        ("1.0001", "1", 1e-3, True),
        ("1.01", "1", 1e-3, False),
        ("a 1.0001", "a 1", 1e-3, True),
        ("1e9", "1000000000.5", 1e-3, True),
        ("nan", "1", 9.0, False),
        ("inf", "1", 9.0, False),
        ("1 2", "1", 9.0, False),
        ("b 1", "a 1", 9.0, False),
        ("1.0", "1", None, False),
        ("1_0", "10", 1.0, False),
        ("\u0661", "1", 0.5, False),
    ],
)
def test_tolerance(got, expected, tolerance, same):
    assert (stdio.difference(got, expected, tolerance) == "") is same


# ---- which program


@pytest.mark.parametrize(
    "text, found",
    [
        ("```python\na\n```\n```python\nb\n```", ["a", "b"]),
        ("```\nx\n```\n```python\ny\n```", ["y"]),
        ("x = 1", ["x = 1"]),
        ("```js\nx\n```", ["x"]),
        ("````python\n```\na\n```\n````", ["```\na\n```"]),
        ("~~~py\na\n~~~", ["a"]),
        ("```python\na", ["a"]),
        ("  ```python\n  a\n    b\n  ```", ["a\n  b"]),
        ("`a` and ```b``` here", ["`a` and ```b``` here"]),
        ("```python title='x'\na\n```", ["a"]),
    ],
)
def test_blocks(text, found):
    assert extract.blocks(text) == found


def test_thinking_does_not_count():
    assert after_thinking("<think>a</think>b") == "b"
    assert after_thinking("a</think>b") == "b"
    assert after_thinking("a</think>b<think>c") is None


# ---- bad rows and options


@pytest.mark.parametrize(
    "row, said",
    [
        ({}, "neither"),
        ({"tests": []}, "empty"),
        ({"tests": "def check(f): assert f() == 1"}, "entry_point"),
        ({"tests": ["assert f("]}, "does not compile"),
        ({"tests": [3]}, "strings"),
        ({"tests": ["f()"], "setup": 3}, "setup"),
        ({"tests": ["f()"], "timeout": "x"}, "timeout"),
        ({"tests": ["f()"], "timeout": 0}, "0 seconds"),
        ({"stdin_tests": []}, "at least one"),
        ({"stdin_tests": [{"stdin": "a"}]}, "test 1"),
        ({"stdin_tests": [{"stdin": 3, "stdout": ""}]}, "stdin"),
        ({"base_input": [[1]]}, "canonical_solution"),
        ({"tests": ["f()"], "entry_point": "("}, "entry_point"),
        ({"tests": ["f()"], "setup": "x ="}, "setup"),
    ],
)
def test_bad_rows_are_said_before_anything_runs(row, said):
    with pytest.raises(ValueError, match=said):
        check_row(Example(extra=row))


def test_json_text_in_columns():
    assert row.tests_of(Example(extra={"tests": '["assert f() == 1"]'})).tests == ["assert f() == 1"]
    assert row.tests_of(Example(extra={"stdin_tests": '[{"stdin": "a", "stdout": "b"}]'})).stdin == [
        ("a", "b")
    ]


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0.0}, {"timeout": 1e9}, {"memory_mb": 1}, {"float_tolerance": -1.0}, {"backend": "remote"}],
)
def test_bad_options(options):
    with pytest.raises(RequestError):
        judge(ADD, options, tests=["assert add(1, 2) == 3"])


def test_options_are_typed():
    with pytest.raises(RequestError, match="grade"):
        bind("code", {"grade": "some"})
    with pytest.raises(RequestError, match="bubblewrap"):
        bind("code", {"backend": "bublewrap"})


def test_the_row_s_timeout_is_bounded():
    assert row.tests_of(Example(extra={"tests": ["f()"], "timeout": 10**9})).timeout == 120.0
    assert check.clock(row.tests_of(Example(extra={"tests": ["f()"]})), check.Limits(seconds=3)) == 3


# ---- after review


@pytest.mark.slow
def test_all_tests_of_a_row_have_one_budget(monkeypatch):
    """Six tests just under their own limit would take as long as they like together."""
    monkeypatch.setattr(check, "ROW_S", 1.5)
    program = "import time\ninput()\ntime.sleep(0.7)\nprint(1)"
    tests = [{"stdin": "x\n", "stdout": "1\n"}] * 6
    verdict = judge(program, {"grade": "fraction", "timeout": 1.0}, stdin_tests=tests)
    assert 0 < verdict.value <= 0.5 and "out of time" in verdict.reason


def test_tests_that_import_the_program():
    tests = ["from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3"]
    assert judge(ADD, tests=tests).value == 1.0
    assert judge(ADD.replace("+", "-"), tests=tests).value == 0.0
    assert judge(ADD, tests=["from solution import *\nassert add(1, 2) == 3"]).value == 1.0
    with pytest.raises(ValueError, match="under another name"):
        check_row(Example(extra={"tests": ["from solution import add as plus\nassert plus(1, 2) == 3"]}))
