"""Intervals over seeds: hand-worked values, properties, their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.evaluate.intervals import interval, p_value, paired, spread
from posttrain.evaluate.seeds import over_seeds, seeds_difference, seeds_paired
from posttrain.evaluate.student import t_quantile
from tests.evaluate.coverage import one_recipe


def test_by_hand():
    """Ten problems i = 0..9 with value i (beyond [0, 1]), two seeds that add -1 and 1, no interaction: the
    variance by problems is (82.5 / 9) / 10 = .916667 with 9, that by seeds 2 / 2 = 1 with 1 degree of
    freedom. Together 1.916667 with 1.916667^2 / (.916667^2 / 9 + 1) = 3.36 of them."""
    v = np.arange(10.0) + np.array([[-1.0], [1.0]])
    found = over_seeds(v)
    assert found.value == pytest.approx(4.5) and (found.n, found.clusters) == (10, 10)
    assert found.error == pytest.approx(math.sqrt(0.9166667 + 1.0))
    df = 1.9166667**2 / (0.9166667**2 / 9 + 1)
    assert found.df == pytest.approx(df)
    assert found.high - found.value == pytest.approx(t_quantile(0.975, df) * found.error)


def test_interaction_by_hand():
    """Two seeds, ten problems, +1 and -1 in a checkerboard: no problem and no seed has a mean but 0, and all
    that varies is what a seed does at a problem. Its variance 20 / (1 * 9) / 20 counts once, not twice."""
    sign = (-1.0) ** np.arange(10)
    v = np.stack([sign, -sign]) + np.arange(10.0)
    found = over_seeds(v)
    assert found.error == pytest.approx(math.sqrt(82.5 / 90)), "the problems' means, which contain their part"
    found = over_seeds(v + np.array([[-1.0], [1.0]]))
    assert found.error == pytest.approx(math.sqrt(82.5 / 90 + 1 - 1 / 9)), "in both parts, so taken off once"


def test_equal_seeds_add_nothing():
    values = np.random.default_rng(0).random(50)
    once, thrice = interval(values), over_seeds(np.stack([values] * 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert over_seeds(values[None]) == once
    a, b = values, values[::-1]
    assert seeds_difference(a[None], b[None]) == paired(a, b)
    found = seeds_difference(np.stack([a] * 2), np.stack([b] * 4))
    assert (found.low, found.high) == pytest.approx((paired(a, b).low, paired(a, b).high))


def test_seeds_that_differ_dominate():
    """Means .3, .5, .7 of every problem: t(.975, 2) sd / sqrt(3), however many problems."""
    v = np.repeat([[0.3], [0.5], [0.7]], 2000, axis=1) + np.random.default_rng(0).normal(0, 0.01, 2000)
    found = seeds_difference(v, v + 0.1 * np.random.default_rng(1).random(2000))
    assert found.error == pytest.approx(0.2 * math.sqrt(2 / 3), rel=1e-3)
    assert found.df == pytest.approx(4.0, abs=0.01), "Welch: two sides alike, S - 1 of each"
    with_noise = seeds_difference(np.repeat([[0.3], [0.3001], [0.3002]], 2000, axis=1), v)
    assert with_noise.df == pytest.approx(2.0, abs=0.01), "Welch: only one side varies"
    even = np.repeat([[0.3], [0.5]], 10, axis=1)
    assert seeds_difference(even, even + 0.1).error == pytest.approx(math.sqrt(2 * 0.01)), "problems alike"


def test_groups_widen():
    rng = np.random.default_rng(3)
    v = np.repeat(rng.random((3, 40)), 10, axis=1)
    groups = [str(i // 10) for i in range(400)]
    assert over_seeds(v, groups).error > over_seeds(v).error
    assert over_seeds(v, groups).error == pytest.approx(over_seeds(v[:, ::10]).error, rel=0.05)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(2, 5))
def test_signs_order_and_names_do_not_matter(seed, sa, sb):
    rng = np.random.default_rng(seed)
    a, b = rng.random((sa, 12)), rng.random((sb, 12)) + rng.random((sb, 1))
    there, back = seeds_difference(a, b), seeds_difference(b, a)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    order = rng.permutation(12)
    moved = seeds_difference(a[::-1][:, order], b[:, order])
    assert (moved.low, moved.high, moved.df) == pytest.approx((there.low, there.high, there.df))
    one = over_seeds(b)
    assert one.error**2 >= spread(b.mean(0), np.arange(12)).variance * (1 - 1e-9)
    assert one.error**2 >= b.mean(1).var(ddof=1) / sb * (1 - 1e-9)


def test_the_same_values_everywhere():
    ones = np.ones((3, 10))
    found = over_seeds(ones)
    assert found.low < 0.75 and found.high == 1.0
    same = seeds_difference(ones, ones)
    assert (same.value, same.low) == (0.0, -same.high) and same.high > 0.1


def test_what_cannot_be_judged():
    v = np.random.default_rng(0).random((3, 20))
    with pytest.raises(ValueError, match="single seed and the other 3"):
        seeds_difference(v[:1], v)
    with pytest.raises(ValueError, match="single seed and the other 3"):
        seeds_difference(v, v[:1])
    with pytest.raises(ValueError, match="20 problems cannot be paired with 19"):
        seeds_difference(v, v[:, 1:])
    for bad in (v[0], np.full((2, 3), math.nan), np.empty((2, 0))):
        with pytest.raises(ValueError, match="table of finite values"):
            over_seeds(bad)
    few = over_seeds(v[:, :7])
    assert (few.low, few.reason) == (None, "too few problems")
    assert seeds_difference(v, v, ["a", "b"] * 10).reason == "too few clusters"


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.15])
def test_one_recipe_is_no_better_than_itself(between):
    """200 comparisons of three seeds with three of one recipe, pass@256 about .9: at most one in twenty (and
    three standard errors of the simulation) is called a difference."""
    called, sd = one_recipe(200, between)
    assert called <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert 0.02 <= sd <= 0.04 or not between


def test_pairs_by_seed_have_a_sign_and_mirror():
    """One of 36 cells moves by 1/8, which is noise in either direction; also where all changes are equal."""
    a = np.full((3, 12), 0.25)
    b = a.copy()
    b[0, 4] = 0.375
    rise, fall = seeds_paired(a, b), seeds_paired(b, a)
    assert rise.low < 0 < rise.high and (rise.low, rise.high) == pytest.approx((-fall.high, -fall.low))
    assert p_value(rise) == pytest.approx(p_value(fall)) and p_value(rise) > 0.05
    same = seeds_paired(a, a)
    assert same.value == 0 and same.low == pytest.approx(-same.high) and same.low < -0.1
    assert seeds_paired(a[:1], b[:1]) == paired(a[0], b[0])
    for change in (0.2, -0.2):
        equal = np.full((3, 10), change)
        found = seeds_difference(equal, equal)
        assert found.value == 0 and found.low < 0 < found.high, "changes of shares are within 2"
    with pytest.raises(ValueError, match="cannot be paired"):
        seeds_paired(a, b[:2])
