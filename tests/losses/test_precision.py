"""Preference losses in fp32 against the same formulas with 60 digits: values and gradients, at log-ratios of
up to 100 nats either way."""

from __future__ import annotations

import itertools
import random

import mpmath as mp
import pytest
import torch

from posttrain.losses.preference import LOSSES, PairLogProbs, kto
from posttrain.recipe.sections import Preference

REF = -120.0
EXTREME = (-100.0, -60.0, -20.0, -1.0, 0.0, 0.5, 17.0, 60.0, 100.0)
TINY = 1e-37
"""Below it fp32 loses digits."""
ERROR = 4e-5
"""Relative; exp(-h) in fp32 has the rounding of h, 100 x 6e-8, and a few more."""


def softplus(x):
    return mp.log(1 + mp.exp(x))


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def odds(mean):
    return mean - mp.log(1 - mp.exp(mean))


# chosen, rejected, their lengths, options; the reference's log-probabilities are REF
FORMULAS = {
    "dpo": lambda c, r, n, m, o: softplus(-o.beta * (c - r)),
    "dpo_norm": lambda c, r, n, m, o: softplus(-o.beta * ((c - REF) / n - (r - REF) / m)),
    "ipo": lambda c, r, n, m, o: ((c - REF) / n - (r - REF) / m - mp.mpf(1) / (2 * o.beta)) ** 2,
    "cdpo": lambda c, r, n, m, o: (
        (1 - o.label_smoothing) * softplus(-o.beta * (c - r)) + o.label_smoothing * softplus(o.beta * (c - r))
    ),
    "robust": lambda c, r, n, m, o: (
        (
            (1 - o.label_smoothing) * softplus(-o.beta * (c - r))
            - o.label_smoothing * softplus(o.beta * (c - r))
        )
        / (1 - 2 * mp.mpf(o.label_smoothing))
    ),
    "simpo": lambda c, r, n, m, o: softplus(-o.beta * (c / n - r / m) + o.gamma),
    "orpo": lambda c, r, n, m, o: -c / n + o.beta * softplus(-(odds(c / n) - odds(r / m))),
}
OWN_SCALE = {"ipo": 1e-4, "cdpo": 1e-5, "robust": 1e-5}
"""Losses that are sums of opposite signs are exact to this share of 1 + |h|."""
OPTIONS = Preference(beta=1.0, gamma=0.5, label_smoothing=0.125, desirable_weight=1.0, undesirable_weight=2.0)


def cases() -> list[tuple[float, float, float, float]]:
    """Log-probabilities of chosen and rejected, and lengths; numbers that fp32 holds."""
    rng = random.Random(0)
    extreme = [(REF + x, REF + y, 1.0, 4.0) for x, y in itertools.product(EXTREME, repeat=2)]
    drawn = [
        (*torch.empty(2).uniform_(-220, -20, generator=torch.Generator().manual_seed(i)).tolist(), n, m)
        for i in range(60)
        for n, m in [(float(rng.randint(1, 50)), float(rng.randint(1, 50)))]
    ]
    near = [(-(10.0**-e), -1.0, 1.0, 2.0) for e in range(7)]  # almost certain, for orpo
    near += [(-1.0, -(10.0**-e), 2.0, 1.0) for e in range(7)]
    return extreme + drawn + [tuple(torch.tensor(row).tolist()) for row in near]


def close(found: float, want, scale: float) -> bool:
    return abs(found - want) <= ERROR * abs(want) + scale


@pytest.mark.parametrize("name", [*FORMULAS, "wpo"])
def test_pairs_to_the_last_digits(name):
    rows = cases()
    with mp.workdps(60):
        c, r, n, m = (torch.tensor(column) for column in zip(*rows, strict=True))
        c.requires_grad_(), r.requires_grad_()
        found = LOSSES[name](PairLogProbs(c, r, n, m, *torch.full((2, len(c)), REF)), OPTIONS)
        found.sum().backward()
        for i, (x, y, u, v) in enumerate(rows):
            if name == "wpo":  # a constant weight
                weight = mp.exp(mp.mpf(x) / u + mp.mpf(y) / v)

                def f(a, b, weight=weight):
                    return weight * softplus(-OPTIONS.beta * (a - b))
            else:

                def f(a, b, u=u, v=v):
                    return FORMULAS[name](a, b, u, v, OPTIONS)

            x, y = mp.mpf(x), mp.mpf(y)
            scale = max(TINY, OWN_SCALE.get(name, 0.0) * (1 + abs(x - y)))
            assert close(found[i].item(), f(x, y), scale), (name, rows[i])
            assert close(c.grad[i].item(), mp.diff(f, (x, y), (1, 0)), scale), (name, rows[i])
            assert close(r.grad[i].item(), mp.diff(f, (x, y), (0, 1)), scale), (name, rows[i])


@pytest.mark.parametrize("desirable", [True, False])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_kto_to_the_last_digits(desirable, beta):
    """With 1 - sigmoid(h) in fp32, loss and gradient are 0 from h = 17 on."""
    o = Preference(beta=beta, desirable_weight=1.0, undesirable_weight=2.0)
    z = 0.5
    ratios = [
        *EXTREME,
        *torch.empty(200).uniform_(-100, 100, generator=torch.Generator().manual_seed(0)).tolist(),
    ]
    x = torch.tensor(ratios, requires_grad=True)
    found = kto(x, torch.zeros_like(x), torch.full(x.shape, desirable), z, o)
    found.sum().backward()
    sign, weight = (1, 1) if desirable else (-1, 2)
    with mp.workdps(60):
        for i, ratio in enumerate(ratios):
            h = sign * mp.mpf(beta) * (mp.mpf(ratio) - z)
            assert close(found[i].item(), weight * sigmoid(-h), TINY), ratio
            slope = -sign * weight * mp.mpf(beta) * sigmoid(h) * sigmoid(-h)
            assert close(x.grad[i].item(), slope, TINY), ratio


def test_kto_at_60_nats():
    """sigmoid(-60) = 8.76e-27; its slope is the same."""
    x = torch.tensor([60.0, -60.0], requires_grad=True)
    loss = kto(x, torch.zeros(2), torch.tensor([True, False]), 0.0, OPTIONS)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([8.756e-27, 2 * 8.756e-27], rel=1e-3)
    assert x.grad.tolist() == pytest.approx([-8.756e-27, 2 * 8.756e-27], rel=1e-3)
