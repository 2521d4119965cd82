"""Advantages: values worked by hand, unbiasedness by enumeration, failures of the checker."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.losses.advantage import ADVANTAGES, READ_REWARDS, advantages


def group(n: int, c: int) -> torch.Tensor:
    return torch.tensor([[1.0] * c + [0.0] * (n - c)])


def both(name: str, n: int, c: int, k: int) -> tuple[float, float]:
    """Advantage of a success and of a failure."""
    found = advantages(name, group(n, c), group(n, c), torch.ones(1, n, dtype=torch.bool), k)[0]
    return found[0].item(), found[-1].item()


@pytest.mark.parametrize(
    ("name", "case", "want"),
    [
        ("pkpo", (4, 2, 2), (4 / 3, 0)),
        ("pkpo", (8, 1, 4), (4, 0)),
        ("pkpo", (8, 4, 4), (0.457143, 0)),
        ("pkpo", (16, 3, 8), (2.133333, 0)),
        ("pass_at_k", (4, 2, 2), (0.447214, -0.447214)),
        ("pass_at_k", (8, 1, 4), (1, -0.142857)),
        ("pass_at_k", (8, 4, 4), (0.120386, -0.120386)),
        ("pass_at_k", (16, 3, 8), (0.333333, -0.076923)),
        ("confidence", (8, 1, 4), (5.666077, -0.809440)),
        ("confidence", (8, 4, 4), (0.266667, -0.266667)),
        ("confidence", (16, 3, 4), (3.089763, -0.713022)),
        ("maxrl", (8, 1, 1), (7, -1)),
        ("mean", (4, 1, 1), (0.75, -0.25)),
        ("mean_std", (4, 1, 1), (0.75 / (0.5 + 1e-4), -0.25 / (0.5 + 1e-4))),
        ("leave_one_out", (4, 1, 1), (1, -1 / 3)),
    ],
)
def test_values_worked_by_hand(name, case, want):
    """n, c, k. mean_std of 1,0,0,0: deviations .75, -.25 x3; variance (.5625 + 3 x .0625)/3 = .25."""
    assert both(name, *case) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("c", [0, 8])
def test_groups_without_variance_give_nothing(name, c):
    """All wrong: 0. All right: 0 too, but PKPO's leave-one-out form at k = 1 is the plain success."""
    if name == "pkpo" and c:
        assert both(name, 8, 8, 2) == (0, 0)
        return
    assert both(name, 8, c, 4) == (0, 0)


def test_confidence_at_one_is_maxrl():
    for c in range(1, 8):
        assert both("confidence", 8, c, 1) == pytest.approx(both("maxrl", 8, c, 1))


RIGHT = torch.tensor([0.0, 1.0, 0.0, 1.0])
"""Of four answers, two are right."""


def mean_gradient(name: str, n: int, k: int, rewards: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """E[mean_i A_i grad log pi(y_i)] [4] over all groups of n answers to a prompt, by enumeration."""
    pi = logits.softmax(0)
    scores = torch.eye(4, dtype=torch.double) - pi  # grad log pi(y) of each answer y
    groups = torch.cartesian_prod(*[torch.arange(4)] * n)
    given = rewards[groups], RIGHT[groups], torch.ones(groups.shape, dtype=torch.bool)
    a = advantages(name, *given, k)
    each = (a[:, :, None] * scores[groups]).mean(1)
    return (pi[groups].prod(1)[:, None] * each).sum(0)


def gradient(objective, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda x: objective(x.softmax(0)), logits)


LOGITS = pytest.mark.parametrize(
    "logits", [[0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.3, -2.5], [-1.0, 1.0, -3.0, 2.0]]
)


@LOGITS
@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (4, 4), (5, 3), (2, 2)])
def test_the_mean_of_pkpo_is_the_gradient_of_pass_at_k(n, k, logits):
    """Over a group, as the losses take it: grad (1 - (1 - p)^k), p the probability of the right answers."""
    logits = torch.tensor(logits, dtype=torch.double)
    want = gradient(lambda pi: 1 - (1 - pi @ RIGHT.double()) ** k, logits)
    torch.testing.assert_close(mean_gradient("pkpo", n, k, RIGHT, logits), want, rtol=0, atol=1e-10)


@LOGITS
def test_the_mean_of_the_others_is_the_gradient_of_the_reward(logits):
    """leave_one_out: exactly; mean: (n-1)/n of it; pkpo at k = 1: of the success. `beta` has one meaning."""
    logits = torch.tensor(logits, dtype=torch.double)
    rewards = torch.tensor([0.2, 1.3, -0.5, 0.9], dtype=torch.double)
    want = gradient(lambda pi: pi @ rewards, logits)
    for name, share in (("leave_one_out", 1.0), ("mean", 3 / 4)):
        found = mean_gradient(name, 4, 1, rewards, logits)
        torch.testing.assert_close(found, share * want, rtol=0, atol=1e-10)
    one, loo = (mean_gradient(name, 4, 1, RIGHT.double(), logits) for name in ("pkpo", "leave_one_out"))
    torch.testing.assert_close(one, loo, rtol=0, atol=1e-10)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(ADVANTAGES)),
    st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(-5, 5)), min_size=2, max_size=12),
    st.integers(1, 6),
)
def test_a_failed_check_is_not_part_of_its_group(name, rows, k):
    """Dropping it, or filling in anything, leaves the advantages of the others as they are."""
    ok = [i for i, (valid, _, _) in enumerate(rows) if valid]
    valid = torch.tensor([[v for v, _, _ in rows]])
    s = torch.tensor([[float(x) for _, x, _ in rows]])
    r = torch.tensor([[x for _, _, x in rows]])
    hidden = torch.where(valid, r, torch.nan), torch.where(valid, s, torch.nan)
    found = advantages(name, *hidden, valid, k)
    assert found.isfinite().all() and (found[~valid] == 0).all()
    if ok:
        alone = advantages(name, r[:, ok], s[:, ok], valid[:, ok], k)
        torch.testing.assert_close(found[:, ok], alone)


@settings(deadline=None)
@given(st.integers(2, 16), st.data())
def test_centred_advantages_sum_to_nothing(n, data):
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    for name in ("mean", "mean_std", "leave_one_out", "pass_at_k", "confidence", "maxrl"):
        found = advantages(name, group(n, c), group(n, c), torch.ones(1, n, dtype=torch.bool), k)
        assert found.sum().item() == pytest.approx(0, abs=1e-6 * max(1.0, found.abs().max().item()))


def test_rewards_and_successes_are_not_mixed_up():
    r, s = torch.tensor([[0.2, 0.6]]), torch.tensor([[0.0, 1.0]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    for name in ADVANTAGES:
        spread = advantages(name, r, s, valid, 1)[0].diff().item()
        wanted = {
            "mean": 0.4,
            "leave_one_out": 0.8,
            "mean_std": 0.4 / (0.08**0.5 + 1e-4),
            "maxrl": 2,
            "confidence": 2,
            "pkpo": 1,
            "pass_at_k": 2,
        }
        assert spread == pytest.approx(wanted[name], rel=1e-6), name
    assert set(READ_REWARDS) < set(ADVANTAGES)


def test_bad_requests():
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match="expected the same"):
        advantages("mean", one, torch.ones(1, 3), one)
    with pytest.raises(ValueError, match="k = 0"):
        advantages("pkpo", one, one, one, 0)
