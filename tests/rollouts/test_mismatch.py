"""How far the sampler is from the policy: by hand, over ranks, and when it stops a run."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.importance import importance_ratio
from posttrain.recipe.sections import TrainRollout, Vllm
from posttrain.rollouts.mismatch import Mismatch, compared

LN2, NAN = math.log(2), math.nan
POLICY = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]])
APART = torch.tensor([[LN2, -2 * LN2, 9.0], [LN2, NAN, LN2], [5.0, 5.0, 5.0], [0.0, 9.0, 9.0]])
"""d of four completions; the third failed its check. NaN: the sampler gave no number."""
MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]])
PLACES = torch.tensor([7, 2, 4, 0])


def rollout(correction: str, bound: float | None = 0.1, top_p: float = 1.0, **bounds) -> TrainRollout:
    return TrainRollout(top_p=top_p, vllm=Vllm(correction=correction, max_logp_diff=bound, **bounds))


def rows_of(mode: str, high: float | None = 3.0, low: float | None = None, apart=APART) -> list[list[float]]:
    sampler = POLICY - apart
    weights = None if mode == "none" else importance_ratio(POLICY, sampler, MASK, mode, high, low)
    return compared(POLICY, sampler, MASK, PLACES, weights, mode, high, low)


@pytest.mark.parametrize(
    ("mode", "ratio", "key", "share", "kept"),
    [
        # products: 2 / 4 = 1/2, 2 * 2 = 4, 1
        ("sequence_mask", (0.5 + 4 + 1) / 3, "masked", 1 / 3, {7, 0}),
        ("sequence_truncate", (0.5 + 4 + 1) / 3, "truncated", 1 / 3, {7, 2, 0}),
        # tokens: 2, 1/4 | 2, (1), 2 | 1; with high 1.5
        ("token_mask", (2 + 0.25 + 2 + 1 + 2 + 1) / 6, "masked", 3 / 6, {7, 2, 0}),
        ("token_truncate", (2 + 0.25 + 2 + 1 + 2 + 1) / 6, "truncated", 3 / 6, {7, 2, 0}),
        ("none", (2 + 0.25 + 2 + 1 + 2 + 1) / 6, None, None, {7, 2, 0}),
    ],
)
def test_by_hand(mode, ratio, key, share, kept):
    """|d| is ln 2 + 2 ln 2 over two tokens, ln 2 + ln 2 over two known ones, 0 over one."""
    found = Mismatch.of([rows_of(mode, 1.5 if mode.startswith("token") else 3.0)], rollout(mode))
    logged = found.metrics()
    assert logged.pop("sampler/logp_diff_mean") == pytest.approx(5 * LN2 / 5)
    assert logged.pop("sampler/logp_diff_max") == pytest.approx(2 * LN2)
    assert logged.pop("sampler/ratio_mean") == pytest.approx(ratio)
    assert logged == ({} if key is None else {f"sampler/{key}": pytest.approx(share)})
    assert set(found.kept(8).nonzero().flatten().tolist()) == kept
    assert found.differences() == {7: pytest.approx(1.5 * LN2), 2: pytest.approx(LN2), 0: 0.0}


def test_where_all_tokens_of_a_completion_are_masked_it_is_not_kept():
    found = Mismatch.of([rows_of("token_mask", high=0.9)], rollout("token_mask"))
    assert found.kept(8).nonzero().flatten().tolist() == [7], "only its 1/4 is below .9"


def test_padding_is_no_weight_above_0():
    """The first completion's tokens are 8 and 1/4, both masked above 3 and below 1/2; its padding has weight
    1."""
    apart = APART.clone()
    apart[0] = torch.tensor([3 * LN2, -2 * LN2, 0.0])
    found = Mismatch.of([rows_of("token_mask", high=3.0, low=0.5, apart=apart)], rollout("token_mask"))
    assert found.kept(8).nonzero().flatten().tolist() == [0, 2]


def test_ranks_say_what_one_process_says():
    rows = rows_of("sequence_mask")
    whole, parts = (Mismatch.of(p, rollout("sequence_mask")) for p in ([rows], [rows[1:], [], rows[:1]]))
    assert whole.metrics() == pytest.approx(parts.metrics()) and whole.differences() == parts.differences()
    assert torch.equal(whole.kept(8), parts.kept(8)) and whole.refusal() == parts.refusal()


def test_the_bound():
    """The mean above is ln 2 = .693."""
    rows = rows_of("sequence_mask")
    said = Mismatch.of([rows], rollout("sequence_mask", 0.69)).refusal()
    assert "is 0.693 nats per token on average and 1.39 at most" in said and "max_logp_diff = 0.69" in said
    for bound in (0.7, None):
        assert Mismatch.of([rows], rollout("sequence_mask", bound)).refusal() is None


def test_with_top_p_the_bound_is_larger_by_what_renormalising_adds():
    """-ln .5 = .693 may come from top_p = .5 alone."""
    rows = rows_of("none")
    assert Mismatch.of([rows], rollout("none", 0.01, top_p=0.5)).refusal() is None
    assert Mismatch.of([rows], rollout("none", 0.01, top_p=0.6)).refusal() is not None


def test_nothing_to_train_or_to_compare():
    rows = rows_of("sequence_mask", high=0.1)
    said = Mismatch.of([rows], rollout("sequence_mask", None)).refusal()
    assert "sequence_mask leaves nothing to train: the importance weights of all 3 completions are 0" in said
    unknown = rows_of("sequence_mask", apart=torch.full_like(APART, NAN))
    assert "no log-probability of any trained token" in Mismatch.of([unknown], rollout("none")).refusal()
    assert Mismatch.of([unknown], rollout("none", None)).refusal() is None
    logged = Mismatch.of([unknown], rollout("sequence_mask", None)).metrics()
    assert logged == {"sampler/ratio_mean": 1.0, "sampler/masked": 0.0}, "no NaN, and no difference of 0"
    empty = Mismatch.of([[], []], rollout("sequence_mask"))
    assert (empty.metrics(), empty.refusal(), empty.kept(3).tolist()) == ({}, None, [False] * 3)


def test_a_product_that_underflows_is_a_weight_of_0():
    """e^-120 is 0 in fp32: nothing is trained, though nothing is out of bounds."""
    far = torch.where(MASK.bool(), -60.0, 0.0)
    rows = rows_of("sequence_mask", apart=far)
    found = Mismatch.of([rows], rollout("sequence_mask", None))
    assert found.kept(8).nonzero().flatten().tolist() == [0] and found.metrics()["sampler/masked"] == 0


def test_a_product_that_underflows_is_beyond_a_lower_bound():
    """2,200 tokens with d = -.048: e^-105.6 is 0 in fp32, below 1/2, and masked to the same 0."""
    policy, mask = torch.full((1, 2200), -1.0), torch.ones(1, 2200)
    for apart, share in ((-0.048, 1), (-0.001, 1), (-0.0003, 0)):  # e^-2.2 = .11 and e^-.66 = .52
        sampler, bounds = policy - apart, (3.0, 0.5)
        weights = importance_ratio(policy, sampler, mask, "sequence_mask", *bounds)
        rows = compared(policy, sampler, mask, torch.tensor([0]), weights, "sequence_mask", *bounds)
        found = Mismatch.of([rows], rollout("sequence_mask", None, correction_min=0.5))
        assert found.metrics()["sampler/masked"] == share
