"""Groups to micro-batches: advantages by hand, masks after them, the same steps on any number of ranks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.losses.advantage import ADVANTAGES
from posttrain.recipe.sections import Policy, TrainRollout
from posttrain.rollouts.batch import batch_advantages, micro_batches
from tests.rollouts.sampled import graded, group

SPREAD = 1e-4


def judge(groups, advantage: str = "mean", k: int = 1, **rollout):
    return batch_advantages(groups, Policy(advantage=advantage, k=k), TrainRollout(**rollout))


def of(advantage: str, values: list, k: int = 1, **rollout) -> list[float]:
    """Advantages of one group."""
    return judge([group(values)], advantage, k, **rollout).advantages[0].tolist()


# ---- advantages --------------------------------------------------------------------------------------------

RIGHT_1_OF_8, RIGHT_3_OF_16 = [1.0] + [0.0] * 7, [1.0] * 3 + [0.0] * 13


@pytest.mark.parametrize(
    ("name", "k", "values", "right", "wrong"),
    [
        ("mean", 1, RIGHT_1_OF_8, 7 / 8, -1 / 8),
        # deviations 7/8 and seven times -1/8: variance (49/64 + 7/64)/7 = 1/8
        ("mean_std", 1, RIGHT_1_OF_8, 0.875 / (0.125**0.5 + SPREAD), -0.125 / (0.125**0.5 + SPREAD)),
        ("leave_one_out", 1, RIGHT_1_OF_8, 1, -1 / 7),
        ("pkpo", 4, RIGHT_1_OF_8, 4, 0),
        ("pkpo", 8, RIGHT_3_OF_16, 2.133333, 0),
        ("pass_at_k", 4, RIGHT_1_OF_8, 1, -0.142857),
        ("pass_at_k", 8, RIGHT_3_OF_16, 0.333333, -0.076923),
        ("confidence", 4, RIGHT_1_OF_8, 5.666077, -0.809440),
        ("confidence", 4, RIGHT_3_OF_16, 3.089763, -0.713022),
        ("maxrl", 1, RIGHT_1_OF_8, 7, -1),
    ],
)
def test_advantages_by_hand(name, k, values, right, wrong):
    found = of(name, values, k)
    assert found[0] == pytest.approx(right, abs=1e-6)
    assert found[-1] == pytest.approx(wrong, abs=1e-6)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_failed_check_is_no_wrong_answer(name):
    """Two of three right, and one whose check failed: a group of three; the fourth is not trained."""
    about = judge([group([1.0, 1.0, 0.0, None])], name)
    assert about.valid.tolist() == about.trained.tolist() == [[True, True, True, False]]
    assert about.advantages[0, :3].tolist() == of(name, [1.0, 1.0, 0.0])
    assert about.advantages[0, 3] == about.rewards[0, 3] == 0 and not about.successes[0, 3]
    if name != "pkpo":
        assert about.advantages[0, :3].tolist() != of(name, [1.0, 1.0, 0.0, 0.0])[:3]


def test_a_completion_of_unknown_success_is_not_valid():
    """Its reward is known, but the reward that says whether it is solved has failed."""
    made = group([1.0, 0.0, 1.0])
    made.graded[2].success = None
    about = judge([made])
    assert about.valid.tolist() == [[True, True, False]]
    assert about.advantages.tolist() == [[0.5, -0.5, 0.0]]


def test_cut_off_completions_are_trained_masked_or_penalised():
    """Right and cut, right, wrong and cut, wrong."""
    made = [group([1.0, 1.0, 0.0, 0.0], cut=(0, 2))]
    train, mask = judge(made), judge(made, truncated="mask")
    assert train.advantages.tolist() == mask.advantages.tolist() == [[0.5, 0.5, -0.5, -0.5]]
    assert train.trained.tolist() == [[True] * 4]
    assert mask.trained.tolist() == [[False, True, False, True]]
    assert mask.valid.tolist() == [[True] * 4], "masked only after the advantages of the whole group"
    penalise = judge(made, truncated="penalise", truncated_reward=-3.0)
    assert penalise.rewards.tolist() == [[-3.0, 1.0, -3.0, 0.0]]
    assert penalise.successes.tolist() == [[False, True, False, False]]
    assert penalise.advantages.tolist() == [[-1.75, 2.25, -1.75, 1.25]]  # mean -5/4
    assert penalise.trained.tolist() == [[True] * 4]
    of_success = judge(made, "maxrl", truncated="penalise", truncated_reward=-3.0)
    assert of_success.advantages.tolist() == [[-1.0, 3.0, -1.0, -1.0]]  # p = 1/4


def test_a_penalty_does_not_fill_in_for_a_check_that_failed():
    about = judge([group([None, 1.0, 0.0], cut=(0,))], truncated="penalise", truncated_reward=-3.0)
    assert about.advantages.tolist() == [[0.0, 0.5, -0.5]]
    assert about.trained.tolist() == [[False, True, True]]


def test_groups_do_not_see_each_other():
    about = judge([group([1.0, 0.0]), group([0.25, 0.25]), group([None, None])])
    assert about.advantages.tolist() == [[0.5, -0.5], [0.0, 0.0], [0.0, 0.0]]
    assert about.rewards.dtype == about.advantages.dtype == torch.double


# ---- micro-batches -----------------------------------------------------------------------------------------


def some_groups(count: int, n: int, seed: int = 0) -> list:
    """Groups of other lengths and prompts; token j of completion i of group g is 10000 g + 100 i + j."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for g in range(count):
        lengths = torch.randint(1, 20, (n,), generator=generator).tolist()
        values = torch.randint(0, 2, (n,), generator=generator).double().tolist()
        each = group(values, lengths, position=g, prompt=g % 4 + 1)
        for i, one in enumerate(each.completions):
            one.token_ids = [10000 * g + 100 * i + j + 1 for j in range(lengths[i])]
            one.log_probs = [-float(t) for t in one.token_ids]
        made.append(each)
    return made


