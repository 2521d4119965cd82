"""The guard decides from numbers alone; the arithmetic of a spike is worked by hand."""

from __future__ import annotations

import math

import pytest

from posttrain.recipe.sections import Guard
from posttrain.training.guard import StepGuard


def test_nan_and_infinity_stop_by_default():
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)):
        guard = StepGuard(Guard())
        assert guard.decide(loss, norm) == "stop"
        assert "loss" in guard.reason
    assert StepGuard(Guard()).decide(1.0, None) == "go"


def test_skips_are_counted_and_bounded():
    guard = StepGuard(Guard(on_nan="skip", max_skips=2))
    assert [guard.decide(math.nan, None) for _ in range(3)] == ["skip", "skip", "stop"]
    assert guard.skipped == 3 and "max_skips is 2" in guard.reason


def test_a_spike_is_five_times_the_median_of_the_window():
    """Window 1, 2, 3: median 2, bound 5 * 2 = 10. 10 passes, 10.1 does not; before the window is full all
    pass."""
    guard = StepGuard(Guard(on_spike="stop", window=3, spike_factor=5.0))
    assert [guard.decide(x, None) for x in (1.0, 30.0, 2.0)] == ["go", "go", "go"]
    guard = StepGuard(Guard(on_spike="stop", window=3, spike_factor=5.0))
    for loss in (1.0, 2.0, 3.0):
        guard.decide(loss, None)
    assert guard.decide(10.0, None) == "go"  # the window is now 2, 3, 10: median 3, bound 15
    assert guard.decide(15.1, None) == "stop"


def test_a_skipped_spike_does_not_enter_the_window():
    guard = StepGuard(Guard(on_spike="skip", window=2, spike_factor=2.0))
    for loss in (1.0, 1.0):
        guard.decide(loss, None)
    assert [guard.decide(5.0, None) for _ in range(3)] == ["skip"] * 3
    assert list(guard.recent) == [1.0, 1.0]


def test_a_resumed_guard_decides_alike():
    first = StepGuard(Guard(on_spike="skip", window=3, spike_factor=2.0))
    for loss in (1.0, 1.2, 1.1, 9.0):
        first.decide(loss, None)
    second = StepGuard(first.config)
    second.load(first.state())
    for loss in (1.0, 3.0, 1.0):
        assert first.decide(loss, None) == second.decide(loss, None)
    assert first.state() == second.state()


@pytest.mark.parametrize("value", ["stop", "skip", "ignore"])
def test_spikes_can_be_left_alone(value):
    guard = StepGuard(Guard(on_spike=value, window=1, spike_factor=2.0))
    guard.decide(1.0, None)
    assert guard.decide(100.0, None) == {"ignore": "go"}.get(value, value)
