"""Means over groups, and what their intervals are."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student

from posttrain.evaluate.intervals import interval
from posttrain.evaluate.summary import macro, means


def test_every_group_counts_alike():
    """a: 1 of 4; b: 2 of 2. Over problems .5, over groups (.25 + 1) / 2."""
    found = macro([1, 0, 0, 0, 1, 1], ["a"] * 4 + ["b"] * 2)
    assert (found.value, found.n) == (0.625, 6)


def test_the_interval_is_that_of_a_stratified_mean():
    """a: 1, 2, 3, s^2 = 1; b: 10, 14, s^2 = 8; c: 3, 3, 3, s^2 = 0. Variance (1/3 + 8/2 + 0) / 9, degrees of
    freedom (1/3 + 4)^2 / ((1/3)^2 / 2 + 4^2 / 1)."""
    found = macro([1, 2, 3, 10, 14, 3, 3, 3], ["a"] * 3 + ["b"] * 2 + ["c"] * 3, "t")
    assert found.value == pytest.approx((2 + 12 + 3) / 3)
    df = (1 / 3 + 4) ** 2 / (1 / 18 + 16)
    half = student.ppf(0.975, df) * math.sqrt((1 / 3 + 4) / 9)
    assert (found.df, found.error) == (pytest.approx(df), pytest.approx(math.sqrt((1 / 3 + 4) / 9)))
    assert (found.low, found.high) == (pytest.approx(found.value - half), pytest.approx(found.value + half))


def test_groups_of_one_size_have_the_mean_over_problems_and_less_of_its_spread():
    """What groups differ by is no noise of a mean over them."""
    values, groups = [0.0] * 10 + [1.0] * 9 + [0.0], ["a"] * 10 + ["b"] * 10
    over_groups, over_problems = macro(values, groups), interval(values)
    assert over_groups.value == over_problems.value == 0.45
    assert over_groups.high - over_groups.low < over_problems.high - over_problems.low


def test_no_interval_without_a_spread():
    alone = macro([1, 0, 1, 1, 0, 1, 1, 0, 1], ["a"] * 8 + ["b"])
    assert (alone.low, alone.reason) == (None, "a group has a single problem")
    flat = macro([1.0] * 8 + [0.0] * 8, ["a"] * 8 + ["b"] * 8)
    assert flat.value == 0.5 and flat.low < 0.5 < flat.high, "equal values do not seem certain"


def test_intervals_hold_the_true_mean():
    """Ten groups of ten with shares from 0.1 to 0.9: 93 to 97 of 100 intervals."""
    draw, held, shares = np.random.default_rng(0), 0, np.linspace(0.1, 0.9, 10)
    groups = [str(g) for g in range(10) for _ in range(10)]
    for _ in range(2000):
        found = macro((draw.random((10, 10)) < shares[:, None]).astype(float).ravel(), groups)
        held += found.low <= 0.5 <= found.high
    assert 0.93 <= held / 2000 <= 0.97


def test_groups_are_clusters_only_where_the_task_says_so(caplog):
    values = {"acc": [float(i // 5 % 2) for i in range(50)], "none": [None] * 50, "nll": [1.0, 2.0] * 25}
    groups = [str(i // 5) for i in range(50)]
    for clusters in (True, False):
        task = SimpleNamespace(clusters=clusters, macro=("acc",))
        found = means(values, groups, task, "c on t")
        assert list(found) == ["acc", "nll", "acc_macro"]
        assert found["acc"] == interval(values["acc"], groups if clusters else None)
        assert found["nll"] == interval(values["nll"], groups if clusters else None, "t")
        assert found["acc_macro"] == macro(values["acc"], groups)
    assert caplog.messages[0] == "c on t: no problem has a value of none"
