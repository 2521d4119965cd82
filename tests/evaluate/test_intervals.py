"""Intervals: hand-worked values, and their coverage in simulation (all of it: `coverage.py`)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluate.intervals import (
    FEWEST,
    Interval,
    detectable,
    holm,
    interval,
    p_value,
    paired,
    spread,
    wilson,
)
from posttrain.evaluate.student import t_quantile
from tests.evaluate.coverage import PAIRS, SCORES, SEEDS, Design, coverage


def test_t_by_hand():
    """Values 1 .. 8: mean 4.5, s^2 = 42/7 = 6, error sqrt(6/8); t(.975, 7) = 2.364624."""
    found = interval(range(1, 9))
    assert (found.value, found.n, found.clusters, found.df) == (4.5, 8, 8, 7)
    assert found.error == pytest.approx(math.sqrt(0.75))
    assert found.high - 4.5 == pytest.approx(2.364624 * math.sqrt(0.75), abs=1e-5) == 4.5 - found.low
    assert found == interval(range(1, 9), method="t") and found.reason == ""


def test_clustered_t_by_hand():
    """Eight clusters of two, values 0 0 and 2 2 in turn: mean 1, residual sums -2 and 2.

    Each counts 1/(1 - 2/16) = 8/7 times: error sqrt(8 * 4 * 8/7) / 16, t(.975, 7)."""
    values, groups = np.repeat([0.0, 2.0] * 4, 2), [f"g{i // 2}" for i in range(16)]
    found = interval(values, groups)
    assert found.error == pytest.approx(math.sqrt(8 * 4 * 8 / 7) / 16)
    assert (found.n, found.clusters, found.df) == (16, 8, pytest.approx(7.0))
    assert found.high - 1 == pytest.approx(2.364624 * found.error, abs=1e-5)
    assert interval(values, [""] * 16) == interval(values)


def test_spread_of_unequal_clusters_by_matrices():
    """Against the definition with whole matrices: G = (I - m 1'/M) diag(m^2) (I - m 1'/M)', weights
    1 / (1 - m/M), degrees of freedom trace(WG)^2 / trace(WGWG)."""
    rng = np.random.default_rng(0)
    m = rng.integers(1, 30, 12)
    of, n = np.repeat(np.arange(12), m), m.sum()
    values = rng.random(n)
    apart = np.eye(12) - np.outer(m, np.ones(12)) / n
    weight = np.diag(1 / (1 - m / n))
    g = weight @ apart @ np.diag(m**2.0) @ apart.T
    r = np.bincount(of, values) - values.mean() * m
    found = spread(values, of)
    assert found.df == pytest.approx(np.trace(g) ** 2 / np.trace(g @ g)) and found.df < 6
    assert found.variance == pytest.approx(r @ weight @ r / n**2)
    ungrouped = spread(values, np.arange(n))
    assert (ungrouped.variance, ungrouped.df) == pytest.approx((values.var(ddof=1) / n, n - 1))
    assert ungrouped.effective == n and 12 <= found.effective <= n


def test_wilson_by_hand():
    """0 of 10 at 95 %: high = z^2 / (n + z^2) = 3.841459 / 13.841459 = .277533. 5 of 10: .2366 to .7634."""
    assert wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson(10, 10) == (pytest.approx(0.722467, abs=1e-6), 1.0)
    assert wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)


def test_wilson_for_right_and_wrong_of_any_number():
    for values in ([1.0], [0.0, 1.0], [1.0] * 20):
        found = interval(values)
        assert (found.low, found.high) == wilson(int(sum(values)), len(values)) and found.df == math.inf
    assert interval([0.0, 1.0, 1.0], ["a", "b", "c"]) == interval([0.0, 1.0, 1.0]), "clusters of one"
    assert interval([0.0, 1.0, 1.0], ["a", "b", "b"]).low is None


def test_wilson_of_proportions_by_hand():
    """Ten values, .2 and .6 in turn: mean .4, s^2/M = (10/9 * .04) / 10 = .0044444, mean (1 - mean) = .24. In
    these units it is (10 * .0185185 + 1/10) / 11 = .0259259 with the problem more, times t(.975, 9)^2 =
    5.117277: k = .132670. Centre (.4 + k/2) / (1 + k), half sqrt(k .24 + k^2/4) / (1 + k)."""
    found, k = interval([0.2, 0.6] * 5), 0.0259259 * 5.117277
    half = math.sqrt(k * 0.24 + k * k / 4) / (1 + k)
    centre = (0.4 + k / 2) / (1 + k)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-5)
    assert found.error == pytest.approx(math.sqrt(0.0259259 * 0.24), abs=1e-6)
    outside = interval([0.2, 0.6] * 5, method="t")
    assert outside.high - 0.4 == pytest.approx(2.262157 * math.sqrt(0.0444444 / 10), abs=1e-5)


@given(
    st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0]), min_size=FEWEST, max_size=30), st.booleans()
)
def test_proportions_stay_within_their_limits(values, pairs):
    groups = [str(i // 2) for i in range(len(values))] if pairs else None
    found = interval(values, groups)
    if found.low is None:
        assert found.clusters < FEWEST and pairs
        return
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.high - found.low > 0.5 / len(values)
    mirrored = interval([1 - v for v in values], groups)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_equal_values_are_not_certain():
    low, high = interval([1.0] * 10).low, interval([1.0] * 10).high
    assert (low, high) == wilson(10, 10)
    half = interval([0.5] * 10)
    assert 0.35 < half.low < 0.42 and half.high == pytest.approx(1 - half.low)
    groups = [str(i // 10) for i in range(100)]
    grouped = interval([1.0] * 100, groups)
    assert (grouped.low, grouped.high) == pytest.approx((10 / (10 + t_quantile(0.975, 9) ** 2), 1.0))
    assert interval([0.1] * 100, groups).high > 0.15, "ten templates, not a hundred problems"
    unlimited = interval([3.1] * 10)
    assert (unlimited.low, unlimited.error, unlimited.reason) == (None, None, "no spread between problems")


@pytest.mark.parametrize("value", [0.0, 0.5, 3.1])
def test_equal_values_have_no_t_interval(value):
    """Also zeros, of which [0, 0] would be certain; means of clusters may be equal where values are not."""
    flat = interval([value] * 10, method="t")
    assert (flat.value, flat.low, flat.high, flat.error) == (pytest.approx(value), None, None, None)
    assert flat.reason == "no spread between problems" and p_value(flat) is None
    pairs = interval([value - 1, value + 1] * 8, [str(i // 2) for i in range(16)], method="t")
    assert (pairs.low, pairs.reason) == (None, "no spread between clusters")


def test_equal_differences():
    """0 of ten problems differ: at most z^2 / (10 + z^2) = .277533 of others do, up or down."""
    a = [0.1, 0.7] * 5
    same = paired(a, a)
    assert (same.value, same.low, same.high) == pytest.approx((0.0, -0.277533, 0.277533), abs=1e-6)
    assert p_value(same) == 1.0
    turned = paired([0.0] * 10, [1.0] * 10)
    assert (turned.low, turned.high) == pytest.approx((1 - 2 * 0.277533, 1.0), abs=1e-6)
    assert p_value(turned) < 0.01
    for lengths in (paired([100.0, 200.0] * 5, [100.0, 200.0] * 5), paired([1.0] * 10, [3.0] * 10)):
        assert (lengths.low, lengths.high, p_value(lengths)) == (None, None, None)
        assert lengths.reason == "no spread between problems"


def test_too_few():
    for method in ("auto", "t"):
        found = interval([0.3] * 3 + [0.5] * 4, method=method)
        assert (found.low, found.high, found.error, found.df) == (None, None, None, None)
        assert (found.n, found.reason) == (7, "too few problems")
        assert interval([0.3, 0.4] * 10, ["a", "b"] * 10, method).reason == "too few clusters"
        assert interval([0.3], method=method).reason == "too few problems"
    assert paired([0.1] * 7, [0.2] * 7).reason == "too few problems"
    assert p_value(found) is None and detectable(found) is None
    assert interval([0.3] * 3 + [0.5] * 5).low is not None


def test_grouping_widens_what_is_not_independent():
    """Each value stands 10 times: 400 problems know no more than 40."""
    values = np.random.default_rng(0).random(40)
    groups = [f"g{i}" for i in range(40)]
    once, naive = interval(values), interval(np.repeat(values, 10))
    grouped = interval(np.repeat(values, 10), list(np.repeat(groups, 10)))
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.01)
    assert naive.high - naive.low == pytest.approx((once.high - once.low) / math.sqrt(10), rel=0.1)


def test_pairing():
    rng = np.random.default_rng(1)
    hardness = rng.random(200)
    a, b = hardness + rng.normal(0, 0.05, 200), hardness + 0.03 + rng.normal(0, 0.05, 200)
    found = paired(a, b)
    assert found.value == pytest.approx((b - a).mean()) and found.low > 0
    assert found.high - found.low < 0.3 * (interval(a, method="t").high - interval(a, method="t").low)
    swapped = paired(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    rising = paired([0.1] * 10, [0.2, 0.9] * 5)
    assert rising == interval([0.1, 0.8] * 5, method="t"), "differences in [0, 1] are no proportions"


def test_p_values_and_what_is_detectable():
    """p is level .05 exactly where the interval ends at 0; scipy's t test is the judge of one of them."""
    stats = pytest.importorskip("scipy.stats", reason="scipy judges the test")
    d = np.random.default_rng(2).normal(0.3, 1, 30)
    assert p_value(interval(d)) == pytest.approx(stats.ttest_1samp(d, 0.0).pvalue)
    found = interval(d)
    at_the_end = interval(d - found.low)
    assert p_value(at_the_end) == pytest.approx(0.05)
    least = detectable(found)
    assert least == pytest.approx((2.045230 + 0.854192) * found.error, rel=1e-5)
    draws = np.random.default_rng(3).normal(least, d.std(ddof=1), (2000, 30))
    error = draws.std(1, ddof=1) / math.sqrt(30)
    assert (draws.mean(1) / error > 2.045230).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("df", "power"), [(1, 0.73), (3, 0.78), (7, 0.80), (29, 0.80)])
