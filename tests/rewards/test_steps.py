"""Steps: where they begin, verdicts of the row, verdicts of another reward, four ways to add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.rewards import bind
from posttrain.rewards.simple.steps import labels, split, steps
from posttrain.types import Example

INNER = {"name": "contains", "options": {"max_words": 3}}


def check_row(example: Example, **options) -> None:
    bind("steps", options).check_row(example)


def row(*given) -> Example:
    return Example(answer="x", extra={"step_labels": list(given)})


def test_split():
    assert split("a\nb\n\n c \n \nd\n", "paragraph") == ["a\nb", "c", "d"]
    assert split("a\n\n b\nc", "line") == ["a", "b", "c"]
    assert split("Plan:\n1. a\n b 2. c\n2) d\n**3.** e\nStep 4: f\n5.5 g", "numbered") == [
        "a\n b 2. c",
        "d",
        "e",
        "f\n5.5 g",
    ]


@pytest.mark.parametrize(
    ("how", "value"), [("min", 0.25), ("mean", 0.6875), ("product", 0.125), ("first_error", 0.5)]
)
def test_together_by_hand(how, value):
    """1, 1, 0.25, 0.5: least 0.25, sum 2.75 / 4, product 0.125, two of four before the first below 0.5."""
    verdict = steps("a\nb\nc\nd", row(1, 1, 0.25, 0.5), by="line", aggregate=how)
    assert verdict.value == pytest.approx(value)
    assert verdict.reason == "step 3 is wrong" and verdict.details["first_error"] == 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_order_of_the_aggregates(values):
    text = "\n".join("s" * len(values))
    got = {
        how: steps(text, row(*values), by="line", aggregate=how).value
        for how in ("min", "mean", "product", "first_error")
    }
    assert got["product"] <= got["min"] + 1e-12 and got["min"] <= got["mean"] + 1e-12
    assert all(0 <= v <= 1 for v in got.values())
    assert (got["first_error"] == 1) == (min(values) >= 0.5)


def test_a_step_at_the_threshold_is_right():
    verdict = steps("a\nb", row(0.5, 0.5), by="line", aggregate="first_error")
    assert verdict.value == 1 and verdict.reason == ""


def test_another_number_of_steps_is_wrong():
    for text in ("a", "a\nb\nc"):
        verdict = steps(text, row(1, 1), by="line")
        assert verdict.value == 0 and "2 labels" in verdict.reason
    assert steps("", row(1)).status == "unparseable"
    assert steps("a\n" * 501, row(1), by="line").reason == "limit"


def test_labels_and_their_spellings():
    assert labels(row("+", "-", "neutral"), "step_labels") == [1, 0, 0.5]
    assert labels(row(True, False), "step_labels") == [1, 0]
    assert labels(row(1, 0), "step_labels") == [1, 0]
    assert labels(row(1, 0, -1), "step_labels") == [1, 0.5, 0]
    for bad in (["x"], [2], [-0.5], [None], [[1]], [float("nan")], []):
        with pytest.raises(RequestError, match="column 'step_labels'"):
            check_row(row(*bad))
    with pytest.raises(RequestError, match="column 'other'"):
        check_row(row(1), column="other")


def test_another_reward_judges_each_step():
    verdict = steps("an x\nno\nx", row(), by="line", inner=INNER, aggregate="mean")
    assert verdict.details["steps"] == [1, 0, 1] and verdict.value == pytest.approx(2 / 3)
    check_row(row(), inner=INNER)


def test_a_judge_of_steps_that_fails_leaves_no_value(monkeypatch):
    from posttrain.rewards.simple import text

    def broken(*_):
        raise OSError("gone")

    monkeypatch.setattr(text, "visible", broken)
    verdict = steps("x", row(), inner=INNER)
    assert (verdict.value, verdict.status) == (None, "error") and "gone" in verdict.reason


def test_bad_inner_rewards():
    for bad in (
        {},
        {"name": "contains", "weight": 2},
        {"name": "repetition"},
        {"name": "combine", "options": {"rewards": []}},
    ):
        with pytest.raises(RequestError, match="reward 'steps'"):
            check_row(row(1), inner=bad)
    with pytest.raises(RequestError, match="reward 'steps': inner: reward 'contains': unknown option 'word'"):
        check_row(row(1), inner={"name": "contains", "options": {"word": 1}})
