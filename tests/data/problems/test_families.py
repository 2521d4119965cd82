"""Generated families: each proves its answers by another way than the one that made them; splits; options.

The solvers here read the text of a problem alone: `eval` and fractions for arithmetic, `datetime` for the
calendar, Python's own sets and booleans, differences for sequences, the steps in words for edits.
"""

from __future__ import annotations

import datetime
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.problems.base import is_test
from posttrain.data.problems.catalogue import FAMILIES, GENERATORS, generate
from posttrain.data.problems.units import decimal
from posttrain.errors import RequestError
from posttrain.rewards.engine.batch import score
from posttrain.types import Example

LEVELS = range(1, 6)


def rows(name: str, level: int, size: int = 60, **options) -> list[dict]:
    return generate(name, {"level": level, "train_size": size, "test_size": size, **options})


def solve_arithmetic(prompt: str) -> str:
    expression = prompt.removeprefix("What is ").removesuffix("?")
    assert re.fullmatch(r"[\d+\-*/() ]+", expression)
    exact = re.sub(r"\d+", r"Fraction(\g<0>)", expression)
    value = eval(exact, {"Fraction": Fraction})
    assert value.denominator == 1
    return str(value)


def solve_equation(prompt: str) -> str:
    """Both sides are linear in x: two values of their difference give the root."""
    left, right = prompt.removeprefix("Solve for x: ").split(" = ")

    def at(x: int) -> Fraction:
        sides = (re.sub(r"(\d)(?=[x(])", r"\1*", side) for side in (left, right))
        one, two = (eval(side, {"x": Fraction(x)}) for side in sides)
        return Fraction(one - two)

    return str(-at(0) / (at(1) - at(0)))


