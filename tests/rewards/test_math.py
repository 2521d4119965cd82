r"""Reading and comparing final numbers: real rationales, hand-made hard cases, hostile text."""

from __future__ import annotations

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards import score
from posttrain.rewards.math import TooCostly, final_number, last_box, parse
from posttrain.types import Example


def value(completion: str, answer: str, **options) -> float | None:
    return score("gsm8k", completion, Example(answer=answer), **options).value


@pytest.mark.parametrize("extract", ["any", "last_number"])
def test_every_rationale_of_gsm8k_is_right_about_itself(data_dir, extract):
    rows = [json.loads(line) for line in (data_dir / "gsm8k/test.jsonl").read_text().splitlines()]
    assert len(rows) == 1319
    wrong = [r["answer"] for r in rows if value(r["answer"], r["answer"], extract=extract) != 1.0]
    assert wrong == []


def test_all_verdicts_agree_with_the_published_ones(data_dir):
    """4 model solutions a question with OpenAI's own `is_correct`: 5,276, of which 2,001 are correct."""
    counts = {}
    for line in (data_dir / "gsm8k/example_model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        for solution in (v for v in row.values() if isinstance(v, dict)):
            key = (solution["is_correct"], value(solution["solution"], gold))
            counts[key] = counts.get(key, 0) + 1
    assert counts == {(True, 1.0): 2001, (False, 0.0): 3275}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18), ("18.", 18), ("18.0", 18), ("+7", 7), ("-5", -5), ("\u22125", -5),
        ("$18", 18), (r"\$18.90", Fraction(189, 10)), ("-$5", -5), ("$-5", -5), ("$5$", 5), (r"\(5\)", 5),
        ("1,234", 1234), ("1{,}234", 1234), (r"7\,425\,000", 7425000), (r"1\!,\!234", 1234),
        (".5", Fraction(1, 2)), ("1.2e3", 1200), ("1e-2", Fraction(1, 100)),
        ("3/4", Fraction(3, 4)), (r"-\frac{3}{4}", Fraction(-3, 4)), (r"\dfrac{-3}{4}", Fraction(-3, 4)),
        ("25%", 25), (r"25\%", 25), (r"18\text{ dollars}", 18), (r"18 \mathrm{cm}", 18), (r"90^\circ", 90),
        (r"\boxed{5}", 5), (" 5\n", 5),
    ],
)  # fmt: skip
def test_ways_to_write_a_number(text, number):
    assert parse(text) == number


@pytest.mark.parametrize(
    "text",
    ["", " ", "7=42", "a=7=b=42", "10 cm or 12 cm", "5, 6", "(5)", "--5", "1/0", r"\frac{1}{0}", "5,00", "1,2345",
     "1.2.3", "2^10", "3!", "x=5", "the answer is 5", "٣", "1 234", "nan", "inf", "0x10", "1_000", "5e", r"\sqrt{4}",
     "__import__('os')", "1 1/2"],
)  # fmt: skip
def test_what_is_no_single_number(text):
    """One value never matches a list, an equation or prose; Python's own number syntax is no answer."""
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16-3=13.", 13), ("so 16 - 3", 3), ("it is -3", -3), ("= -3", -3), ("5-3", 3), ("(7)-3", 3),
        ("5,000kg", 5000), ("US$18", 18), ("it is 18 dollars", 18), ("3,4", 4), ("0.50 each", Fraction(1, 2)),
        ("x2 and H2O", None), ("it is 2^10", None), ("it is 2^{10}", None), ("1.2.3", None), ("no", None), ("", None),
        (r"so \frac{1}{2} cup", Fraction(1, 2)), ("1/2 cup", Fraction(1, 2)), ("1,234,567.5 in all", Fraction(2469135, 2)),
    ],
)  # fmt: skip
def test_the_last_number_of_prose(text, number):
    assert final_number(text) == number


