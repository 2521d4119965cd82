"""Templates of GSM-Symbolic: the language, which executes nothing; drawing; the 250 released templates."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from fractions import Fraction
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.evaluate.settings import problems_of
from posttrain.evaluate.tasks.symbolic.drawing import Condition, drawn, joined
from posttrain.evaluate.tasks.symbolic.functions import Worded, number
from posttrain.evaluate.tasks.symbolic.language import compiled
from posttrain.evaluate.tasks.symbolic.pools import POOLS
from posttrain.evaluate.tasks.symbolic.template import Template, shown
from posttrain.recipe.schema import Task
from posttrain.rewards.math.words import NUMBERS

NAMES = {"x": 7, "y": Fraction(1, 2), "mult": Worded("twice", 2), "day": "Monday"}


def value(text: str):
    return compiled(text, NAMES)(NAMES)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x // 2 * 3 - x % 4", 6),
        ("x / 2", Fraction(7, 2)),
        ("(1 + 0.1) ** 2", Fraction(121, 100)),
        ("int(0.29 * 100)", 29),  # 28 in binary floating point
        ("0.1 + 0.2 == 0.3", True),
        ("-x < 0 < y <= 0.5", True),
        ("mult * x", 14),
        ("mult[1] == 2 and mult[0] == 'twice' and mult != 'triple'", True),
        ("day[0]", "M"),
        ("7 if day == 'week' else 30", 30),
        ("not is_int(x * y) and is_int(2 * x * y)", True),
        ("divides(12, 4) and not divides(4, 12)", True),
        ("round(2.675, 2)", Fraction(67, 25)),  # 2.67 in binary floating point
        ("format_frac(Fraction(7, 2))", "3 1/2"),
        ("format_frac(Fraction(30, 60))", "1/2"),
        ("format_frac(0)", "0"),
        ("range(2, 9, 3)", [2, 5, 8]),
        ("np.arange(0.5, 1.5, 0.25)", [Fraction(1, 2), Fraction(3, 4), 1, Fraction(5, 4)]),
        ("[1, 2] * 2 + [3]", [1, 2, 1, 2, 3]),
        ("[('d4', 4)][:1]", [Worded("d4", 4)]),
        ("numbers_within(41, 42)", [Worded("forty-one", 41), Worded("forty-two", 42)]),
    ],
)
def test_what_an_expression_gives(text, found):
    assert value(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.real", "not allowed in a template (Attribute)"),
        ("().__class__.__bases__", "not allowed in a template (Attribute)"),
        ("__import__('os').system('true')", "is not a function of templates"),
        ("open('/etc/passwd')", "is not a function of templates"),
        ("rnge(1, 2)", "did you mean 'range'?"),
        ("np.load('x')", "is not a function of templates"),
        ("np", "'np' is not defined"),
        ("int", "'int' is not defined"),
        ("dya", "did you mean 'day'?"),
        ("[n for n in range(1, 3)]", "(ListComp)"),
        ("(lambda: 1)()", "is not a function of templates"),
        ("(x := 1)", "(NamedExpr)"),
        ("f'{x}'", "(JoinedStr)"),
        ("{1: 2}", "(Dict)"),
        ("range(*x)", "takes 2 to 3 values"),
        ("round(x, ndigits=2)", "takes 1 to 2 values"),
        ("x << 2", "this operator is not allowed"),
        ("x is 7", "this comparison is not allowed"),
        ("x in day", "this comparison is not allowed"),
        ("9 ** 9 ** 9", "an exponent must be"),
        ("9 ** 99", "too large"),
        ("10 ** 20 * 10 ** 20", "too large"),
        ("1e999", "is not a number"),
        ("9" * 5000, "too long"),
        ("range(0, 10 ** 9)", "a list of 1000000000 items is too long"),
        ("np.arange(0, 1, 0.00000001)", "is too long"),
        ("[1] * 10 ** 9", "is too long"),
        ("'a' * 10 ** 9", "'a' is not a number"),
        ("day + day", "'Monday' is not a number"),
        ("range(0.5, 3)", "range takes whole numbers"),
        ("x / 0", "a division by zero"),
        ("x % (y - y)", "a division by zero"),
        ("day < x", "compares a text with a number"),
        ("x and x", "neither true nor false"),
        ("day[9]", "only 6 items"),
        ("x[0]", "has no parts"),
        ("1 +", "is not an expression"),
        ("x\nx", "is not an expression"),
        ("x = 1", "is not an expression"),
        ("\0", "is not an expression"),
        ("None", "is not a number or a text"),
        ("2j", "is not a number or a text"),
        ("-" * 3000 + "1", "is n"),
        ("(" * 900 + "1" + ")" * 900, "is n"),
        ("+".join("1" for _ in range(1500)), "nested too deeply"),
    ],
)
def test_what_is_refused_and_quickly(text, message):
    began = time.perf_counter()
    with pytest.raises(ValueError, match=re.escape(message)):
        value(text)
    assert time.perf_counter() - began < 1


PIECES = st.sampled_from(
    [
        *("x", "y", "mult", "day", "1", "0.5", "10**9", "'a'", "[1, 2]", "__class__", "__import__", "eval"),
        *("+", "-", "*", "**", "/", "//", "%", "(", ")", "[", "]", ",", ".", ":", " if ", " else ", " and "),
        *("range", "int", "np", "arange", "list", "divides", "lambda", "==", "<", "{", "}", "\\", "\n"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join) | st.text(max_size=60))
def test_any_text_is_a_value_or_a_sentence_and_executes_nothing(text):
    try:
        found = value(text)
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(found, bool | int | Fraction | str | Worded | list)


def test_values_are_drawn_evenly_from_those_that_fulfil_the_conditions():
    """x, y of 1 to 6 with x + y = 7 or 3 x = y: (1, 6) .. (6, 1), (1, 3), (2, 6); each of 8 in an eighth."""
    lines = [drawn(("x",), "range(1, 7)"), drawn(("y",), "range(1, 7)"), drawn(("day",), "sample(weekdays)")]
    code = compiled("x + y == 7 or 3 * x == y", {"x", "y"})
    parts = joined(lines, [Condition(frozenset("xy"), code)])
    assert [part.names for part in parts] == [["x", "y"], ["day"]]
    allowed = {(x, y) for x, y in product(range(1, 7), repeat=2) if x + y == 7 or 3 * x == y}
    for part in (parts[0], parts[0].solved):
        rng = Random(1)
        counts = Counter(tuple(part.draw(rng).values()) for _ in range(8000))
        assert set(counts) == allowed and all(abs(n - 1000) < 150 for n in counts.values())  # 5 sd


def test_a_condition_that_is_hardly_ever_fulfilled_is_solved():
    """1 of 27,000,000: n1 = 300, then n2 = 1 and n3 = 2."""
    lines = [drawn((name,), "range(1, 301)") for name in ("n1", "n2", "n3")]
    texts = {("n1",): "n1 == 300", ("n1", "n2"): "n1 * n2 == 300", ("n2", "n3"): "n3 == 2 * n2"}
    part = joined(lines, [Condition(frozenset(n), compiled(t, {*n})) for n, t in texts.items()])[0]
    assert sorted(part.draw(Random(0)).items()) == [("n1", 300), ("n2", 1), ("n3", 2)]


def test_neighbours_and_different_ones():
    days = drawn(("a", "b", "c"), "sample_sequential(weekdays, 3)")
    week = POOLS["weekdays"] * 2
    for seed in range(50):
        found = days.pick(Random(seed))
        assert found in [week[i : i + 3] for i in range(7)]
        assert len({*drawn(("a", "b", "c"), "sample(['x', 'y', 'z', 'z2'], 3)").pick(Random(seed))}) == 3
    names = [{*POOLS[key]} for key in ("names", "names_male", "names_female")]
    assert [len(each) for each in names] == [40] * 3 and len(set().union(*names)) == 120


QUESTION = """{name,Ann} buys {n,3} {item,pen}s at {cur,$}{p,2.50}, {f,half} of them for Bo. What is left?

