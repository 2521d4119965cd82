"""The 25 instructions of Tulu 3's RLVR data: texts that follow them, texts that do not, and broken rows."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.instructions import instructions
from posttrain.rewards.instructions.tulu import TULU, decode
from posttrain.rewards.registry import bind
from posttrain.types import Example

FIELDS = (
    "N",
    "quantifier",
    "end_phrase",
    "keyword_list",
    "word",
    "forbidden_words",
    "letter",
    "i",
    "first_word",
    "postscript_marker",
    "options",
    "section_splitter",
    "original_prompt",
    "language",
)
"""Every row of the data has all of them; what the function does not take is null."""


def ground_truth(name: str, **given) -> str:
    return json.dumps({"func_name": name} | dict.fromkeys(FIELDS) | given)


GERMAN = "Das ist ein deutscher Satz, und er ist lang genug, um ihn zu erkennen."
CASES = [
    ("verify_keywords", {"keyword_list": ["Red", "ice cream"]}, "RED ice creams", "red ice"),
    ("verify_keyword_frequency", {"word": "Sea", "N": 2}, "sea, Sea! season", "sea sea sea"),
    ("verify_keyword_frequency", {"word": "ice cream", "N": 1}, "an ice cream", "ice and cream"),
    ("validate_forbidden_words", {"forbidden_words": ["bad"]}, "good", "a Badge"),
    ("verify_letter_frequency", {"letter": "e", "N": 3}, "eleven: E", "three"),
    ("validate_response_language", {"language": "de"}, GERMAN, "This is a sentence in English."),
    ("verify_paragraph_count", {"N": 2}, "one\n* * *\ntwo", "one\n* * *\n"),
    ("validate_word_constraint", {"N": 3, "quantifier": "at least"}, "a b c", "a b"),
    ("validate_word_constraint", {"N": 3, "quantifier": "at most"}, "a b c", "a b c d"),
    ("validate_word_constraint", {"N": 20, "quantifier": "around"}, "a " * 18, "a " * 17),
    ("validate_word_constraint", {"N": 4, "quantifier": "around"}, "a b c", "a b"),
    ("verify_sentence_constraint", {"N": 3, "quantifier": "around"}, "One. Two.", "One."),
    ("validate_paragraphs", {"N": 2, "first_word": "So", "i": 2}, "a\n\nSo b", "So a\n\nb"),
    ("validate_paragraphs", {"N": 2, "first_word": "So", "i": 1}, "So a\n\nb", "So a\n\nb\n\nc"),
    ("verify_postscript", {"postscript_marker": "P.S."}, "Hi\nP.S. more", "Hi\nP.S. "),
    ("validate_placeholders", {"N": 2}, "[name] [town]", "[name] [] ["),
    ("verify_bullet_points", {"N": 2}, "* a\n - b\nc", "* a\n- b\n- c"),
    ("validate_title", {}, "<<Sea>>\ntext", "<<>> text"),
    ("validate_choice", {"options": ["yes", "no"]}, "I say yes", "maybe"),
    ("validate_choice", {"options": "yes"}, "yes", "sey"),
    ("validate_highlighted_sections", {"N": 2}, "*a* and *b c*", "**** *a*"),
    (
        "validate_sections",
        {"N": 2, "section_splitter": "Section"},
        "SECTION 1 a section 2 b",
        "Section 1 Section b",
    ),
    ("validate_json_format", {}, '{"a": [1]}', "{a: 1}"),
    ("validate_json_format", {}, "[]", "[" * 100_000),
    ("validate_repeat_prompt", {"original_prompt": "Who?"}, "Who? I.", "I. Who?"),
    ("validate_two_responses", {}, "a ****** b", "a ****** a"),
    ("validate_two_responses", {}, "a****** b", "a ****** b ****** c"),
    ("validate_uppercase", {}, "A B, 1!", "A b"),
    ("validate_lowercase", {}, "a b, 1!", "A b"),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "at least"}, "A RED Sea", "a RED Sea"),
    ("validate_end", {"end_phrase": "The end."}, "So. The end.\n", "The end. So"),
    ("validate_quotation", {}, '"a b"\n', '"'),
    ("validate_no_commas", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES)
def test_a_text_that_follows_and_one_that_does_not(name, kwargs, good, bad):
    example = Example(answer=ground_truth(name, **kwargs))
    assert instructions(good, example).value == 1.0
    verdict = instructions(bad, example)
    assert (verdict.value, verdict.status) == (0.0, "scored")
    assert verdict.reason.startswith(f"{name}: ")


def test_every_instruction_has_a_case():
    assert len(TULU) == 25 and {name for name, *_ in CASES} == set(TULU)


@given(st.text(max_size=40), st.sampled_from(CASES))
def test_any_text_is_judged(text, case):
    if case[0] == "validate_response_language":
        return  # loads profiles
    verdict = instructions(text, Example(answer=ground_truth(case[0], **case[1])))
    assert verdict.value in (0.0, 1.0) and verdict.status in ("scored", "unparseable")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("42", "no JSON object with func_name"),
        ("[" * 100_000, "no JSON object with func_name"),
        ('{"N": 2}', "no JSON object with func_name"),
        (
            ground_truth("validate_titel"),
            "unknown instruction 'validate_titel' .did you mean 'validate_title'",
        ),
        (ground_truth("verify_bullet_points"), "argument 'N' is missing"),
        (ground_truth("validate_title", N=3), "unknown argument 'N'"),
        (ground_truth("validate_word_constraint", N=3, quantifier="above"), "must be 'at least' or"),
    ],
)
def test_rows_that_cannot_be_judged(answer, words):
    with pytest.raises(ValueError, match=words):
        decode(answer)


def test_a_paragraph_that_cannot_be():
    for i in (0, 3):
        example = Example(answer=ground_truth("validate_paragraphs", N=2, first_word="So", i=i))
        assert instructions("So a\n\nSo b", example).reason.endswith(f"no paragraph {i}")


def test_ids_come_before_an_answer():
    """An IFEval row keeps its meaning, whatever its answer column holds."""
    extra = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert instructions("a, b", Example(answer=ground_truth("validate_title"), extra=extra)).value == 0
    reward = bind("instructions")
    reward.check_row(Example(answer=ground_truth("validate_title")))
