"""Length and repetition penalties, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.rewards import bind
from posttrain.rewards.simple.shaping import length, length_target, overlong, repetition
from posttrain.types import Example

ROW = Example()


def tokens(n) -> Example:
    return Example(extra={"completion_tokens": n})


def test_units():
    assert length("ab cd", ROW, "words") == 2
    assert length("ab cd", ROW, "characters") == 5
    assert length("ab cd", ROW, "tokens") == 2
    assert length("ab cd", tokens(7), "tokens") == 7
    assert length("ab cd", tokens(7), "words") == 2
    assert length("ab cd", tokens(True), "tokens") == length("ab cd", tokens(-1), "tokens") == 2


@pytest.mark.parametrize(
    ("size", "value"),
    [(0, 0), (16384, 0), (17408, -0.25), (18432, -0.5), (20479, -4095 / 4096), (20480, -1), (30000, -1)],
)
def test_overlong_is_dapos_equation_13(size, value):
    """L_max = 20480, L_cache = 4096: (16384 - L) / 4096 between 16384 and 20480."""
    assert overlong("x", tokens(size)).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("size", "tolerance", "value"),
    [(100, 0, 0), (90, 0, -0.1), (130, 0, -0.3), (130, 30, 0), (131, 30, -0.01), (0, 0, -1), (250, 0, -1)],
)
def test_length_target(size, tolerance, value):
    got = length_target("w " * size, ROW, target=100, tolerance=tolerance)
    assert got.value == pytest.approx(value) and bool(got.reason) == (value < 0)
    assert got.details == {"length": size, "unit": "words"}


def test_repetition_by_hand():
    """`a b a b a`: bigrams ab ba ab ba: 2 of 4 distinct, half is repeated."""
    assert repetition("a b a b a", ROW, n=2).value == pytest.approx(-0.5)
    assert repetition("a b a b a", ROW, n=2, penalty=-0.2).value == pytest.approx(-0.1)
    assert repetition("a b a b a", ROW, n=5).value == 0  # one 5-gram
    assert repetition("a b a b a", ROW, n=6).value == 0
    assert repetition("abab", ROW, n=2, unit="characters").value == pytest.approx(-1 / 3)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4))
def test_repetition_stays_between_its_bounds(items, n):
    value = repetition(" ".join(items), ROW, n=n).value
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    assert -1 < value <= 0 and (value == 0) == (len(set(grams)) == len(grams))


@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 40))
def test_overlong_never_rises_with_length(size, cache, free):
    longest = cache + free
    values = [overlong("x", tokens(n), longest, cache).value for n in (size, size + 1)]
    assert 0 >= values[0] >= values[1] >= -1


def test_bad_options_and_rows():
    for bad in ({"cache": 0}, {"cache": 9, "max_length": 8}):
        with pytest.raises(RequestError, match="cache must be above 0"):
            overlong("x", ROW, **bad)
    for bad in ({"target": 0}, {"tolerance": -1}):
        with pytest.raises(RequestError, match="target must be 1 or more"):
            length_target("x", ROW, **bad)
    for bad in ({"n": 0}, {"penalty": 0.5}):
        with pytest.raises(RequestError, match="n must be 1 or more"):
            repetition("x", ROW, **bad)
    for bad in (0, "5", 2.5, True):
        with pytest.raises(RequestError, match="must be a whole number above 0"):
            bind("length_target").check_row(Example(extra={"target_length": bad}))
    row = Example(extra={"target_length": 2})
    bind("length_target").check_row(row)
    assert length_target("a b", row).value == 0 and length_target("a", row).value == -0.5