#init:
- name = sample(["Ann", "Eve"])
- item = sample(["pen"])
- cur = sample(["$"])
- $n = range(2, 9, 2)
- $p = np.arange(0.5, 3.1, 0.25)
- $f = sample(fractions)

#conditions:
- is_int(n * f) and f == 0.5
- n * p < 20

#answer: 20 - n * p"""
SOLUTION = "{n} * {p} = <<{n}*{p}={n*p}>>{n*p}; Bo gets {int(n*f)}, a {Fraction(1, 2)}.\n#### {20 - n*p}"


def test_a_question_and_its_solution():
    template = Template(QUESTION, SOLUTION, "t.json")
    values = {"name": "Eve", "item": "pen", "cur": "$", "n": 4, "p": Fraction(5, 4)}
    made = template.of(values | {"f": Worded("half", Fraction(1, 2))})
    assert made.question == "Eve buys 4 pens at $1.25, half of them for Bo. What is left?"
    assert made.solution == "4 * 1.25 = <<4*1.25=5>>5; Bo gets 2, a 1/2.\n#### 15"
    assert made.answer == made.computed == 15
    first = template.instances(30, seed=3)
    assert template.instances(12, seed=3) == first[:12]  # the first ones do not depend on how many are asked
    assert len({each.question for each in first}) == 30 and template.instances(30, seed=4) != first
    assert all(template.holds(each.values) for each in first)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#init:", "#inti:", "the template has no #init"),
        ("#answer: 20 - n * p", "", "the template has no #answer"),
        ("- $n = range(2, 9, 2)", "- $n", r"#init: '- \$n' is not `- name = values`"),
        ("range(2, 9, 2)", "rang(2, 9, 2)", "#init: n: rang is not a function.*'range'"),
        ("range(2, 9, 2)", "range(9, 2)", "#init: n: 1 of 0 values cannot be drawn"),
        ("sample(fractions)", "sample(fractoins)", "#init: f: 'fractoins' is not defined.*'fractions'"),
        ("sample(fractions)", "sample(fractions, 2)", "#init: f: there are 1 names for 2 values"),
        ("n * p < 20", "n * q < 20", "#conditions: 'q' is not defined"),
        ("n * p < 20", "n * p > 900", "no values of n, p, f fulfil the #conditions"),
        ("n * p < 20", "n / (n - n) < 20", "#conditions: a division by zero"),
        ("n * p < 20", "1 < 2", "#conditions: '1 < 2' is about no slot"),
        ("- $p =", "- $n = [3]\n- $p =", "#init defines 'n' in two ways"),
        ("{n,3}", "{m,3}", "the question: 'm' is not defined"),
        ("range(2, 9, 2)", "[2]", "gives only .* different questions, not 50"),
    ],
)
def test_what_is_wrong_with_a_template(old, new, message):
    assert old in QUESTION
    with pytest.raises(RequestError, match=rf"^t\.json: .*({message})"):
        Template(QUESTION.replace(old, new), SOLUTION, "t.json").instances(50)
    with pytest.raises(RequestError, match="the solution does not end in"):
        Template(QUESTION, "four", "t.json")


