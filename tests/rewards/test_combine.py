"""Combinations: all, any, weighted, gated; what a part without a verdict does to each."""

from __future__ import annotations

import itertools

import pytest

from posttrain.errors import RequestError
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.registry import REWARDS, bind, load_all, reward
from posttrain.rewards.simple.combine import combine
from posttrain.types import Example, Verdict

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """Rewards `pa` and `pb` that say what the row tells them: a value, or None for a checker that failed."""
    monkeypatch.setattr(REWARDS, "_items", dict(load_all()._items))  # what is imported later stays unknown
    CALLS.clear()
    for name in ("pa", "pb", "pc"):

        def fn(completion, example, name=name):
            CALLS.append(name)
            value = example.extra[name]
            if isinstance(value, Verdict):
                return value
            return Verdict(value, "scored" if value is not None else "error", f"{name} said so")

        reward(name, runs="inline")(_plain(fn))


def _plain(fn):
    """A reward's parameters after the first two are its options: without `name`."""

    def plain(completion, example):
        return fn(completion, example)

    return plain


def score(how: str, *values, weights=(1.0, 1.0, 1.0), **options) -> Verdict:
    names = ["pa", "pb", "pc"][: len(values)]
    rewards = [{"name": n, "weight": w} for n, w in zip(names, weights, strict=False)]
    example = Example(extra=dict(zip(names, values, strict=True)))
    bound = bind("combine", {"rewards": rewards, "how": how, **options})
    return score_batch(bound, ["x"], [example])[0]


def test_the_truth_table_of_all_and_any():
    """None is unknown, as in three-valued logic: 0 settles `all`, 1 settles `any`."""
    for a, b in itertools.product([0.0, 0.5, 1.0, None], repeat=2):
        both, either = score("all", a, b), score("any", a, b)
        known = [v for v in (a, b) if v is not None]
        assert both.value == (0.0 if 0.0 in known else min(known) if len(known) == 2 else None)
        assert either.value == (1.0 if 1.0 in known else max(known) if len(known) == 2 else None)
        for verdict in (both, either):
            assert verdict.status == ("error" if verdict.value is None else "scored")


def test_weighted_by_hand():
    """(1 * 1 + 3 * 0.5) / 4 = 0.625; unknown where a part is unknown."""
    verdict = score("weighted", 1.0, 0.5, weights=(1.0, 3.0))
    assert verdict.value == pytest.approx(0.625) and "pb" in verdict.reason
    assert score("weighted", None, 0.5).value is None
    assert score("weighted", 1.0, 1.0, 1.0, weights=(0.1, 0.2, 0.3)).value == 1.0


def test_gated():
    assert score("gated", 1.0, 0.5).value == 0.5
    assert score("gated", 0.9, 1.0).value == 0
    assert score("gated", 0.9, 1.0, gate_at_least=0.9).value == 1
    assert score("gated", None, 1.0).value is None
    assert score("gated", 1.0, None).value is None
    assert score("gated", 0.0, None).value == 0
    assert score("gated", 1.0, 1.0, 0.0, weights=(9.0, 1.0, 3.0)).value == pytest.approx(0.25)


def test_parts_that_cannot_matter_are_not_run():
    for how, first in (("all", 0.0), ("any", 1.0), ("gated", 0.0), ("gated", None)):
        CALLS.clear()
        score(how, first, 1.0)
        assert CALLS == ["pa"], how
    for how, first in (("all", 1.0), ("all", None), ("any", 0.0), ("gated", 1.0), ("weighted", 0.0)):
        CALLS.clear()
        score(how, first, 1.0)
        assert CALLS == ["pa", "pb"], how


def test_the_status_and_reason_of_the_part_that_decides():
    late = Verdict(None, "timeout", "late")
    assert score("all", late, 1.0).status == "timeout"
    assert score("all", 1.0, Verdict(0.0, "unparseable", "none")).status == "unparseable"
    assert score("all", 1.0, Verdict(0.0, reason="limit")).reason == "limit"
    assert score("all", 1.0, 0.0).reason == "pb: pb said so"
    assert score("gated", 0.5, 1.0).reason == "pa: pa said so"
    said = score("all", 1.0, 0.0).details["parts"]
    assert said["pa"] == {"value": 1.0, "status": "scored", "reason": "pa said so"}
    assert score("all", 1.0, 1.0, 1.0).value == 1


def test_each_completion_keeps_its_own_verdict():
    rewards = [{"name": "pa"}, {"name": "pb"}]
    rows = [Example(extra={"pa": float(i % 2), "pb": float(i % 3 == 0)}) for i in range(12)]
    verdicts = combine(["x"] * 12, rows, rewards)
    assert [v.value for v in verdicts] == [float(i % 2 and i % 3 == 0) for i in range(12)]
    assert combine([], [], rewards) == []


@pytest.mark.parametrize(
    ("rewards", "how", "sentence"),
    [
        ([], "all", "how = 'all' needs 1 or more rewards, not 0"),
        ([{"name": "pa"}], "gated", "how = 'gated' needs 2 or more rewards, not 1"),
        ([{"name": "pa"}, {"name": "pa"}], "all", "is listed twice"),
        ([{"name": "pa", "weigth": 1}], "all", "unknown key 'weigth' .did you mean 'weight'"),
        ([{"options": {}}], "all", "name is missing; it takes name, options, weight, label"),
        ([{"name": "pa", "weight": 0}], "weighted", "weight = 0 must be"),
        ([{"name": "pa", "weight": float("nan")}], "weighted", "weight = nan must be"),
        ([{"name": "repetition"}], "all", "is a shaping term, not a verifier"),
        ([{"name": "nope"}], "all", r"rewards\[0\].*unknown reward 'nope'"),
        ([{"name": "contains", "options": {"word": 1}}], "all", "unknown option 'word'"),
    ],
)
def test_bad_combinations(rewards, how, sentence):
    with pytest.raises(RequestError, match=sentence):
        bind("combine", {"rewards": rewards, "how": how}).check_row(Example(answer="x"))


def test_rows_are_checked_by_every_part():
    with pytest.raises(RequestError, match="'exact' needs column"):
        bind("combine", {"rewards": [{"name": "pa"}, {"name": "exact"}]}).check_row(Example())
    twice = [{"name": "contains"}, {"name": "contains", "label": "again"}]
    bind("combine", {"rewards": twice}).check_row(Example(answer="x"))