def test_power_of_what_is_detectable(df, power):
    """As its docstring says: a sum of two quantiles is the noncentral t only with many degrees of freedom."""
    stats = pytest.importorskip("scipy.stats", reason="scipy has the noncentral t")
    least = detectable(Interval(0.0, -1.0, 1.0, 10, 1.0, df))
    assert stats.nct.sf(t_quantile(0.975, df), df, least) == pytest.approx(power, abs=0.005)
    assert f"{power:.2f}".removeprefix("0") in detectable.__doc__


def test_holm_by_hand():
    """.01 .04 .03 .005: sorted .005*4 = .02, .01*3 = .03, .03*2 = .06, .04*1 -> .06, none below the
    one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] and holm([0.2]) == [0.2]


@pytest.mark.parametrize(
    ("values", "groups", "method"),
    [
        ([], None, "auto"),
        ([float("nan")], None, "auto"),
        ([1.0, 2.0], ["a"], "auto"),
        ([0.5, 1.5], None, "wilson"),
        ([[1.0]], None, "t"),
    ],
)
def test_what_has_no_interval_is_refused(values, groups, method):
    with pytest.raises(ValueError):
        interval(values, groups, method)


@pytest.mark.parametrize("other", [[], [1.0], [1.0, float("nan")], [1.0, 2.0, 3.0]], ids=str)
def test_what_cannot_be_paired_is_refused(other):
    with pytest.raises(ValueError):
        paired([1.0, 2.0], other)


QUICK = [
    (SCORES[0], 0.93),
    (SCORES[2], 0.93),
    (Design("score", 10, 5, True, 0.3), 0.92),
    (Design("score", 10, 5, True, 1.0), 0.92),
    (PAIRS[0], 0.92),
    (PAIRS[2], 0.93),
    (Design("pair", 10, 5, True, 0.5), 0.92),
    (SEEDS[3], 0.93),
    (SEEDS[9], 0.93),
]
"""(design, least coverage that the whole table shows for these distributions)"""


@pytest.mark.slow
@pytest.mark.parametrize(("design", "least"), QUICK, ids=str)
def test_coverage(design, least):
    """400 experiments each; three standard errors of the simulation are allowed for. A bootstrap of ten
    problems or of a recipe's problems, or t for proportions near 1, falls below."""
    found = coverage(design, ["uniform", "beta(1.2, .2)", "half 0, some 1"], 400)
    for name, (ours, _) in found.items():
        assert least - 3 * math.sqrt(0.05 * 0.95 / 400) <= ours, name
        assert ours <= 0.995 or design.size == 10, name


def test_coverage_of_wilson():
    """Exact: over all outcomes of 20 trials at p = .1, the intervals that hold p weigh .90 to .98."""
    weight = sum(
        math.comb(20, c) * 0.1**c * 0.9 ** (20 - c)
        for c in range(21)
        if wilson(c, 20)[0] <= 0.1 <= wilson(c, 20)[1]
    )
    assert 0.90 <= weight <= 0.98
