"""Success rates by hand, and that a failed check is no wrong answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from posttrain.recipe.sections import Keep
from posttrain.rollouts.rates import Rate, by_count, rate_of


def rows(*successes):
    return [{"success": s} for s in successes]


def test_rates_by_hand():
    assert rate_of(rows(True, False, None, True)) == Rate(2, 3)
    assert rate_of(rows(True, False, None, True)).columns() == {"p": 2 / 3, "n_right": 2, "n_judged": 3}
    assert rate_of(rows(None, None)).columns() == {"p": None, "n_right": 0, "n_judged": 0}


def test_qwen_keeps_two_to_five_of_eight():
    kept = [right for right in range(9) if Rate(right, 8).within(Keep())]
    assert kept == [2, 3, 4, 5]
    assert not Rate(0, 0).within(Keep(0, 8))  # nothing is known of it
    assert Rate(0, 8).within(Keep(0, 8))


@given(st.lists(st.lists(st.sampled_from([True, False, None]), min_size=5, max_size=5)))
def test_every_prompt_with_a_verdict_is_counted_once(groups):
    rates = [rate_of(rows(*group)) for group in groups]
    found = by_count(rates, 5)
    assert len(found) == 6 and sum(found) == sum(any(s is not None for s in g) for g in groups)
    for right, count in enumerate(found):
        assert count == sum(g.count(True) == right and set(g) != {None} for g in groups)
