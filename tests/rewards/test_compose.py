"""Several rewards as one: weights, failures, success, verifiers named by a row, what is logged."""

from __future__ import annotations

import pytest

from posttrain.errors import RequestError
from posttrain.recipe.sections import Reward, Success
from posttrain.rewards.compose import Composite, summary
from posttrain.types import Example
from tests.rewards import probes  # noqa: F401  (registers)

EQUAL = "tests.rewards.probes:equal"
RETURNS = "tests.rewards.probes:returns"


def composite(*rewards: Reward, success: Success | None = None) -> Composite:
    return Composite(rewards, success)


def test_the_value_is_the_weighted_sum_and_every_part_is_kept():
    """2 x 1 (equal) + 0.5 x (-3 x 1 character) = 0.5; wrong answer of two characters: 0 + 0.5 x -6 = -3."""
    both = composite(Reward(EQUAL, 2.0, "right"), Reward("probe-bonus", 0.5))
    good, bad = both.grade(["5", "55"], [Example(answer="5")] * 2)
    assert (good.value, good.success, bad.value, bad.success) == (0.5, True, -3.0, False)
    assert {label: v.value for label, v in good.components.items()} == {"right": 1.0, "probe-bonus": -3.0}


def test_a_failed_checker_leaves_no_value_rather_than_a_zero():
    """Verifier down: no value, no success. Shaping down: no value, but success. Weight 0: no effect."""
    down = {"value": None, "status": "error"}
    row = Example(answer="5", extra={"given": down})
    rewards = Reward(EQUAL, 1.0, "right"), Reward(RETURNS, 1.0, "down")
    (graded,) = composite(*rewards).grade(["5"], [row])
    assert (graded.value, graded.success) == (None, True)
    (graded,) = composite(*rewards, success=Success("down")).grade(["5"], [row])
    assert (graded.value, graded.success) == (None, None)
    rewards[1].weight = 0.0
    (graded,) = composite(*rewards).grade(["5"], [row])
    assert graded.value == 1.0 and graded.components["down"].status == "error"


def test_success_is_the_named_verifier_at_its_bound():
    half = Example(answer="5", extra={"given": {"value": 0.5}})
    rewards = Reward(EQUAL, 1.0, "right"), Reward(RETURNS, 1.0, "part")
    assert composite(*rewards).grade(["5"], [half])[0].success is True
    assert composite(*rewards, success=Success("part")).grade(["5"], [half])[0].success is False
    assert composite(*rewards, success=Success("part", 0.5)).grade(["5"], [half])[0].success is True


def test_a_row_names_its_verifiers_and_shaping_applies_to_all():
    rewards = Reward(EQUAL, 1.0, "right"), Reward(RETURNS, 1.0, "part"), Reward("probe-bonus", 1.0)
    all_of_them = composite(*rewards)
    rows = [
        Example(answer="5", extra={"rewards": "part", "given": {"value": 0.25}}),
        Example(answer="5", extra={"rewards": ["right"]}),
        Example(answer="5", extra={"given": {"value": 0.25}}),
    ]
    graded = all_of_them.grade(["5", "5", "5"], rows)
    assert [list(g.components) for g in graded] == [
        ["part", "probe-bonus"],
        ["right", "probe-bonus"],
        ["right", "part", "probe-bonus"],
    ]
    assert [g.value for g in graded] == [0.25 - 3, 1 - 3, 1.25 - 3]
    assert [g.success for g in graded] == [False, True, True], "the row's own verifier decides"
    with pytest.raises(RequestError, match="f:7: column 'rewards' names 'rigth'.*did you mean 'right'"):
        all_of_them.check_rows([Example(where="f:7", extra={"rewards": "rigth"})])
    with pytest.raises(RequestError, match="names 'probe-bonus', which is not a verifier"):
        all_of_them.check_rows([Example(extra={"rewards": ["probe-bonus"]})])


def test_rows_are_checked_by_the_rewards_that_apply_to_them():
    two = composite(Reward("probe-strict"), Reward(EQUAL, label="equal"))
    two.check_rows([Example(answer="5", extra={"rewards": "equal"})])
    with pytest.raises(RequestError, match="f:1: reward 'probe-strict' needs column 'tests'"):
        two.check_rows([Example(answer="5", where="f:1")])


@pytest.mark.parametrize(
    ("rewards", "success", "sentence"),
    [
        ([Reward("mat")], None, r"rewards\[0\]: unknown reward 'mat'"),
        (
            [Reward(EQUAL), Reward(EQUAL)],
            None,
            r"rewards\[1\]: 'tests.rewards.probes:equal' is listed twice; .*label",
        ),
        ([Reward("probe-bonus")], None, "name at least one verifier"),
        ([Reward(EQUAL, label="right")], Success("rihgt"), "success.reward = 'rihgt'.*did you mean 'right'"),
        ([Reward(EQUAL, label="a"), Reward("probe-bonus")], Success("probe-bonus"), "is not a verifier"),
        (
            [Reward(EQUAL, options={"ignore": True})],
            None,
            "unknown option 'ignore' .did you mean 'ignore_case'",
        ),
    ],
)
def test_bad_compositions_are_refused(rewards, success, sentence):
    with pytest.raises(RequestError, match=sentence):
        Composite(rewards, success)


def test_all_that_is_wrong_with_a_composition_is_said_at_once():
    with pytest.raises(RequestError) as error:
        composite(Reward("mat"), Reward(EQUAL, options={"x": 1}))
    assert len(str(error.value).splitlines()) == 2


def test_the_summary_counts_by_component():
    """Four rows: right, wrong, checker down, too costly. Means are over what is known: (1+0+0)/3."""
    given = [
        {"value": 1.0},
        {"value": 0.0},
        {"value": None, "status": "timeout"},
        {"value": 0.0, "reason": "limit"},
    ]
    rows = [Example(extra={"given": each}) for each in given]
    logged = summary(composite(Reward(RETURNS, 2.0, "part")).grade([""] * 4, rows))
    assert logged["reward"] == pytest.approx(2 / 3) and logged["success"] == pytest.approx(1 / 3)
    assert logged["reward/part"] == pytest.approx(1 / 3)
    shares = {k: logged[f"reward/part/{k}"] for k in ("timeout", "error", "limit", "unparseable")}
    assert shares == {"timeout": 0.25, "error": 0.0, "limit": 0.25, "unparseable": 0.0}
    assert logged["reward/part/ms"] > 0
    assert "reward" not in summary(composite(Reward(RETURNS)).grade([""], rows[2:3]))