def test_where_the_final_number_is_looked_for():
    text = r"We get \boxed{41}, no, \boxed{42}. #### 43 so 44"
    assert final_number(text, "any") == 42
    assert final_number(text, "last_number") == 44
    assert final_number("#### 43 so 44", "any") == 43
    assert final_number("#### 43 so 44", "boxed") is None
    assert final_number(r"\boxed{42} and \boxed{4", "any") == 42  # the last one whose braces close
    assert (
        final_number(r"\boxed{x=5} so 5", "any") is None
    )  # a box with something else is the answer given


def test_thinking_is_no_answer():
    assert final_number("<think>5</think> none") is None
    assert final_number("<think>it is 5") is None
    assert final_number("<think>4</think> 5") == 5


def test_balanced_boxes():
    assert last_box(r"\boxed{\frac{1}{2}} x") == r"\frac{1}{2}"
    assert last_box(r"{ \boxed{a\}b} }") == r"a\}b"
    assert last_box(r"\fbox {3}") == "3"
    assert last_box(r"\boxed{1} \boxed{2") == "1"
    assert last_box("}{}{") is None
    assert final_number(r"\boxed{\boxed{5}}") == 5


def test_verdicts():
    right = score("gsm8k", "it is 18.0", Example(answer="18"))
    assert (right.value, right.status, right.details) == (1.0, "scored", {"answer": "18"})
    wrong = score("gsm8k", "it is 19", Example(answer="18"))
    assert (wrong.value, wrong.status, wrong.details) == (0.0, "scored", {"answer": "19"})
    none = score("gsm8k", "no idea", Example(answer="18"))
    assert (none.value, none.status) == (0.0, "unparseable")
    broken = score("gsm8k", "18", Example(answer="eighteen"))
    assert (broken.value, broken.status) == (None, "error") and "eighteen" in broken.reason
    assert score("boxed", r"18 \boxed{17}", Example(answer="17")).value == 1.0
    assert score("boxed", "17", Example(answer="17")).status == "unparseable"


def test_nothing_is_rounded():
    assert value("0.1", "1/10") == 1.0
    assert value("0.3333333333333333", "1/3") == 0.0
    assert value("1e-99", "2e-99") == 0.0
    assert value(str(10**40 + 1), str(10**40)) == 0.0


@pytest.mark.parametrize(
    "text", ["1e999999999", "1e-400", "9" * 1001, "1e" + "9" * 90_000, " " * 2000 + "5"]
)
def test_what_would_blow_up_is_refused_and_counts_as_wrong(text):
    with pytest.raises(TooCostly):
        parse(text)
    verdict = score("gsm8k", rf"\boxed{{{text}}}", Example(answer="5"))
    assert (verdict.value, verdict.status, verdict.reason) == (0.0, "scored", "limit")


@pytest.mark.parametrize(
    "text",
    ["1,234" + ",234" * 30_000 + ",23", "1" * 100_000 + "^", "1.2" * 40_000, r"\boxed{" * 20_000, "{" * 100_000,
     r"\boxed{" * 20_000 + "}" * 20_000, r"\frac{" * 20_000, "5 " * 50_000 + " " * 100_000, "1/" * 50_000,
     "-" * 100_000 + "5", r"1\," * 40_000, "####" * 30_000, r"\boxed{5" + r"\text{a}" * 130 + "!}"],
)  # fmt: skip
def test_hostile_text_takes_linear_time(text):
    began = time.process_time()
    score("gsm8k", text, Example(answer="5"))
    assert time.process_time() - began < 1.0


@given(
    st.fractions(), st.sampled_from(["{}", "so it is {}.", r"\boxed{{{}}}", "#### {}", "x\n$ {}"])
)
def test_any_fraction_is_read_back(number, sentence):
    assert final_number(sentence.format(number)) == number


@given(st.integers(-(10**30), 10**30))
def test_separators_do_not_matter(number):
    assert parse(f"{number:,}") == parse(f"{number}.0") == number


@given(st.text(alphabet=r"0123456789.,/-+$%\{}boxedfrac #e^", max_size=80))
def test_no_text_breaks_the_checker(text):
    assert score("gsm8k", text, Example(answer="5")).status in ("scored", "unparseable")
