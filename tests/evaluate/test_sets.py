"""Numbers over instance sets and over versions, each worked by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluate.intervals import interval
from posttrain.evaluate.sets import _chi_square, drop_rate, over_sets, over_versions, summaries
from posttrain.evaluate.settings import problems_of, task_hash
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.recipe.schema import Task
from posttrain.types import Problem


def test_mean_and_deviation_over_sets():
    """Sets a: 1, 0, 1, 0 (.5), b: 1, 1, 1, 0 (.75), c: 0 (0). Mean 1.25/3; squares of .5, .75, 0 less it:
    (.00694 + .11111 + .17361) / 2 = .14583."""
    mean, sd = over_sets([1, 0, 1, 0, 1, 1, 1, 0, 0], [*"aaaabbbbc"], None)
    assert mean.value == pytest.approx(1.25 / 3) and mean.n == 9
    assert sd.value == pytest.approx(math.sqrt(0.1458333)) and sd.n == 3 and sd.low is None
    (alone,) = over_sets([1, 0], ["a", "a"], None)
    assert alone.value == 0.5


def test_the_mean_of_sets_of_one_size_is_that_of_the_problems():
    rng = np.random.default_rng(0)
    values, groups = rng.integers(0, 2, 200).astype(float), [str(i) for i in range(20)] * 10
    mean, sd = over_sets(values, [str(i // 20) for i in range(200)], groups)
    assert mean == interval(values, groups)
    assert sd.value == pytest.approx(values.reshape(10, 20).mean(axis=1).std(ddof=1))


def test_the_interval_of_the_deviation_holds_the_true_one():
    """Sets of 100 right or wrong answers at .7: sd sqrt(.21 / 100), in 95 % of experiments."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        each = rng.random((20, 100)) < 0.7
        sd = over_sets(each.ravel().astype(float), np.repeat(np.arange(20).astype(str), 100), None)[1]
        held += sd.low < math.sqrt(0.21 / 100) < sd.high
    assert 0.92 < held / 400 < 0.98
    for df in (7, 49):
        for tail in (0.025, 0.975):
            z = stats.norm.ppf(tail)
            assert _chi_square(df, z) == pytest.approx(stats.chi2.ppf(tail, df), rel=0.02)


def test_versions_of_a_problem():
    """a: 1, 1, 1; b: 1, 0, 1; c: .5, .5. All right: 1, 0, .25; means 1, 2/3, 1/2."""
    right, mean, gap = over_versions([1, 1, 1, 1, 0, 1, 0.5, 0.5], [*"aaabbbcc"], None)
    assert right.value == pytest.approx(1.25 / 3) and right.n == 3
    assert mean.value == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert gap.value == pytest.approx(mean.value - right.value)


def test_the_drop_rate():
    assert drop_rate(0.6, 0.8) == pytest.approx(0.25) and drop_rate(0.9, 0.6) == pytest.approx(-0.5)
    assert math.isnan(drop_rate(0.5, 0.0))


def test_only_problems_that_have_sets_have_these_numbers():
    plain = [Problem(id=str(i), answer="") for i in range(4)]
    values = {"pass@1": [1.0, 0.0, 1.0, None], "parsed": [1.0] * 4}
    assert summaries(values, plain, False) == {}
    both = [Problem(id=str(i), answer="", set=str(i % 2), version_of=str(i // 2)) for i in range(4)]
    found = summaries(values, both, False)
    assert {name: each.value for name, each in found.items()} == {
        "pass@1_set_mean": 0.5,  # set 0: 1, 1; set 1: 0, and a problem without a value
        "pass@1_set_sd": pytest.approx(math.sqrt(0.5)),
        "pass@1_all_right": 0.5,  # 1 and 0 of the first, 1 of the second
        "pass@1_version_mean": 0.75,
        "pass@1_version_gap": 0.25,
    }
    assert summaries({"pass@1": [None] * 4}, both, False) == {}


def test_a_task_with_sets_and_versions(tmp_path):
    text = "about: Mine\nkind: generate\nsource: {file: rows.jsonl}\nprompt: q\nanswer: a\nsamples: 4\n"
    rows = [{"q": f"{i}?", "a": "1", "of": i // 2, "set": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    plain = task_hash(Task("mine", file=str(path)))
    path.write_text(text + "sets: set\nversions: of\n")
    task = Task("mine", file=str(path))
    assert [(p.set, p.version_of) for p in problems_of(task)] == [
        ("0", "0"),
        ("1", "0"),
        ("0", "1"),
        ("1", "1"),
    ]
    ends = ["set_mean", "set_sd", "all_right", "version_mean", "version_gap"]
    assert metrics(task)[-5:] == [f"pass@1_{end}" for end in ends]
    assert task_hash(task) != plain
