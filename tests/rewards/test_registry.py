"""Calling rewards: what a broken checker, a broken verdict and a wrong request become."""

from __future__ import annotations

import pytest

from posttrain.errors import RequestError
from posttrain.rewards import REWARDS, reward, score
from posttrain.types import Example, Verdict

EXAMPLE = Example(answer="5")


@pytest.fixture
def register(monkeypatch):
    """Registers a reward for one test."""
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))
    return lambda fn: reward("probe")(fn)


def test_a_verdict_passes_through_with_its_time(register):
    register(lambda completion, example: Verdict(True, details={"answer": "5"}))
    verdict = score("probe", "5", EXAMPLE)
    assert verdict.value == 1.0 and type(verdict.value) is float
    assert verdict.status == "scored" and verdict.details == {"answer": "5"}
    assert 0 < verdict.ms < 1000


@pytest.mark.parametrize(
    "returned",
    [Verdict(float("nan")), Verdict(1.5), Verdict(-0.1), Verdict(None), Verdict("1"), 1.0, None],
)
def test_what_is_no_verdict_in_range_is_an_error_of_the_checker(register, returned):
    register(lambda completion, example: returned)
    verdict = score("probe", "5", EXAMPLE)
    assert (verdict.value, verdict.status) == (None, "error")


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), RecursionError(), MemoryError()])
def test_an_exception_is_an_error_of_the_checker_not_a_wrong_answer(register, error):
    def broken(completion, example):
        raise error

    register(broken)
    verdict = score("probe", "5", EXAMPLE)
    assert (verdict.value, verdict.status) == (None, "error")
    assert type(error).__name__ in verdict.reason


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_a_failed_check_has_no_value(register, status):
    register(lambda completion, example: Verdict(0.0, status, "slow"))
    assert score("probe", "5", EXAMPLE).value is None


def test_ctrl_c_is_not_swallowed(register):
    def stop(completion, example):
        raise KeyboardInterrupt

    register(stop)
    with pytest.raises(KeyboardInterrupt):
        score("probe", "5", EXAMPLE)


def test_wrong_requests_name_the_nearest_spelling():
    with pytest.raises(RequestError, match="unknown reward 'gsm8'.*did you mean 'gsm8k'"):
        score("gsm8", "5", EXAMPLE)
    with pytest.raises(RequestError, match="'gsm8k': unknown option 'extracts'.*'extract'"):
        score("gsm8k", "5", EXAMPLE, extracts="any")
    with pytest.raises(RequestError, match="unknown.*did you mean 'boxed'"):
        score("gsm8k", "5", EXAMPLE, extract="box")
