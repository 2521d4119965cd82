"""Exact, F1, contains: worked by hand, and what holds for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.rewards import bind
from posttrain.rewards.simple.text import contains, exact, f1, normalised
from posttrain.types import Example

words = st.lists(st.sampled_from(["cat", "dog", "sat", "x1", "été"]), min_size=1, max_size=6)


def row(*answers: str) -> Example:
    return Example(answer=answers[0], extra={"answers": list(answers)} if answers[1:] else {})


def test_squad_normalisation_in_its_order():
    assert normalised("The  U.S.A., a nation", "squad") == "usa nation"
    assert normalised("another theatre", "squad") == "another theatre"
    assert normalised("a-the-b", "squad") == "atheb"  # punctuation goes first, as in SQuAD's script


def test_f1_by_hand():
    """3 words against 2, one in common: P = 1/3, R = 1/2, F1 = 2/5."""
    assert f1("cat dog bird", row("cat sat")).value == pytest.approx(2 / 5)
    assert f1("cat cat sat", row("cat sat")).value == pytest.approx(4 / 5)
    assert f1("cat", row("dog", "cat sat")).value == pytest.approx(2 / 3)


@given(words, words)
def test_laws_of_f1(mine, theirs):
    a, b = " ".join(mine), " ".join(theirs)
    value = f1(a, row(b)).value
    assert 0 <= value <= 1 and value == f1(b, row(a)).value
    assert (value == 1) == (sorted(mine) == sorted(theirs))
    assert (value == 0) == (not set(mine) & set(theirs))
    assert exact(a, row(b)).value == (mine == theirs)


@given(words, words, words)
def test_contains_finds_what_was_put_in(before, answer, after):
    text = " ".join(before + answer + after)
    assert contains(text, row(" ".join(answer))).value == 1
    assert contains(text.replace(" ", "_"), row(" ".join(answer) + " z")).value == 0


def test_need_all():
    both = row("cat", "dog")
    assert contains("dog", both).value == 1
    assert contains("dog", both, need="all").value == 0
    assert contains("dog cat", both, need="all").value == 1


def test_a_list_of_everything_is_too_long():
    assert contains("cat " * 100, row("cat")).value == 1
    assert contains("cat " * 101, row("cat")).value == 0
    assert contains("cat " * 101, row("cat"), max_words=None).value == 1


@pytest.mark.parametrize("fn", [exact, f1, contains])
def test_no_text_is_unparseable(fn):
    for text in ("", " \n", "<think>cat", "<think>cat</think>"):
        assert (fn(text, row("cat")).value, fn(text, row("cat")).status) == (0.0, "unparseable")
    assert fn("x" * 200_001, row("cat")).reason == "limit"


def test_rows_without_a_usable_reference():
    squad, space = bind("exact"), bind("exact", {"normalise": "space"})
    with pytest.raises(RequestError, match="'The!' is empty after normalisation; use normalise: space"):
        squad.check_row(row("The!"))
    space.check_row(row("The!"))
    with pytest.raises(RequestError, match="'' is empty after normalisation$"):
        space.check_row(row(""))
    for bad in ([], "cat", ["cat", 5], {"a": 1}):
        with pytest.raises(RequestError, match="list of texts"):
            squad.check_row(Example(extra={"answers": bad}))
    squad.check_row(row("cat"))
