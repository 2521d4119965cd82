"""Intervals: hand-worked values, scipy as the judge, and their coverage in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluate.intervals import interval, paired, t_quantile, wilson


def test_t_by_hand():
    """Values 1 2 3: mean 2, sd 1, standard error 1/sqrt(3); t(.975, 2) = 4.30265; half width 2.48414."""
    found = interval([1.0, 2.0, 3.0], method="t")
    assert found.value == 2.0 and found.n == 3
    assert found.high - 2 == pytest.approx(2.484138, abs=1e-6) == 2 - found.low


def test_clustered_t_by_hand():
    """Values 0 1 | 1 1, two clusters of one group each: mean .75, residual sums -.5 and .5, C = 2, M = 4.

    Standard error sqrt(2/1 * (.25 + .25)) / 4 = 1/4; t(.975, 1) = 12.7062."""
    found = interval([0.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b"], method="t")
    assert found.high - 0.75 == pytest.approx(12.7062047 / 4, abs=1e-6)
    alone = interval([0.0, 1.0, 1.0, 1.0], ["", "", "", ""], method="t")
    assert alone == interval([0.0, 1.0, 1.0, 1.0], method="t")


def test_wilson_by_hand():
    """0 of 10 at 95 %: high = z^2 / (n + z^2) = 3.841459 / 13.841459 = .277533. 5 of 10: .2366 to .7634."""
    assert wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson(10, 10) == (pytest.approx(0.722467, abs=1e-6), 1.0)
    assert wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 10, 29, 30, 1318, 99_999, 100_000])
def test_t_quantiles(df):
    stats = pytest.importorskip("scipy.stats", reason="scipy judges the quantiles")
    for q in (0.025, 0.6, 0.95, 0.975, 0.995):
        assert t_quantile(q, df) == pytest.approx(stats.t.ppf(q, df), abs=5e-5 if df >= 1e5 else 1e-9)
    assert t_quantile(0.5, df) == pytest.approx(0.0, abs=1e-12)


def test_auto_is_wilson_for_right_and_wrong_else_bootstrap():
    flat = interval([1.0] * 20)
    assert (flat.low, flat.high) == wilson(20, 20)  # a bootstrap would say [1, 1]
    assert interval([0.0, 1.0] * 10, ["a"] * 10 + ["b"] * 10) == interval(
        [0.0, 1.0] * 10, ["a"] * 10 + ["b"] * 10, "bootstrap"
    )
    assert interval([0.5, 1.0, 0.0]) == interval([0.5, 1.0, 0.0], method="bootstrap")


def test_one_problem_or_one_cluster_has_no_interval():
    for method in ("bootstrap", "t"):
        found = interval([0.3], method=method)
        assert (found.value, found.low, found.high, found.n) == (0.3, None, None, 1)
        assert interval([0.3, 0.4], ["a", "a"], method=method).low is None


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.integers(0, 5))
def test_bootstrap_stays_inside_the_values_and_repeats(values, seed):
    found = interval(values, method="bootstrap", seed=seed)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found == interval(values, method="bootstrap", seed=seed)


def test_bootstrap_agrees_with_t_for_many_problems():
    values = np.random.default_rng(3).beta(0.5, 0.5, 2000)
    a, b = interval(values, method="bootstrap"), interval(values, method="t")
    assert a.low == pytest.approx(b.low, abs=1e-3) and a.high == pytest.approx(b.high, abs=1e-3)
    assert interval(values, method="bootstrap", seed=1) != a


def test_grouping_widens_what_is_not_independent():
    """Each value stands 10 times: 400 problems know no more than 40."""
    values = np.random.default_rng(0).random(40)
    groups = [f"g{i}" for i in range(40)]
    once = interval(values, method="bootstrap")
    naive = interval(np.repeat(values, 10), method="bootstrap")
    grouped = interval(np.repeat(values, 10), list(np.repeat(groups, 10)), method="bootstrap")
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.1)
    assert naive.high - naive.low == pytest.approx((once.high - once.low) / math.sqrt(10), rel=0.1)


def test_clusters_of_different_sizes_weigh_by_their_problems():
    """1 | 0 0 0: resamples give 1 (a quarter of them), 1/4 (half, one of each cluster) or 0 (a quarter)."""
    found = interval([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"], level=0.4)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_pairing():
    rng = np.random.default_rng(1)
    hardness = rng.random(200)
    a, b = hardness + rng.normal(0, 0.05, 200), hardness + 0.03 + rng.normal(0, 0.05, 200)
    found = paired(a, b, method="t")
    assert found.value == pytest.approx((b - a).mean()) and found.low > 0
    assert found.high - found.low < 0.3 * (interval(a, method="t").high - interval(a, method="t").low)
    swapped = paired(b, a, method="t")
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(
    ("values", "groups", "method"),
    [
        ([], None, "auto"),
        ([float("nan")], None, "auto"),
        ([1.0, 2.0], ["a"], "auto"),
        ([0.5], None, "wilson"),
        ([0.0, 1.0], ["a", "a"], "wilson"),
        ([[1.0]], None, "t"),
    ],
)
def test_what_has_no_interval_is_refused(values, groups, method):
    with pytest.raises(ValueError):
        interval(values, groups, method)
    with pytest.raises(ValueError):
        paired([1.0, 2.0], [1.0])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "lowest"), [("bootstrap", 0.90), ("t", 0.92)])
def test_coverage(method, lowest):
    """400 experiments of 60 problems, pass@4 from 16 samples, mean .366: the true mean lies inside about 95
    %."""
    from posttrain.evaluate.metrics import pass_at_k

    rng = np.random.default_rng(7)
    p = rng.beta(0.4, 2.0, (400, 60))
    many = rng.beta(0.4, 2.0, 1_000_000)
    truth = float((1 - (1 - many) ** 4).mean())
    inside = 0
    for row in p:
        found = interval(pass_at_k(rng.binomial(16, row), 16, 4), method=method)
        inside += found.low <= truth <= found.high
    assert lowest <= inside / 400 <= 0.985


def test_coverage_of_wilson():
    """Exact: over all outcomes of 20 trials at p = .1, the intervals that hold p weigh .90 to .98."""
    weight = sum(
        math.comb(20, c) * 0.1**c * 0.9 ** (20 - c)
        for c in range(21)
        if wilson(c, 20)[0] <= 0.1 <= wilson(c, 20)[1]
    )
    assert 0.90 <= weight <= 0.98