def rows(batch: dict) -> list[tuple]:
    """Of each row its prompt, its completion and its advantage, read through the masks."""
    found = []
    for i in range(len(batch["advantages"])):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        completion = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        found.append((prompt, completion, round(float(batch["advantages"][i]), 6)))
    return found


def steps_on(ranks: int, groups, about, steps: int, micro: int, seed: int = 5):
    """[step][micro-batch of all ranks in order]: what one optimizer step sees."""
    parts = [micro_batches(groups, about, 0, steps, micro, seed, r, ranks) for r in range(ranks)]
    assert len({len(part) for part in parts}) == 1, "as many forwards on each rank"
    each = len(parts[0]) // steps
    return [[part[s * each + m] for m in range(each) for part in parts] for s in range(steps)]


def test_a_batch_by_hand():
    """Two groups of two, one step, micro-batches of two: the longest first, prompts padded on the left."""
    groups = [group([1.0, 0.0], [1, 3], prompt=2), group([0.0, None], [2, 2], prompt=4)]
    first, second = micro_batches(groups, judge(groups), 0, 1, 2, seed=1)
    # lengths 2 + 1, 2 + 3, 4 + 2, 4 + 2
    assert first["prompt_ids"].tolist() == [[7, 7, 7, 7], [7, 7, 7, 7]]
    assert first["completion_ids"].tolist() == [[0, 1], [10, 11]]
    assert first["completion_mask"].tolist() == [[1, 1], [0, 0]], "the failed check is not trained"
    assert second["prompt_ids"].tolist() == second["prompt_mask"].mul(7).tolist() == [[7, 7], [7, 7]]
    assert second["completion_ids"].tolist() == [[10, 11, 12], [0, 0, 0]]
    assert second["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert second["advantages"].tolist() == [-0.5, 0.5] and first["advantages"].tolist() == [0.0, 0.0]
    assert first["num_items_in_batch"] == second["num_items_in_batch"] == 2 + 3 + 1
    mixed = micro_batches(groups, judge(groups), 9, 1, 4, seed=1)[0]
    assert mixed["prompt_ids"].tolist() == [[7] * 4, [7] * 4, [9, 9, 7, 7], [9, 9, 7, 7]]
    assert mixed["prompt_mask"].tolist() == [[1] * 4, [1] * 4, [0, 0, 1, 1], [0, 0, 1, 1]]
    assert mixed["completion_ids"][:, -1].tolist() == [9, 9, 12, 9]
    assert {v.dtype for n, v in mixed.items() if n.endswith(("ids", "mask"))} == {torch.long}
    assert mixed["advantages"].dtype == mixed["num_items_in_batch"].dtype == torch.float


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 4), (1, 16), (2, 2), (2, 8), (4, 4), (4, 1)])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_is_the_same_completions_on_any_number_of_ranks(ranks, micro, steps):
    groups = some_groups(8, 4)
    about = judge(groups, "mean_std")
    whole = steps_on(1, groups, about, steps, 32 // steps)
    split = steps_on(ranks, groups, about, steps, micro)
    for one, many in zip(whole, split, strict=True):
        assert rows(one[0]) == [row for batch in many for row in rows(batch)]
        tokens = sum(len(row[1]) for row in rows(one[0]))
        assert {float(b["num_items_in_batch"]) for b in one + many} == {float(tokens * steps)}
    every = [row for step in whole for row in rows(step[0])]
    assert sorted(r[1] for r in every) == sorted(c.token_ids for g in groups for c in g.completions)
    for batch in (b for step in split for b in step):
        found = batch["sampled_log_probs"][batch["completion_mask"].bool()]
        assert torch.equal(found, -batch["completion_ids"][batch["completion_mask"].bool()].float())
        assert (batch["sampled_log_probs"][batch["completion_mask"] == 0] == 0).all()


def test_completions_keep_their_own_advantages_and_prompts():
    groups = some_groups(8, 4)
    about = judge(groups, "mean")
    want = {
        tuple(one.token_ids): ([7] * (g % 4 + 1), round(float(about.advantages[g, i]), 6))
        for g, each in enumerate(groups)
        for i, one in enumerate(each.completions)
    }
    for step in steps_on(2, groups, about, 2, 4):
        for prompt, completion, advantage in (row for batch in step for row in rows(batch)):
            assert want.pop(tuple(completion)) == (prompt, advantage)
    assert not want


def test_steps_of_a_batch_are_a_seeded_shuffle():
    groups = some_groups(8, 4)
    about = judge(groups)
    first, again, other = (
        [[r[1] for r in rows(step[0])] for step in steps_on(1, groups, about, 2, 16, seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    ids = {tuple(c): g for g, each in enumerate(groups) for c in (o.token_ids for o in each.completions)}
    assert len({ids[tuple(c)] for c in first[0]}) > 4, "groups are spread over the steps"


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(0, 99), st.data())
def test_the_mean_over_tokens_is_that_of_the_step(steps, ranks, seed, data):
    """TRL divides by num_items / ranks * accumulation / micro-batches of the whole batch, and gradients are
    averaged over ranks: what is left must be the trained tokens of one step.
    """
    groups = some_groups(4 * steps, 2, seed)
    failed = data.draw(st.sets(st.integers(0, 8 * steps - 1), max_size=3))
    for i in failed:
        groups[i // 2].graded[i % 2] = graded(None)
    about = judge(groups)
    for step in steps_on(ranks, groups, about, steps, 8 // ranks // 2):
        tokens = sum(int(b["completion_mask"].sum()) for b in step)
        accumulation = len(step) // ranks
        normalizer = float(step[0]["num_items_in_batch"]) / ranks * accumulation / (accumulation * steps)
        assert math.isclose(normalizer * ranks, tokens)


def test_unknown_log_probs_are_said_to_be_unknown():
    groups = [group([1.0, 0.0], [2, 3])]
    groups[0].completions[0].log_probs = [None, -1.0]
    (batch,) = micro_batches(groups, judge(groups), 0, 1, 2, seed=1)
    assert batch["sampled_log_probs"][0].isnan().all(), "0 would be a probability of 1"
    assert batch["sampled_log_probs"][1].isnan().tolist() == [True, False, False]
