"""Rollouts read from files: what is tolerated, how they are grouped and filtered, which are picked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rundir.rollouts import FILTERS, RolloutRow, Rollouts, pick
from tests.rundir.written import lines, rollout, rollouts

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "step",
    "group",
    "round",
    "position",
    "prompt",
    "answer",
    "completion",
    "tokens",
    "finish",
    "reward",
    "success",
    "components",
    "advantage",
    "trained",
    "source",
    "where",
)


@pytest.fixture
def run(tmp_path):
    """Steps 1, 3 and 5, four prompts with four samples each."""
    for step in (1, 3, 5):
        rollouts(tmp_path / "run", step)
    return tmp_path / "run"


def test_filters_by_hand(run):
    """(group + sample) % 3 == 0 is right: groups 0 to 3 hold 2, 1, 2, 2 of them, group 2's one at sample 1
    and none at its failed sample 3 (2 + 3 is no multiple): 6 right, 9 wrong, 1 failed. Group 3 and the failed
    one are not trained."""
    every = [RolloutRow.of(row) for row in Rollouts(run).rows(3)]
    counts = {name: sum(map(fits, every)) for name, fits in FILTERS.items()}
    assert counts == {"all": 16, "right": 6, "wrong": 9, "failed": 1, "cut": 1, "dropped": 5}
    assert [c.answer for c in every][::4] == ["0", "7", "14", "21"]


def test_a_failed_part_without_weight_is_a_failed_check():
    row = rollout(0, 0)
    row["components"]["tags"] = {"value": None, "status": "error", "reason": "lost"}
    assert RolloutRow.of(row).failed and RolloutRow.of(row).reward == 1.2
    assert not RolloutRow.of(rollout(0, 0)).failed


def test_torn_lines_and_lost_files_are_named(run):
    file = run / "rollouts" / "step-000003.jsonl"
    whole = file.read_text().splitlines()
    deep = "[" * 100_000
    file.write_text("\n".join([whole[0], "{torn", "7", "", deep, "9" * 5000, whole[1][:-9]]) + "\n")
    held = Rollouts(run)
    assert len(list(held.rows(3))) == 1
    assert held.unread == [
        "rollouts/step-000003.jsonl: 5 lines skipped, not JSON objects (the first: line 2)"
    ]
    file.unlink()
    assert list(held.rows(3)) == [] and "No such file" in held.unread[-1]
    file.mkdir()
    (run / "rollouts" / "step-7.jsonl.tmp").touch()
    held = Rollouts(run)
    assert list(held.files) == [1, 3, 5] and len(list(held.rows(5))) == 16
    assert held.unread == [], "nothing is opened before it is asked for"
    assert list(held.rows(3)) == [] and "directory" in held.unread[0]


def test_groups_are_whole_whatever_the_order(tmp_path):
    """Ranks may write their samples in turns; a refill round numbers its groups anew."""
    rows = [rollout(g, s) for s in range(2) for g in range(2)]
    rows += [rollout(0, s, round=1, prompt="again") for s in range(2)]
    rows += [{"completion": "no group"}, {"completion": "nor this"}]
    lines(tmp_path / "rollouts" / "step-000013.jsonl", rows)
    groups = list(Rollouts(tmp_path).groups(13))
    assert [len(g) for g in groups] == [2, 2, 2, 1, 1] and groups[2][0].prompt == "again"


def test_chunks_count_where_there_are_no_steps(tmp_path):
    rollouts(tmp_path, 4, kind="chunk")
    assert (Rollouts(tmp_path).kind, list(Rollouts(tmp_path).files)) == ("chunk", [4])
    rollouts(tmp_path, 9)
    assert (Rollouts(tmp_path).kind, list(Rollouts(tmp_path).files)) == ("step", [9])
    assert not Rollouts(tmp_path / "none")


def test_best_and_worst_by_hand(tmp_path):
    """Rewards 2 1 1 0 0 -1: best first; of the two 1s the rarer success; a failed one is neither; a prompt
    once."""
    values = [(0, 2, 0.1), (1, 1, 0.5), (2, 1, 1.5), (3, 0, -0.2), (4, 0, -0.9), (5, -1, 0), (0, 1.9, 9)]
    rows = [
        rollout(g, i, position=g, reward=float(r), advantage=a, completion=f"{r} {a}")
        for i, (g, r, a) in enumerate(values)
    ]
    rows.append(rollout(6, 0, position=6, reward=None, success=None, completion="lost"))
    for g, r in ((7, 0.5), (8, -2.0)):
        rows.append(rollout(g, 0, position=g, reward=r, finish="length", completion=f"cut {r}"))
    lines(tmp_path / "rollouts" / "step-000001.jsonl", rows)
    found = {title: [c.text for c in group] for title, group in pick(Rollouts(tmp_path))}
    assert found == {
        "Highest reward": ["2 0.1", "1 1.5", "1 0.5"],
        "Lowest reward": ["cut -2.0", "-1 0", "0 -0.9"],
        "Cut off": ["cut 0.5"],
        "Check failed": ["lost"],
    }


def test_equal_rewards_are_not_called_best(tmp_path):
    lines(tmp_path / "rollouts" / "step-000001.jsonl", [rollout(g, 0, reward=0.0) for g in range(9)])
    assert [(t, len(found)) for t, found in pick(Rollouts(tmp_path))] == [("Samples; every reward is 0", 3)]


def test_only_the_last_files_are_picked_from(run):
    (run / "rollouts" / "step-000001.jsonl").write_text("torn")
    rollouts = Rollouts(run)
    steps = {c.step for _, found in pick(rollouts, each=20, files=2) for c in found}
    assert steps == {3, 5} and rollouts.unread == []


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_row_becomes_a_completion(row):
    c = RolloutRow.of(row)
    assert all(isinstance(text, str) for text in (c.text, c.prompt, c.finish, c.place, *c.notes))
    assert [isinstance(fits(c), bool) for fits in FILTERS.values()] == [True] * 6
    assert c.reward is None or abs(c.reward) < float("inf")
