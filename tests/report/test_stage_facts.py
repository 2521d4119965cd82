"""What the later stages add: trends, facts and labels, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.report.facts import component_rows, components, facts, sampled
from posttrain.report.numbers import mean, trend
from posttrain.report.step_plots import smoothed, smoothing
from posttrain.report.text import label, labels, share


def test_trend_by_hand():
    """Twenty values: two at either end. (0 + 2) / 2 = 1 and (8 + 14) / 2 = 11; variances 2 and 18, so the
    error of the difference is sqrt(2/2 + 18/2) = sqrt(10), and 10 exceeds twice that. Strings and NaN are no
    values."""
    values = [0.0, 2.0, *[5.0] * 16, 8.0, 14.0]
    rows = [{"step": 10 * i, "x": v} for i, v in enumerate(values)]
    rows += [
        {"step": 999, "x": "7"},
        {"step": 1000, "x": math.nan},
        {"step": 1001, "x": True},
        {"step": 1002, "x": 10**999},
    ]
    t = trend(rows, "x")
    assert (t.first, t.last, t.steps, t.count) == (1.0, 11.0, (0, 190), 2)
    assert t.error == pytest.approx(math.sqrt(10)) and t.clear
    rows[18]["x"], rows[19]["x"] = 2.0, 6.0
    assert not trend(rows, "x").clear, "3 is more than sqrt(1 + 4), less than twice that"
    one = trend(rows[:1], "x")
    assert (one.first, one.last, one.count, one.error) == (0.0, 0.0, 1, 0.0)
    assert (
        trend(rows, "y") is None and mean(rows, "y") is None and mean(rows[:3], "x") == pytest.approx(7 / 3)
    )


@pytest.mark.slow
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=50), st.integers(0, 8))
def test_smoothing_stays_within_its_neighbours(values, half):
    found = smoothed(values, 2 * half + 1)
    assert len(found) == len(values)
    for i, v in enumerate(found):
        near = values[max(0, i - half) : i + half + 1]
        assert min(near) - 1e-9 <= v <= max(near) + 1e-9
        assert v == pytest.approx(sum(near) / len(near))


def test_few_steps_are_not_smoothed():
    assert [smoothing(n) for n in (1, 59, 60, 120, 400)] == [1, 1, 3, 7, 21]


def test_facts_of_dpo_by_hand(held):
    """Accuracy .5 + .35 t with t = 0, 1/49 ... 1: the first five average t = 2/49, the last five 47/49."""
    found = facts(held["dpo"])
    assert (
        found["accuracy"] == f"{share(0.5 + 0.35 * 2 / 49)} → {share(0.5 + 0.35 * 47 / 49)}" == ".514 → .836"
    )
    assert found["log-ratio of chosen"] == "−1.22 → −28.8" and found["margin"] == "0.0612 → 1.44"
    assert found["held-out accuracy"] == f"{share(0.5 + 0.25 * 9 / 49)} → .750"


def test_facts_of_sampling_by_hand(held):
    """Of 4: 30 prompts with 0 right, 50 with 1, 45 with 2, 35 with 3, 40 with 4: 405 of 800 completions."""
    assert facts(held["pairs"]) == {
        "prompts": "200",
        "completions": "800",
        "pairs": "120",
        "right": f"{share(405 / 800)} of the completions, 4 a prompt",
        "tokens": "chosen 31, rejected 44.2",
        "no pair from": "all right 40, all wrong 30, too few 10",
    }
    assert facts(held["difficulty"])["kept"] == "100 (25% of the prompts)"
    assert facts(held["sft"]) == {} and sampled({"unjudged": 3}) == {"not judged": "3"}
    odd = [
        {},
        {"prompts": True},
        {"success_by_count": [1]},
        {"success_by_count": [0, 0]},
        {"success_by_count": [1, "x"]},
        {"success_by_count": [3, -1]},
        {"none": [1]},
        {"none": {"a": "b"}},
        {"mean_tokens": {}},
        {"mean_tokens": {"chosen": 3, "rejected": None}},
    ]
    assert [sampled(value) for value in odd] == [{}] * 10


def test_components_by_hand(held, made):
    rows = component_rows(held["rlvr-plain"])
    assert [(r["label"], r["weight"], r["timeout"], r["highlight"]) for r in rows] == [
        ("math", "1", "0.2%", False),
        ("tags", "0.2", "0.0%", False),
    ]
    assert rows[0]["unparseable"] == "5.0%", "10 % falling to none, evenly"
    rows = [{"reward/a/b": 1.0, "reward/a/b/ms": 2.0, "reward/timeout": 0.5, "reward/a/b/error": 0.02}] * 2
    run = made("rlvr", {"rewards": [{"name": "x.y:z", "label": "timeout"}, {"name": "unused"}, 3]}, rows)
    assert components(run) == ["timeout", "a/b"], "labels may hold a slash, or be called as a status is"
    assert [(r["label"], r["error"], r["highlight"]) for r in component_rows(run)] == [
        ("timeout", "–", False),
        ("a/b", "2.0%", True),
    ]


def test_labels_say_the_controls_of_a_loss(made):
    losses = {
        "Cross-entropy": {"name": "cross_entropy", "label_smoothing": 0.0, "entropy_bonus": 0.0},
        "Cross-entropy, smoothing 0.1": {"name": "cross_entropy", "label_smoothing": 0.1},
        "Cross-entropy, entropy bonus 0.01": {"name": "cross_entropy", "entropy_bonus": 0.01},
        "Cross-entropy, smoothing 0.1, entropy bonus 0.01": {
            "name": "cross_entropy",
            "label_smoothing": 0.1,
            "entropy_bonus": 0.01,
        },
        "Confidence-limited N = 8, entropy bonus 0.5": {
            "name": "confidence_limited",
            "n": 8.0,
            "entropy_bonus": 0.5,
        },
    }
    assert labels([made("sft", {"loss": loss}, name=name) for name, loss in losses.items()]) == list(losses)


def test_labels_say_the_stage(held, made):
    names = labels(list(held.values()))
    assert names == [
        "Cross-entropy",
        "Pairs correct_incorrect",
        "Success rates",
        "DPO dpo_norm",
        "RLVR dapo, mean_std advantage",
        "RLVR dapo, pass_at_k advantage k = 8",
    ]
    twice = [
        held["sft"],
        made("dpo", {"preference": {"loss": "ipo"}}, name="a"),
        made("dpo", {"preference": {"loss": "ipo"}}, name="b"),
    ]
    assert labels(twice) == ["Cross-entropy", "a", "b"], "only those that share one go by name"
    confident = {"policy": {"loss": "grpo", "advantage": "confidence", "k": 16}}
    assert label(made("rlvr", confident)) == "RLVR grpo, confidence advantage N = 16"
    assert [label(made(stage)) for stage in ("rlvr", "dpo", "sft", "other")] == ["RLVR", "DPO", "run", "run"]
