"""Preference losses: worked by hand, against TRL's own code, and their gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from posttrain.losses.preference import LOSSES, NO_REFERENCE, PairLogProbs, kto, with_beta
from posttrain.recipe.sections import Preference


def one(chosen=-4.0, rejected=-6.0, ref_chosen=-5.0, ref_rejected=-5.0, tokens=(2.0, 4.0)) -> PairLogProbs:
    """x_c = 1, x_r = -1, lengths 2 and 4; means 0.5 and -0.25; mean log pi -2 and -1.5."""
    given = (chosen, rejected, *tokens, ref_chosen, ref_rejected)
    return PairLogProbs(*(torch.tensor([v], dtype=torch.float64) for v in given))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


BY_HAND = {
    "dpo": ({"beta": 0.5}, softplus(-1.0)),
    "dpo_norm": ({"beta": 5.0}, softplus(-5 * 0.75)),
    "ipo": ({"beta": 0.5}, (0.75 - 1) ** 2),
    "cdpo": ({"beta": 0.5, "label_smoothing": 0.1}, 0.9 * softplus(-1.0) + 0.1 * softplus(1.0)),
    "robust": ({"beta": 0.5, "label_smoothing": 0.1}, (0.9 * softplus(-1.0) - 0.1 * softplus(1.0)) / 0.8),
    "wpo": ({"beta": 0.5}, math.exp(-3.5) * softplus(-1.0)),
    "simpo": ({"beta": 2.0, "gamma": 0.5}, softplus(-(2 * (-2 + 1.5) - 0.5))),
    "orpo": ({"beta": 0.1}, 2.0 + 0.1 * softplus(-(odds(-2.0) - odds(-1.5)))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_worked_by_hand(name):
    options, want = BY_HAND[name]
    assert LOSSES[name](one(), Preference(**options)).item() == pytest.approx(want, rel=1e-12)


def test_kto_by_hand():
    """x = 1, z = 0.5, beta 2: h = 1; good 1 - sigmoid(1), bad 1 - sigmoid(-1), weights 1 and 3."""
    options = Preference(beta=2.0, desirable_weight=1.0, undesirable_weight=3.0)
    found = kto(
        torch.tensor([-4.0, -4.0]), torch.tensor([-5.0, -5.0]), torch.tensor([True, False]), 0.5, options
    )
    sigmoid = 1 / (1 + math.exp(-1))
    assert found.tolist() == pytest.approx([1 - sigmoid, 3 * sigmoid])


def test_the_recipe_s_numbers_reach_the_losses():
    assert [with_beta(Preference(loss=n)).beta for n in ("dpo_norm", "simpo", "kto")] == [5, 2, 0.1]
    given = Preference(
        loss="kto", beta=0.5, label_smoothing=0.1, gamma=0.7, desirable_weight=2, undesirable_weight=3
    )
    assert with_beta(given) == given


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in NO_REFERENCE])
def test_a_missing_reference_is_said(name):
    one_ = torch.tensor([-1.0])
    with pytest.raises(ValueError, match="needs the reference"):
        LOSSES[name](PairLogProbs(one_, one_, one_, one_), Preference(beta=0.1))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right_and_push_the_right_way(name):
    """Against differences; the chosen one is pushed up, the rejected one down."""
    options = Preference(**BY_HAND[name][0])
    c = torch.tensor([-4.0, -30.0, -0.2], dtype=torch.float64, requires_grad=True)
    r = torch.tensor([-6.0, -20.0, -0.3], dtype=torch.float64, requires_grad=True)
    n, m = torch.tensor([2.0, 4.0, 1.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    ref = torch.tensor([-5.0, -25.0, -0.25]).double()

    def f(c, r):
        return LOSSES[name](PairLogProbs(c, r, n, m, ref, ref), options)

    if name != "wpo":  # whose weights carry no gradient by definition
        assert torch.autograd.gradcheck(f, (c, r))
    f(c, r).sum().backward()
    if name != "ipo":  # which has a target for the margin and may push back
        assert (c.grad < 0).all() and (r.grad > 0).all()


def test_the_weights_of_wpo_carry_no_gradient():
    c = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-5.0]).double()
    pairs = PairLogProbs(c, ref, ref.new_tensor([2.0]), ref.new_tensor([5.0]), ref, ref)
    LOSSES["wpo"](pairs, Preference(beta=0.5)).backward()
    want = -math.exp(-2 - 1) * 0.5 / (1 + math.exp(0.5))
    assert c.grad.item() == pytest.approx(want)


def test_orpo_is_finite_where_a_completion_is_certain():
    sure = torch.tensor([0.0, -1e-9, -800.0], requires_grad=True)
    other = torch.tensor([-1.0, -1.0, -1.0])
    ones = torch.ones(3)
    loss = LOSSES["orpo"](PairLogProbs(sure, other, ones, ones), Preference(beta=0.1))
    loss.sum().backward()
    assert loss.isfinite().all() and not sure.grad.isnan().any()


# ---- TRL as an oracle --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_pairs() -> PairLogProbs:
    torch.manual_seed(0)
    length = torch.randint(1, 50, (2, 64)).float()
    logp = -torch.rand(4, 64) * 3 * torch.cat([length, length])
    return PairLogProbs(logp[0], logp[1], length[0], length[1], logp[2], logp[3])


def test_simpo_is_trls(random_pairs):
    from trl.experimental.cpo import CPOTrainer

    means = random_pairs.means(random_pairs.chosen, random_pairs.rejected)
    trainer = SimpleNamespace(
        alpha=0.0,
        beta=2.0,
        simpo_gamma=0.7,
        label_smoothing=0.0,
        loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )
    want, _, _ = CPOTrainer.cpo_loss(trainer, *means)
    found = LOSSES["simpo"](random_pairs, Preference(beta=2.0, gamma=0.7))
    torch.testing.assert_close(found, want)


def test_orpo_is_trls(random_pairs):
    """TRL returns beta log sigmoid(odds) and subtracts it from the mean negative log-likelihood."""
    from trl.experimental.orpo import ORPOTrainer

    means = random_pairs.means(random_pairs.chosen, random_pairs.rejected)
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    ratio, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)
    found = LOSSES["orpo"](random_pairs, Preference(beta=0.3))
    torch.testing.assert_close(found, -means[0] - ratio)
