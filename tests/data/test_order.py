"""Permutations and schedules: the arithmetic by hand, the bound by property, the uniformity by chi-square."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import order
from posttrain.data.order import MAX_PERIOD, Schedule, integer_weights, key_of, permute, permute_array

keys = st.integers(0, 2**64 - 1)
whole = st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any)


@given(st.integers(1, 700), keys)
@settings(deadline=None)
def test_permute_is_a_permutation_and_the_array_form_agrees(n, key):
    images = [permute(i, n, key) for i in range(n)]
    assert sorted(images) == list(range(n))
    assert permute_array(np.arange(n), n, key).tolist() == images


@given(st.integers(1, 10**12), keys, st.data())
def test_large_ranges_need_no_table(n, key, data):
    picked = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    images = [permute(i, n, key) for i in picked]
    assert len(set(images)) == len(picked) and all(0 <= image < n for image in images)
    assert permute_array(np.array(picked), n, key).tolist() == images


@pytest.mark.slow
@pytest.mark.parametrize(("n", "draws"), [(3, 3000), (4, 4800), (5, 12000)])
def test_every_order_of_a_few_elements_is_equally_likely(n, draws):
    seen = Counter(tuple(permute(i, n, key_of("chi", t)) for i in range(n)) for t in range(draws))
    cells = math.factorial(n)
    expected = draws / cells
    chi = sum((seen[o] - expected) ** 2 / expected for o in itertools.permutations(range(n)))
    assert chi < cells - 1 + 5 * math.sqrt(2 * (cells - 1))


def test_neighbours_are_independent_in_a_large_permutation():
    n = 200_003
    image = permute_array(np.arange(n), n, 5) * 12 // n
    pairs = np.bincount(image[:-1] * 12 + image[1:], minlength=144)
    expected = (n - 1) / 144
    assert ((pairs - expected) ** 2 / expected).sum() < 143 + 5 * math.sqrt(2 * 143)
    fixed = np.count_nonzero(permute_array(np.arange(n), n, 5) == np.arange(n))
    assert fixed < 8  # Poisson with mean 1


def test_keys_differ_and_stay_the_same_for_ever():
    # A changed value would reorder every run that is being resumed.
    assert key_of(1, "a", 0) == 11860641090895253192
    assert [permute(i, 10, 7) for i in range(10)] == [4, 5, 3, 8, 6, 7, 1, 9, 2, 0]
    assert permute(0, 10**6, 7) == 452322
    assert len({key_of(s, n, k) for s in (1, 2) for n in ("a", "b") for k in range(50)}) == 200
    assert key_of("1", 2) != key_of("12") != key_of(12)


@pytest.mark.parametrize(("i", "n"), [(-1, 5), (5, 5), (0, 0)])
def test_outside_the_range(i, n):
    with pytest.raises(IndexError):
        permute(i, n, 1)
    with pytest.raises(IndexError):
        permute_array(np.array([i]), n, 1)


def test_nothing_to_permute():
    assert permute_array(np.array([], dtype=np.int64), 0, 1).tolist() == []


@pytest.mark.parametrize(
    ("weights", "sources"),
    [
        # (2, 1, 1): e = 1/4, P = 4. A may come at ceil((c + 1/4) 2) = 1, 3 and must by
        # floor((c + 3/4) 2) + 1 = 2, 4; B and C may come at 1 and must by 4.
        # So A (due 2), B, A (due 4, the lower index), C.
        ((2, 1, 1), "ABAC"),
        # (3, 1): e = 1/2. A from 1, 2, 4 and by 1, 3, 4; B from 2 and by 3.
        ((3, 1), "AABA"),
        ((1, 1, 1), "ABC"),
        ((0, 5), "B"),
        ((4,), "A"),
    ],
)
def test_schedules_worked_by_hand(weights, sources):
    schedule = Schedule(weights)
    assert schedule.period == len(sources)
    assert "".join("ABC"[schedule[i][0]] for i in range(2 * len(sources))) == sources * 2


@pytest.mark.slow
@given(whole)
@settings(deadline=None, max_examples=150)
def test_every_prefix_realises_the_weights_within_one_example(weights):
    schedule = Schedule(weights)
    total, m = sum(weights), len(weights)
    bound = 1 - Fraction(1, max(2, 2 * m - 2))  # Tijdeman's, sharper than 1
    counts = [0] * m
    for i in range(2 * schedule.period):
        s, k = schedule[i]
        assert k == counts[s]
        counts[s] += 1
        assert schedule.counts(i + 1) == counts
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - Fraction(weight * (i + 1), total)) <= bound
    assert counts == [2 * w * schedule.period // total for w in weights]


@pytest.mark.slow
@given(whole, st.lists(st.integers(0, 1000), min_size=1, max_size=30))
@settings(deadline=None)
def test_access_in_any_order_and_any_block_size_is_the_same(weights, positions):
    long = Schedule(weights)
    sequence = [long[i] for i in range(1001)]
    counts = [long.counts(i) for i in positions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK", 7)
        patch.setattr(order, "MAX_PERIOD", 21)  # at most six blocks are kept
        short = Schedule(weights)
        assert [short[i] for i in positions] == [sequence[i] for i in positions]
        assert [short.counts(i) for i in positions] == counts
        assert len(short._blocks) <= 6


@pytest.mark.slow
def test_a_period_of_a_million_is_quick_and_keeps_the_bound_throughout():
    raw = [math.sqrt(2 + s) / (1 + s) for s in range(12)]
    weights, change = integer_weights(raw)
    assert sum(weights) == MAX_PERIOD and 0 < change < 1 / MAX_PERIOD
    began = time.perf_counter()
    schedule = Schedule(weights)
    assert schedule.counts(MAX_PERIOD - 1)
    assert time.perf_counter() - began < 15  # 0.7 s on an idle core
    sources = np.array([schedule[i][0] for i in range(MAX_PERIOD)])
    for s, weight in enumerate(weights):
        lag = np.cumsum(sources == s) * MAX_PERIOD - weight * np.arange(1, MAX_PERIOD + 1)
        assert np.abs(lag).max() < MAX_PERIOD


@pytest.mark.slow
def test_sizes_beyond_the_rounding_limit_come_out_even():
    sizes = (700_001, 400_003)
    schedule = Schedule(sizes)
    assert schedule.period == sum(sizes) > MAX_PERIOD
    last = {schedule[i] for i in range(schedule.period - 4, schedule.period)}
    assert {(0, sizes[0] - 1), (1, sizes[1] - 1)} <= last
    assert schedule[schedule.period] == (0, sizes[0])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.2, 0.1], (7, 2, 1)),
        ([1, 1], (1, 1)),
        ([30, 20], (3, 2)),
        ([0.333, 0.667], (333, 667)),
        ([0, 2.5], (0, 1)),
        ([np.float64(0.1), 0.3], (1, 3)),
        ([1e-300, 0.0], (1, 0)),
    ],
)
def test_short_decimals_are_exact(weights, expected):
    assert integer_weights(weights) == (expected, 0.0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(any))
def test_rounded_weights_are_close_and_never_vanish(weights):
    rounded, change = integer_weights(weights)
    assert math.gcd(*rounded) == 1 and sum(rounded) <= MAX_PERIOD + len(weights)
    total = sum(map(Fraction, weights))
    for r, w in zip(rounded, weights, strict=True):
        assert (r > 0) == (w > 0)
        assert abs(Fraction(r, sum(rounded)) - Fraction(w) / total) <= change + 1e-12
    assert change <= len(weights) / MAX_PERIOD


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1]])
def test_impossible_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        Schedule(weights)