@pytest.mark.parametrize(
    ("found", "ratio", "text"),
    [
        (12, False, "12"),
        (Fraction(5, 4), False, "1.25"),
        (Fraction(-1, 20), False, "-0.05"),
        (Fraction(1, 3), False, "0.3333"),
        (Fraction(3, 2), True, "3/2"),
        (Worded("half", Fraction(1, 2)), False, "half"),
    ],
)
def test_how_a_value_is_written(found, ratio, text):
    assert shown(found, ratio) == text


def templates(data_dir, folder: str) -> dict[str, tuple[dict, Template]]:
    found = {}
    for path in sorted((data_dir / "gsm_symbolic_templates" / folder).glob("*.json")):
        row = json.loads(path.read_text())
        found[path.stem] = row, Template(row["question_annotated"], row["answer_annotated"], path.name)
    return found


WRONG_ANSWER = {"symbolic": ["0062"], "p1": ["0074", "0089"], "p2": ["0026"]}
"""Templates whose #answer is never what their solution ends in: 0062 forgets the cards of the first colour
when it adds them twice, 0074 divides by all pupils and not those present, 0089 forgets the insurance, and
0026 takes one off a day's food."""


@pytest.mark.parametrize(("folder", "count"), [("symbolic", 100), ("p1", 100), ("p2", 50)])
def test_the_released_templates(data_dir, folder, count):
    found = templates(data_dir, folder)
    assert len(found) == count
    assert [name for name, (_, each) in found.items() if not each.agrees] == WRONG_ANSWER[folder]
    for _, template in found.values():
        for made in template.instances(5, seed=11):
            assert made.solution.endswith(f"#### {shown(made.answer)}") and made.answer >= 0
            assert not {*"{}"} & {*made.question, *made.solution} and template.holds(made.values)


