"""Instructions: the corpus, the loose variants, the grades, rows that are wrong, texts that are hostile."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import posttrain.rewards.instructions as package
from posttrain.errors import RequestError
from posttrain.rewards.instructions import TABLE, check_row, instructions, loose
from posttrain.rewards.registry import bind
from posttrain.types import Example

CORPUS = [
    json.loads(line)
    for line in (Path(package.__file__).parent.parent / "corpora" / "instructions.jsonl")
    .read_text()
    .splitlines()
]


def text_of(row: dict) -> str:
    text = row["completion"]
    if isinstance(text, str):
        return text
    return text["before"] + text["repeat"] * text["times"] + text["after"]


def row(*ids: str, prompt: str | None = None, kwargs: list | None = None, **only) -> Example:
    """A row; the keyword arguments are the kwargs of its only instruction."""
    given = kwargs if kwargs is not None else [only for _ in ids]
    return Example(prompt=prompt, extra={"instruction_id_list": list(ids), "kwargs": given})


def follows(text: str, id: str, mode: str = "compat", **kwargs) -> bool:
    return instructions(text, row(id, **kwargs), mode=mode).value == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gold", "spoiled"])
def test_corpus(kind):
    for number, entry in enumerate(CORPUS, start=1):
        if entry["kind"] != kind:
            continue
        example = Example(prompt=entry.get("prompt"), extra=entry)
        options = entry.get("options", {})
        check_row(example, options.get("mode", "compat"))
        verdict = instructions(text_of(entry), example, **options)
        wanted = entry.get("value", 1.0 if kind == "gold" else 0.0)
        assert (verdict.value, verdict.status) == (wanted, "scored"), (number, entry, verdict)


@pytest.mark.slow
def test_hostile_texts_end_in_time():
    instructions("warm up", row("language:response_language", language="en"))
    for number, entry in enumerate(CORPUS, start=1):
        if entry["kind"] != "hostile":
            continue
        began = time.process_time()
        verdict = instructions(text_of(entry), Example(extra=entry))
        assert time.process_time() - began < 2, (number, entry["category"])
        assert verdict.value == 0.0, (number, entry["category"])
        status = entry.get("status", "scored")
        assert status == ("limit" if verdict.reason == "limit" else verdict.status), number


def test_the_corpus_has_a_good_and_a_bad_text_for_every_instruction():
    assert len(TABLE) == 25 + 56
    for kind in ("gold", "spoiled"):
        held = {id for one in CORPUS if one["kind"] == kind for id in one["instruction_id_list"]}
        assert not set(TABLE) - held, kind


def test_the_verdict_says_what_was_followed_and_why_not():
    example = row(
        "punctuation:no_comma",
        "length_constraints:number_words",
        kwargs=[{}, {"num_words": 3, "relation": "at least"}],
    )
    verdict = instructions("red, blue, green", example)
    assert (verdict.value, verdict.reason) == (0.0, "punctuation:no_comma: with a comma")
    assert verdict.details["instructions"] == [
        {"id": "punctuation:no_comma", "followed": False, "reason": "with a comma"},
        {"id": "length_constraints:number_words", "followed": True, "reason": ""},
    ]
    assert instructions("red, blue, green", example, grade="fraction").value == 0.5
    assert instructions("red blue", example).reason == (
        "length_constraints:number_words: 2 words, asked for at least 3"
    )
    assert instructions("red blue green", example).value == 1.0


def test_loose_gives_the_eight_variants_that_are_not_empty():
    assert list(loose("*a\nb*\nc")) == ["*a\nb*\nc", "a\nb\nc", "b*\nc", "b\nc", "*a\nb*", "a\nb", "b*", "b"]
    assert list(loose("one")) == ["one", "one"]
    assert list(loose("***\n* * *")) == ["***\n* * *", "* * *", "***"]


@given(st.text(alphabet='a,*\n" ', max_size=12))
def test_loose_never_refuses_what_strict_accepts(text):
    example = row("punctuation:no_comma", "startend:quotation", kwargs=[{}, {}])
    strict = instructions(text, example, grade="fraction")
    relaxed = instructions(text, example, strictness="loose", grade="fraction")
    assert relaxed.value >= strict.value and relaxed.status == strict.status


@pytest.mark.parametrize("text", ["", " ", "\n\t\u00a0"])
def test_an_empty_completion_is_unparseable(text):
    verdict = instructions(text, row("punctuation:no_comma"))
    assert (verdict.value, verdict.status) == (0.0, "unparseable")


def test_null_arguments_count_as_absent():
    example = row("punctuation:no_comma", kwargs=[{"num_words": None, "relation": None}])
    check_row(example, "compat")
    assert instructions("red", example).value == 1.0


CASES = [  # text, id, kwargs, followed in mode compat, in mode fixed
    ("123", "language:response_language", {"language": "en"}, True, False),
    ("\u4eca\u5929\u5929\u6c14\u5f88\u597d", "language:response_language", {"language": "zh"}, False, True),
    ("<<a>>", "detectable_format:title", {}, True, True),
    ("<< >", "detectable_format:title", {}, False, False),
    ("<<>>", "detectable_format:title", {}, False, False),
    ("<<<>>> b", "detectable_format:title", {}, False, False),
    ('Go. "Stop."', "startend:end_checker", {"end_phrase": "Stop."}, True, True),
    ("Go. STOP.", "startend:end_checker", {"end_phrase": "Stop."}, True, False),
    ('"', "startend:quotation", {}, False, False),
    ('""', "startend:quotation", {}, True, False),
    ("Well, yes: no; what!? Fine. Go! Why?", "count:punctuation", {}, True, True),
    ("Well, yes: no; what!? Fine.", "count:punctuation", {}, False, False),
    ("Well, yes: no; fine. What?! Go!", "count:punctuation", {}, False, False),
    ("the cat sat on", "ratio:overlap", {"reference_text": "the cat sat on", "percentage": 50}, False, False),
    ("the cat sat on", "ratio:overlap", {"reference_text": "the cat sat up", "percentage": 52}, True, True),
    ("the cat sat on", "ratio:overlap", {"reference_text": "the cat sat up", "percentage": 53}, False, False),
    ("Big bears sleep. Big bad bears.", "sentence:alliteration_increment", {}, True, True),
    ("Ann ate, Bob bit. Cy can cook cod.", "sentence:alliteration_increment", {}, False, False),
    ("((((] ( ) )", "format:parentheses", {}, False, False),
    ("(((( x ] ([{(<", "format:parentheses", {}, False, False),
    ("We go. You stay.\n\n* one\n* two", "format:no_bullets_bullets", {}, True, True),
    ("We go. You stay.\n\nBye.\n* one\n* two", "format:no_bullets_bullets", {}, False, False),
    ("1796-13-01", "custom:date_format_list", {}, False, False),
    ("1796-00-31", "custom:date_format_list", {}, True, False),
    ("My answer is yes. Or so.", "detectable_format:constrained_response", {}, True, False),
    (
        "Come.\nWith a p.s. inside",
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        True,
        False,
    ),
    ("a\n  b\n\n\n    c", "format:line_indent", {}, False, True),
    ("and And but", "count:conjunctions", {"small_n": 3}, True, False),
    ("1. - 2. -", "format:list", {"sep": "-"}, True, False),
    ("no stars at all", "format:sub-bullets", {}, True, False),
    (
        "IT'S IBM",
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": "at least"},
        True,
        False,
    ),
    ("a***b", "length_constraints:number_paragraphs", {"num_paragraphs": 2}, True, False),
    (
        "SECTION 1 and SECTION 2",
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        True,
        False,
    ),
    ("*a* * b*", "detectable_format:number_highlighted_sections", {"num_highlights": 2}, True, False),
    ("name a tree", "combination:repeat_prompt", {"prompt_to_repeat": "Name a tree"}, True, False),
]


@pytest.mark.parametrize(("text", "id", "kwargs", "compat", "fixed"), CASES)
def test_hand_worked_cases(text, id, kwargs, compat, fixed):
    found = tuple(follows(text, id, mode=mode, **kwargs) for mode in ("compat", "fixed"))
    assert found == (compat, fixed)


NUMBER_WORDS = "length_constraints:number_words"
WRONG_ROWS = [
    (row("punctuation:no_coma"), r"unknown instruction .* \(did you mean 'punctuation:no_comma'"),
    (row(5), r"unknown instruction 5"),
    (row(), r"must be a list of ids, not \[\]"),
    (row("punctuation:no_comma", kwargs=[]), r"kwargs must be a list of 1, .* not 0 entries"),
    (row("punctuation:no_comma", kwargs={}), r"kwargs must be a list of 1, .* not \{\}"),
    (row("punctuation:no_comma", kwargs=["x"]), r"kwargs must be an object, not 'x'"),
    (row("punctuation:no_comma", n=1), r"unknown argument 'n'"),
    (row(NUMBER_WORDS, num_words=3), r"the argument 'relation' is missing"),
    (row(NUMBER_WORDS, num_word=3, relation="at least"), r"did you mean 'num_words'"),
    (row(NUMBER_WORDS, num_words="3", relation="at least"), r"must be an integer"),
    (row(NUMBER_WORDS, num_words=True, relation="at least"), r"must be an integer"),
    (row(NUMBER_WORDS, num_words=2.5, relation="at least"), r"must be an integer"),
    (row(NUMBER_WORDS, num_words=-1, relation="at least"), r"must be an integer of at least 0"),
    (row(NUMBER_WORDS, num_words=3, relation="more"), r"must be 'less than' or 'at least'"),
    (row("keywords:existence", keywords="x"), r"must be a list of strings, not 'x'"),
    (row("keywords:existence", keywords=[1]), r"each of keywords must be a string with text, not 1"),
    (row("keywords:existence", keywords=["("]), r"'\(' is not a regular expression .* 'fixed'"),
    (row("combination:repeat_prompt"), r"the argument 'prompt_to_repeat' is missing"),
    (row("count:words_japanese", N=0), r"N must be at least 1"),
]


@pytest.mark.parametrize(("example", "message"), WRONG_ROWS)
def test_wrong_rows_are_refused_when_they_are_loaded(example, message):
    with pytest.raises(ValueError, match=message):
        check_row(example, "compat")


def test_whole_numbers_may_be_written_as_floats():
    assert follows("one two", NUMBER_WORDS, num_words=2.0, relation="at least")


def test_fixed_takes_a_keyword_as_text():
    assert not follows("C is fine", "keywords:existence", mode="fixed", keywords=["C++"])
    assert follows("C++ is fine", "keywords:existence", mode="fixed", keywords=["C++"])
    check_row(row("keywords:existence", keywords=["("]), mode="fixed")


def test_options_are_checked_when_a_recipe_is_read():
    assert bind("instructions", {"mode": "fixed"}).options["strictness"] == "strict"
    for options in ({"mode": "fix"}, {"grade": "half"}, {"strict": True}):
        with pytest.raises(RequestError):
            bind("instructions", options)


def test_every_row_of_ifeval_is_accepted(data_dir):
    rows = [json.loads(line) for line in (data_dir / "ifeval/input_data.jsonl").read_text().splitlines()]
    assert len(rows) == 541 and {id for one in rows for id in one["instruction_id_list"]} <= {*TABLE}
    for one in rows:
        for mode in ("compat", "fixed"):
            check_row(Example(prompt=one["prompt"], extra=one), mode=mode)


def test_the_language_is_the_same_on_every_call():
    example = row("language:response_language", language="en")
    seen = {instructions("no problem amigo", example).reason for _ in range(8)}
    assert len(seen) == 1


@given(st.text(max_size=40), st.sampled_from(sorted(set(TABLE) - {"language:response_language"})))
def test_any_text_gets_a_verdict(text, id):
    entry = next(one for one in CORPUS if one["instruction_id_list"] == [id])
    for mode in ("compat", "fixed"):
        verdict = instructions(text, Example(extra=entry), mode=mode, strictness="loose")
        assert verdict.value in (0.0, 1.0)
