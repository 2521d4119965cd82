"""Curves, paired differences, crossovers, pooling: arithmetic by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.report.differences import Place, difference
from posttrain.report.numbers import ROUNDING, crossovers, curve, problem_values
from posttrain.rundir.reading import RunData
from posttrain.rundir.scores import samples_file
from posttrain.types import Score


def points(values: dict[int, float]) -> dict[int, Score]:
    return {k: Score("c", 1, "t", f"pass@{k}", v, 10) for k, v in values.items()}


def test_crossover_by_hand():
    """b - a is -.1 at N = 1 and +.2 at N = 2: zero after a third of the way, 2^(1/3)."""
    found = crossovers(points({1: 0.2, 2: 0.3, 4: 0.3}), points({1: 0.1, 2: 0.5, 4: 0.6}))
    assert found == [pytest.approx(2 ** (1 / 3))]


def test_crossover_ties_and_signs():
    a = points({1: 0.2, 4: 0.5, 16: 0.7, 64: 1.0})
    assert crossovers(a, points({1: 0.1, 4: 0.5, 16: 0.8, 64: 1.0})) == [pytest.approx(4.0)]
    assert crossovers(a, points({1: 0.1, 4: 0.5, 16: 0.6, 64: 1.0})) == [], "touches, does not cross"
    uneven = points({1: 0.1, 4: 0.5, 16: 1.0, 64: 1.0})
    assert crossovers(a, uneven) == [pytest.approx(4.0)], "the tie itself, not the line across it"
    assert crossovers(a, a) == []
    twice = crossovers(a, points({1: 0.3, 4: 0.4, 16: 0.8, 64: 1.0}))
    assert twice == [pytest.approx(2.0), pytest.approx(8.0)]
    assert crossovers(a, points({2: 0.9})) == [], "no k in common"
    rounded = points({1: 0.1, 4: 0.4, 16: 0.6, 64: 1.0 + 2e-16})
    assert crossovers(a, rounded) == [], "two ways to add up to 1"
    rounded[64].value, rounded[1].n = 1.1, 9
    assert crossovers(a, rounded) == [], "of different problems"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_crossovers_are_symmetric_and_counted_by_sign_changes(values):
    a = points({2**i: x for i, (x, _) in enumerate(values)})
    b = points({2**i: y for i, (_, y) in enumerate(values)})
    signs = [y > x for x, y in values if abs(y - x) >= ROUNDING]
    found = crossovers(a, b)
    assert len(found) == sum(s != t for s, t in zip(signs, signs[1:], strict=False))
    assert found == pytest.approx(crossovers(b, a))
    assert found == sorted(found) and all(1 <= n <= 2 ** (len(values) - 1) for n in found)


def test_problem_values_by_hand():
    """p = 1/4 at k = 2: 1 - 9/16. Four samples, one right, k = 2: 1 - C(3,2)/C(4,2) = 1/2. A failed check
    (value null) is no sample, partial credit is no success, and three judged samples give no pass@4."""
    rows = [{"id": "a", "logp": math.log(0.25)}]
    assert problem_values(rows, 2) == {"a": pytest.approx(7 / 16)}
    values = [1.0, 0.0, 0.9, 0.0, None]
    rows = [{"id": "b", "completions": [{"value": v} for v in values]}]
    assert problem_values(rows, 2) == {"b": pytest.approx(0.5)}
    rows[0]["completions"].pop(0)
    assert problem_values(rows, 4) == {}


def test_difference_by_hand(tmp_path, tables):
    """d = .1 .3 .2 .2, four times: mean .2, s^2 = .08/15, error sqrt(.08/15/16), t(.975, 15) = 2.13145. Eight
    clusters {0, 2}, {1, 3}, {4, 6} .. have sums of deviations -.1 and .1: error sqrt(8/7 * .08) / 16,
    t(.975, 7) = 2.36462."""

    def write(groups):
        for step, ps in ((10, (0.1, 0.1, 0.1, 0.1)), (20, (0.2, 0.4, 0.3, 0.3))):
            rows = [{"id": i, "group": g, "logp": math.log(ps[i % 4])} for i, g in enumerate(groups)]
            tables["lines"](tmp_path / "samples" / f"step-{step:06d}" / "t.jsonl", rows)
        values = {"step-000010": 0.1, "step-000020": 0.3}
        rows = [tables["score"](c, "t", "pass@1", v, 16, 0.5) for c, v in values.items()]
        tables["lines"](tmp_path / "scores.jsonl", rows)
        run = RunData.load(tmp_path)
        return difference("t", 1, [Place(run, "step-000010")], [Place(run, "step-000020")])

    d, half = write([""] * 16), 2.13145 * math.sqrt(0.08 / 15 / 16)
    assert (d.mean, d.low, d.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-4)
    assert d.clear is True
    d = write([f"{i // 4}{i % 2}" for i in range(16)])
    assert d.high - d.mean == pytest.approx(2.36462 * math.sqrt(8 / 7 * 0.08) / 16, rel=1e-4)
    assert d.clear is True
    more = [{"id": i, "logp": math.log(0.3)} for i in range(17)]
    tables["lines"](tmp_path / "samples" / "step-000020" / "t.jsonl", more)
    run = RunData.load(tmp_path)
    d = difference("t", 1, [Place(run, "step-000010")], [Place(run, "step-000020")])
    assert (d.over, d.problems, d.left_out) == ("problems", 16, 1), "one problem more on one side"
    d = write([f"{i % 7}" for i in range(16)])
    assert (d.low, d.clear) == (None, None) and "clusters" in d.reason, "7 clusters say nothing"


def test_difference_is_paired_only_where_samples_reproduce_scores(runs):
    task, (run, other) = "multiplication", runs
    d = difference(task, 256, [Place(run, "step-000600")], [Place(run, "step-001800")])
    a, b = (curve(run, task, c)[256].value for c in ("step-000600", "step-001800"))
    assert d.mean == pytest.approx(b - a) and d.low < d.mean < d.high < 0 and d.clear
    rows = run.samples("step-001800", task)
    run._samples[samples_file("step-001800", task)] = rows[:50]
    d = difference(task, 256, [Place(run, "step-000600")], [Place(run, "step-001800")])
    assert (d.over, d.problems, d.left_out) == ("problems", 50, 150), "part of the problems"
    first = {row["id"] for row in rows[:50]}
    part = [row for row in run.samples("step-000600", task) if row["id"] in first]
    run._samples[samples_file("step-000600", task)] = part
    d = difference(task, 256, [Place(run, "step-000600")], [Place(run, "step-001800")])
    assert (d.problems, d.left_out) == (50, 150), "the same part on both sides is still not what was scored"
    run._samples[samples_file("step-001800", task)] = [row | {"logp": -0.01} for row in rows[:150]]
    d = difference(task, 256, [Place(run, "step-000600")], [Place(run, "step-001800")])
    assert (d.mean, d.over, d.clear) == (pytest.approx(b - a), "scores", True), (
        "150 right ones are .75, not .56"
    )
    assert difference(task, 3, [Place(run, "step-000600")], [Place(other, "step-001800")]) is None
