r"""Completions: where the final answer is found, what does not count, and the modes that read differently.

`responses.txt` holds a reference, the value and a completion a line (`\n` is a line break).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.errors import RequestError
from posttrain.rewards.math import check_gold, math
from posttrain.rewards.math.extract import find_answer, last_boxes
from posttrain.rewards.math.limits import TooCostly
from posttrain.types import Example

LINE = re.compile(r"(.*?) ~ ([01]) \| (.*)")
ROWS = [
    (gold, value, text.replace(r"\n", "\n") if r"\n\n" in text else text)
    for gold, value, text in (
        LINE.fullmatch(line).groups()
        for line in (Path(__file__).parent / "responses.txt").read_text("utf-8").splitlines()
    )
]


def verdict(completion: str, answer: str, **options):
    return math(completion, Example(answer=answer), **options)


@pytest.mark.parametrize(("gold", "value", "completion"), ROWS)
def test_completions(gold, value, completion):
    assert verdict(completion, gold).value == float(value)


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} x", r"\frac{1}{2}"),
        (r"{ \boxed{a\}b} }", r"a\}b"),
        (r"\fbox {3}", "3"),
        (r"\boxed{1} \boxed{2", "1"),
        ("}{}{\n5", None),
        (r"\boxed{\boxed{5}}", "{5}"),
        (r"\boxed 7$", "7"),
        ("Answer: 5.", "5"),
        ("The answer is 5. So it is.", "5"),
        ("#### 5", "5"),
        ("it is\nfive or so", None),
        ("the answer is: 5\nmore", "5"),
        ("**Answer:** 5", "5"),
        ("**Answer**: 5", "5"),
        (r"\boxed{1}, \boxed{2}", "1, 2"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"\boxed{1}, \boxed{\boxed{2}}", "1, {2}"),
        (r"\boxed{1}. \boxed{2}", "2"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        ("<think>5</think>", None),
        ("<think>\\boxed{5}", None),
        ("<think>4</think> \\boxed{5}", "5"),
        ("", None),
        (" \n", None),
    ],
)
def test_where_the_answer_is(completion, found):
    answer = find_answer(completion)
    assert (answer and answer.text) == found


def test_each_extraction():
    text = r"We get \boxed{41}, no, \boxed{42}. #### 43 so 44"
    assert find_answer(text, "gsm8k").text == "42"
    assert find_answer(text, "math", "last_number").text == "44"
    assert find_answer("#### 43 so 44", "gsm8k").text == "43"
    assert find_answer("#### 43 so 44", "math", "boxed") is None
    assert find_answer("so 44", "gsm8k").text == "44" and find_answer("it is\n44 cm", "math") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16-3=13.", "13"),
        ("so 16 - 3", "3"),
        ("it is -3", "-3"),
        ("= -3", "-3"),
        ("5-3", "3"),
        ("(7)-3", "3"),
        ("5,000kg", "5,000"),
        ("US$18", "18"),
        ("it is 18 dollars", "18"),
        ("3,4", "4"),
        ("0.50 each", "0.50"),
        ("x2 and H2O", None),
        ("it is 2^10", None),
        ("it is 2^{10}", None),
        ("1.2.3", None),
        ("no", None),
        ("", None),
        ("1/2 cup", "1/2"),
        ("1,234,567.5 in all", "1,234,567.5"),
        ("it is 5" + " " * 500_000, "5"),
        ("5" + "x" * 500_000, None),
    ],
)
def test_the_last_number_of_prose(text, number):
    found = find_answer(text, "gsm8k")
    assert (found and found.text) == number


def test_an_answer_of_more_than_a_thousand_characters_is_refused():
    for text in (rf"\boxed{{{'1' * 1001}}}", "Answer: " + "1" * 1003, "#### " + "1" * 1003):
        with pytest.raises(TooCostly):
            find_answer(text)
        assert verdict(text, "5").reason == "limit"
    assert last_boxes(rf"\boxed{{{'1' * 1000}}}") == ["1" * 1000]


MINERVA = "Final Answer: The final answer is {}. I hope it is correct."


@pytest.mark.parametrize(
    ("completion", "value", "status"),
    [
        (MINERVA.format("$42$"), 1.0, "scored"),
        (MINERVA.format("42"), 1.0, "scored"),
        (MINERVA.format(r"$\boxed{42}$"), 1.0, "scored"),
        (MINERVA.format("43"), 0.0, "scored"),
        (r"\boxed{42}", 0.0, "unparseable"),
        ("The final answer is 42.", 0.0, "unparseable"),
        ("Final Answer: The final answer is 42", 0.0, "unparseable"),
        (MINERVA.format(""), 0.0, "unparseable"),
        ("Final Answer: The final answer is 42 I hope it is correct.", 0.0, "unparseable"),
        (MINERVA.format("41") + " " + MINERVA.format("42"), 1.0, "scored"),
        ("<think>" + MINERVA.format("42"), 0.0, "unparseable"),
        (r"\boxed{42} " + MINERVA.format("41"), 0.0, "scored"),
    ],
)
def test_strict_reads_only_the_minerva_format(completion, value, status):
    found = verdict(completion, "42", mode="strict")
    assert (found.value, found.status) == (value, status)


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("(B)", "B"),
        ("B.", "B"),
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("the answer is B", "B"),
        ("The answer is (B).", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\textbf{(B)}\ 42}", "B"),
        (r"\boxed{B. 42}", "B"),
        (r"\boxed{\text{(B) } \frac{1}{2}}", "B"),
        ("Answer: B", "B"),
        ("**Answer:** (B)", "B"),
        ("Because of this\nB", "B"),
        ("So the correct option is B) 42", "B"),
        ("A is wrong.\nAnswer: B) because", "B"),
        ("<think>A</think>B", "B"),
        (r"\boxed{\mathrm{J}}", "J"),
        ("answer: C", "C"),
        ("A or B", None),
        (r"\boxed{A, B}", None),
        (r"\boxed{A \text{ or } B}", None),
        ("The answer is A or B", None),
        ("The answer is (A) and (B)", None),
        ("A good question", None),
        ("The answer is A number of things", None),
        ("", None),
        (r"\boxed{A} and \boxed{B}", None),
        ("Answer: 42", None),
        ("K", None),
        ("<think>B", None),
        (r"\boxed{BAD}", None),
        (r"\boxed{(A) 3 or (B) 4}", None),
        ("Banana", None),
    ],
)
def test_choice_reads_one_letter(completion, letter):
    for gold in ("B", "(B)", r"\text{(B)}", "J", "C"):
        wanted = re.search(r"[A-J]", gold)[0]
        found = verdict(completion, gold, mode="choice")
        assert found.value == float(letter == wanted)
        assert found.status == ("unparseable" if letter is None else "scored")


def test_the_numeric_tolerances():
    numeric = {"mode": "numeric"}
    assert verdict(r"\boxed{3.14159}", "3.14160", **numeric, tolerance=1e-5).value == 1.0
    assert verdict(r"\boxed{3.14159}", "3.14160", **numeric, tolerance=1e-6).value == 0.0
    assert (
        verdict(r"\boxed{3.1415926}", r"\pi", **numeric).value == 1.0
    )  # the default is 1e-6 of the reference
    assert verdict(r"\boxed{3.14159}", r"\pi", **numeric).value == 1.0
    assert verdict(r"\boxed{3.1415}", r"\pi", **numeric).value == 0.0
    assert verdict(r"\boxed{0.01}", "0", **numeric).value == 0.0  # a relative tolerance of nothing is nothing
    assert verdict(r"\boxed{0.01}", "0", **numeric, absolute_tolerance=0.01).value == 1.0
    assert verdict(r"\boxed{(1.001, 2)}", "(1, 2)", **numeric, tolerance=0.01).value == 1.0
    assert verdict(r"\boxed{(1.1, 2)}", "(1, 2)", **numeric, tolerance=0.01).value == 0.0
    assert verdict(r"\boxed{1/3}", "0.333", **numeric, tolerance=0.01).value == 1.0
    assert verdict(r"\boxed{5}", "5", **numeric, tolerance=0.0).value == 1.0
    assert verdict(r"\boxed{101}", "100", **numeric, tolerance=0.01).value == 1.0
    assert verdict(r"\boxed{101.1}", "100", **numeric, tolerance=0.01).value == 0.0


def test_the_percent_policies():
    def values(gold: str, answer: str) -> list[float]:
        box = rf"\boxed{{{answer}}}"
        return [verdict(box, gold, percent=p).value for p in ("either", "exact", "ignore")]

    assert values(r"50\%", r"50\%") == [1, 1, 1]
    assert values(r"50\%", "50") == [1, 0, 1] and values("42", r"42\%") == [1, 0, 1]
    assert values(r"50\%", "0.5") == [1, 1, 0] and values("0.5", r"50\%") == [1, 1, 0]
    assert values("50", "0.5") == [0, 0, 0] and values("42", "4200") == [0, 0, 0]
    assert values(r"50\%", "5000") == [0, 0, 0] and values(r"50\%", r"0.5\%") == [0, 0, 0]


def test_the_unit_policies():
    def values(gold: str, answer: str) -> list[float]:
        box = rf"\boxed{{{answer}}}"
        return [verdict(box, gold, units=u).value for u in ("convert", "strict", "ignore")]

    assert values(r"5\text{ cm}", "5") == [1, 0, 1] and values("5", "5 cm") == [1, 1, 1]
    assert values("5 cm", "5 m") == [0, 0, 1] and values("5 cm", "0.05 m") == [1, 1, 0]
    assert values("5 cm", "5 kg") == [0, 0, 1] and values("5 cm", r"5\text{ centimeters}") == [1, 1, 1]


def test_options_that_do_not_go_together():
    for options in (
        {"tolerance": 0.1},
        {"mode": "math", "absolute_tolerance": 0.1},
        {"mode": "numeric", "tolerance": -1.0},
        {"mode": "numeric", "tolerance": float("nan")},
        {"mode": "numeric", "absolute_tolerance": float("inf")},
    ):
        with pytest.raises(RequestError, match="tolerance"):
            verdict("5", "5", **options)
        with pytest.raises(RequestError, match="tolerance"):
            check_gold(Example(answer="5"), **options)


@pytest.mark.parametrize(
    ("answer", "options", "words"),
    [
        (None, {}, "no answer"),
        ("", {}, "is empty"),
        ("  ", {}, "is empty"),
        ("$$", {}, "is empty"),
        (r"\boxed{}", {}, "is empty"),
        ("#### ", {}, "is empty"),
        (r"\frac{1}{2", {}, "do not balance"),
        ("x}", {}, "do not balance"),
        ("1" * 1001, {}, "more than 1,000"),
        ("1e99999", {}, "too costly"),
        ("(" * 150 + "1" + ")" * 150, {}, "too costly"),
        ("eighteen hundred things", {"mode": "gsm8k"}, "is not a number"),
        ("x+1", {"mode": "gsm8k"}, "is not a number"),
        ("east", {"mode": "numeric"}, "is not a number"),
        ("42", {"mode": "choice"}, "is not a letter"),
        ("K", {"mode": "choice"}, "is not a letter"),
        (5, {}, "must be a string, not 5"),
    ],
)
def test_a_gold_that_cannot_be_judged_is_refused(answer, options, words):
    with pytest.raises(ValueError, match=words):
        check_gold(Example(answer=answer), **options)


@pytest.mark.parametrize(
    "answer",
    ["5", "east", "Evelyn", r"\boxed{5}", "a solution\n#### 18", "$5$.", r"\int_0^1 f", "1,2,3", "∅", "?"],
)
def test_a_gold_that_can_be_judged(answer):
    check_gold(Example(answer=answer))


def test_details_name_the_answer_its_place_and_the_tier():
    tiers = {
        "42": "exact",
        "$42$": "normalised",
        "42.0": "numeric",
        r"\frac{84}{2}": "numeric",
        r"\sqrt{42^2}": "symbolic",
    }
    for answer, tier in tiers.items():
        found = verdict(rf"\boxed{{{answer}}}", "42")
        assert (found.value, found.status, found.reason) == (1.0, "scored", "")
        assert found.details == {"answer": answer.strip(), "found": "box", "tier": tier}
    assert verdict(r"\boxed{(1, 3)}", "(1,2)").details["tier"] == "structure"
    assert verdict("#### 43", "42").details["found"] == "####"
    none = verdict("no idea", "42")
    assert (none.value, none.status, none.reason) == (0.0, "unparseable", "no final answer")