def solve_sequence(prompt: str) -> str:
    t = [int(n) for n in re.findall(r"-?\d+", prompt)]
    steps = [b - a for a, b in zip(t, t[1:], strict=False)]
    second = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    if len(set(steps)) == 1:
        return str(t[-1] + steps[-1])
    if all(b * t[0] == a * t[1] for a, b in zip(t, t[1:], strict=False)):
        return str(t[-1] * t[1] // t[0])
    if len(t) == 5 and len(set(second)) == 1:
        return str(t[-1] + steps[-1] + second[-1])
    if all(c == a + b for a, b, c in zip(t, t[1:], t[2:], strict=False)):
        return str(t[-1] + t[-2])
    assert all(b - a == d - c for a, b, c, d in zip(t, t[2:], t[2:], t[4:], strict=False))
    return str(2 * t[-2] - t[-4])


def solve_sorting(prompt: str) -> str:
    rule, listed = prompt.partition("\n")[0].split(": ")
    left, found = listed.split(", "), []
    key = {"last letter": lambda w: w[::-1], "length": lambda w: (len(w), w)}
    by = next((key[name] for name in key if name in rule), int if "numbers" in rule else str)
    while left:  # selection, one at a time
        best = left[0]
        for one in left:
            best = one if (by(one) > by(best) if "large to small" in rule else by(one) < by(best)) else best
        left.remove(best)
        found.append(best)
    return ", ".join(found)


def solve_letters(prompt: str) -> str:
    *letters, text = re.findall(r'"([^"]+)"', prompt)
    if prompt.startswith("How many words"):
        text, one, two = re.findall(r'"([^"]+)"', prompt)
        return str(len([w for w in text.split() if w.count(one) > 0 == w.count(two)]))
    return str(sum(text.count(letter) for letter in letters or "aeiou"))


def solve_calendar(prompt: str) -> str:
    names = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
    dates = [datetime.date.fromisoformat(d) for d in re.findall(r"\d{4}-\d{2}-\d{2}", prompt)]
    days = [int(n) for n in re.findall(r"(\d+) days", prompt)]
    if prompt.startswith("Today"):
        name = re.search(names, prompt)[0]
        monday = datetime.date(2024, 1, 1) + datetime.timedelta(names.split("|").index(name) + days[0])
        return monday.strftime("%A")
    if "Which weekday" in prompt:
        return dates[0].strftime("%A")
    if prompt.startswith("How many"):
        return str((dates[1] - dates[0]).days)
    found = dates[0] + datetime.timedelta(days[0])
    while "first" in prompt and found.strftime("%A") != re.search(names, prompt)[0]:
        found += datetime.timedelta(1)
    return found.isoformat()


def solve_sets(prompt: str) -> str:
    known = {n: {int(x) for x in s.split(", ")} for n, s in re.findall(r"(\w) = \{(.*?)\}", prompt)}
    asked = re.search(r"elements of (.*?) from", prompt)[1]
    for sign, operator in zip("\u222a\u2229\\\u25b3", "|&-^", strict=True):
        asked = asked.replace(sign, operator)
    return ", ".join(map(str, sorted(eval(asked, known)))) or "none"


def solve_logic(prompt: str) -> str:
    """A table of rewriting rules, applied to the innermost bracket until one word is left."""
    given, asked = prompt.removesuffix(" true or false?").split(". Is ")
    for name, value in re.findall(r"(\w) = (true|false)", given):
        asked = re.sub(rf"\b{name}\b", value[0].upper(), asked)
    truth = {"and": "TT", "or": "TT TF FT", "xor": "TF FT", "implies": "TT FT FF"}
    while len(asked) > 1:
        asked = asked.replace("not T", "F").replace("not F", "T")
        asked = re.sub(
            r"\((\w) (\w+) (\w)\)", lambda m: "T" if m[1] + m[3] in truth[m[2]].split() else "F", asked
        )
    return {"T": "true", "F": "false"}[asked]


def solve_units(prompt: str) -> str:
    """Everything in units of the International System first."""
    scale = {"m": 1, "g": 1, "l": 1, "t": 10**6, "seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
    prefix = {"m": Fraction(1, 1000), "c": Fraction(1, 100), "d": Fraction(1, 10), "k": 1000}
    scale |= {p + u: prefix[p] for u in "mgl" for p in "mcdk"} | {"km/h": Fraction(5, 18), "m/s": 1}
    wanted, given = re.fullmatch(r"How many (\S+) are (.*)\?", prompt).groups()

    def size(unit: str) -> Fraction:
        name, _, power = unit.partition("^")
        return Fraction(scale[name]) ** int(power or 1)

    total = sum(Fraction(n) * size(unit) for n, unit in re.findall(r"([\d.]+) (\S+)", given))
    return decimal(total / size(wanted))


def solve_edit(prompt: str) -> str:
    letters = list(re.match(r'Start with "(\w+)"', prompt)[1])
    for step in re.findall(r"\d\. ([^.]+)\.", prompt):
        number = int((re.findall(r"\d+", step) or [0])[0])
        quoted = re.findall(r'"(\w)"', step)
        if step == "Reverse it":
            letters.reverse()
        elif step.startswith("Move"):
            for _ in range(number):
                letters.append(letters.pop(0))
        elif step.startswith("Swap"):
            letters[0], letters[-1] = letters[-1], letters[0]
        elif step.startswith("Delete"):
            del letters[number - 1]
        elif step.startswith("Replace"):
            letters = [quoted[1] if one == quoted[0] else one for one in letters]
        elif step.startswith("Write"):
            letters.insert(number, letters[number - 1])
        else:
            assert step.startswith("Insert")
            letters.insert(number, quoted[0])
    return "".join(letters)


SOLVERS = {
    "arithmetic_chain": solve_arithmetic,
    "boolean_logic": solve_logic,
    "calendar": solve_calendar,
    "count_letters": solve_letters,
    "linear_equation": solve_equation,
    "number_sequence": solve_sequence,
    "set_operations": solve_sets,
    "sorting": solve_sorting,
    "string_edit": solve_edit,
    "unit_conversion": solve_units,
}


def test_every_family_is_a_generator_and_has_a_solver():
    assert set(FAMILIES) == set(SOLVERS) and len(SOLVERS) >= 10
    assert set(FAMILIES) < set(GENERATORS)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_the_answers_are_right(name):
    for level in LEVELS:
        for row in rows(name, level, seed=level):
            assert SOLVERS[name](row["prompt"]) == row["answer"], row


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_problems_are_different_and_the_splits_never_meet(name):
    for level in LEVELS:
        train = {row["prompt"] for seed in (0, 1) for row in rows(name, level, seed=seed)}
        test = {row["prompt"] for row in rows(name, level, split="test")}
        assert len(test) == 60 and not train & test
        assert all(map(is_test, test)) and not any(map(is_test, train))
        found = rows(name, level, size=80)
        assert len({row["prompt"] for row in found}) == len({row["id"] for row in found}) == 80


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_level_has_the_default_number_of_problems(name):
    for level in LEVELS:
        assert len(generate(name, {"level": level})) == 1000
        assert len(generate(name, {"level": level, "split": "test"})) == 200


@given(st.sampled_from(sorted(SOLVERS)), st.integers(1, 5), st.integers(0, 2**40))
@settings(max_examples=60)
def test_the_seed_decides_and_a_larger_set_begins_with_the_smaller(name, level, seed):
    few, more = rows(name, level, 5, seed=seed), rows(name, level, 9, seed=seed)
    assert few == more[:5]
    assert few != rows(name, level, 5, seed=seed + 1)
    assert all(SOLVERS[name](row["prompt"]) == row["answer"] for row in more)


def test_rows_are_the_same_on_every_machine():
    assert [row["answer"] for row in rows("arithmetic_chain", 3, 4)] == ["-289", "-924", "41", "-18"]
    assert rows("calendar", 3, 1)[0]["prompt"] == "Which weekday is 1936-08-07?"


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_the_named_reward_accepts_the_answer_and_no_other(name):
    for level in (1, 5):
        found = rows(name, level, 8, verifier=True)
        other = next((row for row in found if row["answer"] != found[0]["answer"]), None)
        assert other is not None
        reward = found[0]["rewards"]
        example = Example(answer=found[0]["answer"])
        assert score(reward, found[0]["completion"], example).value == 1.0
        assert score(reward, other["completion"], example).value == 0.0


def test_levels_get_harder():
    for name in ("arithmetic_chain", "boolean_logic", "set_operations", "string_edit", "count_letters"):
        lengths = [sum(len(row["prompt"]) for row in rows(name, level)) for level in LEVELS]
        assert lengths == sorted(lengths), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 0}, r"level must be 1 to 5, not 0"),
        ({"level": 6}, r"level must be 1 to 5, not 6"),
        ({"level": "1"}, r"level must be a whole number, not '1'"),
        ({"levels": 1}, r"unknown option 'levels' \(did you mean 'level'\?\)"),
        ({"split": "tset"}, r"unknown split 'tset' \(did you mean 'test'\?\)"),
        ({"train_size": 0}, r"train_size must be at least 1"),
        ({"verifier": 1}, r"verifier must be true or false, not 1"),
        ({"train_size": 40_000, "level": 1}, r"level 1 gave \d+ different train problems, but 40000 were"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(RequestError, match=message):
        generate("calendar", options)


def test_decimals():
    assert decimal(Fraction(5)) == "5" and decimal(Fraction(-1, 8)) == "-0.125"
    with pytest.raises(ValueError, match="not a finite decimal"):
        decimal(Fraction(1, 3))
