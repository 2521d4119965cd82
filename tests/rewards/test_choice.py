"""Multiple choice: marked letters and texts; real questions of AQuA and MMLU-like spellings."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.rewards import bind
from posttrain.rewards.simple.choice import choice, right_letter
from posttrain.types import Example

SPELLINGS = [
    "{0}",
    "({0})",
    "{0}.",
    "Answer: {0}",
    "The answer is {0}.",
    "The correct answer is ({0}).",
    "\\boxed{{{0}}}",
    "$\\boxed{{\\text{{({0})}}}}$",
    "**Answer: {0}**",
    "#### {0}",
    "So: the final answer is option {0}, as said.",
]


def row(answer: str, choices=None) -> Example:
    return Example(answer=answer, extra={} if choices is None else {"choices": choices})


@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"), st.sampled_from(SPELLINGS))
def test_any_spelling_of_a_letter_is_read(gold, said, spelling):
    verdict = choice(spelling.format(said), row(gold))
    assert verdict.status == "scored" and verdict.value == (gold == said)
    assert verdict.details["letter"] == said


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.sampled_from([" or ", ", ", "/", " and ", " & "]))
def test_two_letters_are_no_answer(one, two, between):
    verdict = choice(f"Answer: {one}{between}{two}", row(one))
    assert verdict.value == (one == two)
    assert verdict.reason == ("" if one == two else "more than one option is named")


def test_letters_beyond_the_options_name_none():
    assert choice("Answer: C", row("A", ["x", "y"])).status == "unparseable"
    assert choice("Answer: C", row("C")).value == 1


def test_the_text_of_an_option_counts_and_may_not_contradict_the_letter():
    options = row("B", ["cats", "dogs", "cats and dogs"])
    assert choice("Dogs.", options).value == 1
    assert choice("(B) dogs", options).value == 1
    assert choice("(B) cats", options).value == 0
    assert choice("cats and dogs", options).value == 0
    assert choice("B: anything else", options).value == 1  # the letter stands
    same = row("B", ["cats", "dogs", "dogs"])
    assert choice("dogs", same).value == 0 and choice("B", same).value == 1


def test_the_gold_by_letter_or_text():
    assert right_letter(row("(b)"), "choices") == "B"
    assert right_letter(row("dogs", ["cats", "dogs"]), "choices") == "B"
    assert right_letter(row("a", ["b", "a"]), "choices") == "B"  # the text goes before the letter
    assert right_letter(row("x", {"a": "y", "b": "x"}), "choices") == "B"


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        (row("C", ["x", "y"]), "'C' is not an option of column 'choices'"),
        (row("dogs"), "'dogs' is not an option$"),
        (row("z", ["x", "x"]), "is not an option"),
        (row("x", ["x", "x"]), "is not an option"),
        (row("A", "xyz"), "must be a list of texts"),
        (row("A", [1, 2]), "must be a list of texts"),
        (row("A", {"AB": "x"}), "keys that are not letters"),
        (row(""), "is not an option"),
    ],
)
def test_bad_rows(example, sentence):
    with pytest.raises(RequestError, match=sentence):
        bind("choice").check_row(example)


def test_aqua(data_dir):
    """Only the right option is accepted, in five spellings; most rationales of the data agree."""
    lines = (data_dir / "aqua_rat" / "test.json").read_text().splitlines()
    agreed = 0
    for line in map(json.loads, lines):
        options = {o.partition(")")[0]: o.partition(")")[2] for o in line["options"]}
        example = row(line["correct"], options)
        bind("choice").check_row(example)
        for letter in options:
            for spelling in SPELLINGS[:5]:
                value = choice(spelling.format(letter), example).value
                assert value == (letter == line["correct"]), (line, letter, spelling)
        agreed += choice(line["rationale"], example).value
    assert len(lines) == 254 and agreed >= 50  # most rationales mark nothing
