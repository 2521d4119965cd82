"""Shares of sources among the prompts drawn and among the groups with a gradient, by hand."""

from __future__ import annotations

import pytest

from posttrain.recipe.sections import Policy, TrainRollout
from posttrain.rollouts.batch import batch_advantages
from posttrain.rollouts.draw import RolloutSource
from posttrain.rollouts.groups import Prompt
from posttrain.rollouts.stats import RolloutStats
from tests.rollouts.sampled import FakeRewards, Made, Scripted

NAMES = ("easy", "hard", "none")


class Alternating(Made):
    """Even positions are of the source `easy`, odd ones of `hard`."""

    def __getitem__(self, i: int) -> Prompt:
        prompt = super().__getitem__(i)
        return Prompt(i, NAMES[i % 2], prompt.row, prompt.ids, prompt.asked)


def stats_of(right, batches: int = 1, names=NAMES, cut=lambda i, j: False, **rollout) -> dict[str, float]:
    """What is logged of batches of four groups of four; `right(i, j)`: whether sample j of prompt i is."""
    options = TrainRollout(num_generations=4, batch_size=8, max_new_tokens=5, **rollout)
    source, stats = RolloutSource(Alternating(), options, FakeRewards(right), seed=9), RolloutStats(names)
    for _ in range(batches):
        drawn = source.draw(Scripted(cut), 4)
        stats.add(drawn, batch_advantages(drawn.groups, Policy(), options))
    return {name: value for name, value in stats.means().items() if "share/" in name}


def hard_ones(i: int, j: int) -> bool:
    """Every completion of `easy`, half of those of `hard`."""
    return i % 2 == 0 or j < 2


def test_groups_without_variance_are_drawn_but_not_trained():
    """Four groups of two sources in turn: two teach, both of `hard`."""
    assert stats_of(hard_ones) == {
        "share/easy": 0.5,
        "share/hard": 0.5,
        "share/none": 0.0,
        "trained_share/easy": 0.0,
        "trained_share/hard": 1.0,
        "trained_share/none": 0.0,
    }


def test_refilling_shifts_what_is_trained_and_not_what_is_drawn():
    """The easy prompt 0 is mixed too. Rounds: 0 1 2 3, of which 2 is set aside; 4, set aside; 5, which is
    mixed. Drawn 3 : 3, trained 1 : 3."""
    found = stats_of(lambda i, j: j < 2 if i == 0 else hard_ones(i, j), refill=2)
    assert (found["share/easy"], found["share/hard"]) == (0.5, 0.5)
    assert (found["trained_share/easy"], found["trained_share/hard"]) == (0.25, 0.75)


def test_a_window_counts_groups_and_not_batches():
    """Two batches: prompts 0 to 3, of which 0 and 1 teach, and 4 to 7, of which only 5 does."""
    found = stats_of(lambda i, j: j < 2 if i in (0, 1, 5) else True, batches=2)
    assert found["trained_share/easy"] == pytest.approx(1 / 3)
    assert found["trained_share/hard"] == pytest.approx(2 / 3)


def test_a_group_whose_gradient_is_masked_is_not_trained():
    """Every completion of `hard` is cut off, and those that are cut off leave the loss."""
    found = stats_of(lambda i, j: j < 2, cut=lambda i, j: i % 2 == 1, truncated="mask")
    assert (found["trained_share/easy"], found["trained_share/hard"]) == (1.0, 0.0)


def test_of_a_window_the_largest_difference_is_kept():
    stats, options = RolloutStats(NAMES), TrainRollout(num_generations=4, batch_size=8, max_new_tokens=5)
    source = RolloutSource(Alternating(), options, FakeRewards(hard_ones), seed=9)
    for value in (0.5, 2.0, 0.5):
        drawn = source.draw(Scripted(lambda i, j: False), 4)
        more = {"sampler/logp_diff_max": value, "sampler/logp_diff_mean": value}
        stats.add(drawn, batch_advantages(drawn.groups, Policy(), options), more)
    means = stats.means()
    assert (means["sampler/logp_diff_max"], means["sampler/logp_diff_mean"]) == (2.0, 1.0)


def test_nothing_is_said_of_one_source_or_without_a_gradient():
    assert stats_of(hard_ones, names=("easy",)) == {}
    assert set(stats_of(lambda i, j: True)) == {f"share/{name}" for name in NAMES}