PARTS = {"third": Fraction(1, 3), "quarter": Fraction(1, 4), "fifth": Fraction(1, 5)}
WORDED = {each.text: each for pool in POOLS.values() for each in pool if isinstance(each, Worded)}


def original(text: str):
    """A value as GSM8K's own question has it: 1,000, 2.50, half, two-thirds, twice, Monday."""
    text = text.strip()
    if re.fullmatch(r"-?\d+(\.\d+)?(/\d+)?", text):
        return compiled(text)({})
    if text in WORDED:
        return WORDED[text]
    above, _, below = text.replace("a ", "one ").replace("-", " ").rpartition(" ")
    if (part := PARTS.get(below.removesuffix("s"))) is not None:
        return Worded(text, NUMBERS[above or "one"] * part)
    return Worded(text, NUMBERS[text]) if text in NUMBERS else text


def answers_of_the_original(row: dict, template: Template) -> set:
    """What the solution gives with the values of the original question; one that it does not have is each
    whole number that fulfils the conditions about it."""
    slots = re.findall(r"\{(\w+),([^{}]*)\}", row["question_annotated"].partition("#init")[0])
    values = {name: original(text) for name, text in reversed(slots)}
    every_line = [line for part in template._parts for line in part.lines]
    pairs = {v.text: v for line in every_line for v in line.values if isinstance(v, Worded)}
    values |= {name: pairs[v] for name, v in values.items() if isinstance(v, str) and v in pairs}
    missing = [line.names for line in every_line if not {*line.names} <= {*values}]
    if not missing:
        return {template.of(values).answer}
    ((name,),) = missing
    conditions = [c for part in template._parts for c in part.conditions if name in c.names]
    fitting = [n for n in range(1000) if all(c.code(values | {name: n}) for c in conditions)]
    return {template.of(values | {name: n}).answer for n in fitting}


def test_the_answer_of_the_original_question(data_dir):
    found = templates(data_dir, "symbolic")
    for name, (row, template) in found.items():
        right = number(original(row["answer"].rpartition("####")[2].replace(",", "")))
        assert answers_of_the_original(row, template) == {right}, name


def test_the_task(data_dir, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(data_dir))
    problems = problems_of(Task("gsm_symbolic", options={"source": {"instances": 3}}))
    assert len(problems) == 300 and len({p.group for p in problems}) == 100
    assert Counter(p.set for p in problems) == {"0": 100, "1": 100, "2": 100}
    # the same on every machine and version of Python: whether this changes, scores cannot be compared
    assert problems[0].id == "0-0" and problems[0].answer == "10"
    assert problems[0].messages[0]["content"].startswith("Harper saw a 150-foot shark with 6 30-inch remoras")
    originals = {"prompt": "original_question", "answer": "{{ original_answer | after('####') }}"}
    first = Task("gsm_symbolic", options=originals | {"where": "instance == 0", "source": {"instances": 1}})
    asked = problems_of(first)
    assert len(asked) == 100 and asked[0].messages[0]["content"].startswith("Benny saw a 10-foot shark")


def test_a_released_file_by_path(tmp_path):
    path = tmp_path / "GSM_symbolic.jsonl"
    row = {"id": 0, "original_id": 21, "original_question": "?", "original_answer": "#### 1", "canary": "c"}
    rows = [row | {"instance": i, "question": f"Q{i}", "answer": f"So.\n#### 1{i}"} for i in range(3)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    problems = problems_of(Task("gsm_symbolic", path=str(path)))
    assert [(p.id, p.answer, p.group, p.set) for p in problems] == [
        ("0-0", "10", "0", "0"),
        ("0-1", "11", "0", "1"),
        ("0-2", "12", "0", "2"),
    ]
