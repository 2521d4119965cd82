"""The KL term of the RLVR stage: its value and gradient, by hand and by enumeration of a toy policy.

The trainer and its loss are the real ones; only the log-probabilities are given, in fp64.
"""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.errors import RequestError
from posttrain.recipe import load, recipe_hash
from tests.training.rollouts import trained, write_recipe

WEIGHTED, PLAIN = "k3_weighted", "k3"
BETA = 0.5
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")


@pytest.fixture(scope="module")
def trainers(tmp_path_factory, tiny):
    """`trainers(policy.kl, policy.loss)`: a trainer after one step of the stage; each is made once."""
    made = {}

    def of(kl: str, loss: str = "bnpo"):
        if (kl, loss) not in made:
            policy = f"policy={{loss: {loss}, beta: {BETA}, kl: {kl}}}"
            path = write_recipe(tmp_path_factory.mktemp("kl"), tiny)
            made[kl, loss] = trained(path, policy, "train.max_steps=1")[1]
        return made[kl, loss]

    return of


def term(trainer, log_pi, log_old, log_ref, mask=None):
    """The loss of completions [B, T] without advantages, over beta; `kl` as it is logged."""
    shape = log_pi.shape
    mask = torch.ones(shape, dtype=torch.long) if mask is None else mask
    batch = {
        "prompt_ids": torch.zeros(shape[0], 1, dtype=torch.long),
        "prompt_mask": torch.ones(shape[0], 1, dtype=torch.long),
        "completion_ids": torch.zeros(shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.zeros(shape[0], dtype=torch.double),
        "old_per_token_logps": log_old,
        "ref_per_token_logps": log_ref,
        "num_items_in_batch": mask.sum().double(),
    }
    given = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (log_pi, torch.zeros(shape).double(), None)
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    trainer._metrics["train"].clear()
    trainer.model.train()
    try:
        loss = trainer._compute_loss(trainer.model, batch)
    finally:
        trainer._get_per_token_logps_and_entropies = given
    return loss / BETA, trainer._metrics["train"].pop("kl")[0]


def logs(*values: float) -> torch.Tensor:
    """One token a completion: log of `values`, fp64 [B, 1]."""
    return torch.tensor(values, dtype=torch.double).log()[:, None]


# ---- one token ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("old", "kl", "value", "slope"),
    [
        # pi = .1, reference = .8: r = 8, k3 = 8 - ln 8 - 1 = 4.9206 and its slope 1 - 8, in log pi
        (0.1, PLAIN, 8 - math.log(8) - 1, -7.0),
        (0.5, PLAIN, 8 - math.log(8) - 1, -7.0),
        # the slope of w k3 is w (k3 + 1 - r) = -w ln 8
        (0.1, WEIGHTED, 8 - math.log(8) - 1, -math.log(8)),
        (0.5, WEIGHTED, 0.2 * (8 - math.log(8) - 1), -0.2 * math.log(8)),
    ],
    ids=["k3-on", "k3-off", "weighted-on", "weighted-off"],
)
def test_value_and_gradient_of_a_token(trainers, loss, old, kl, value, slope):
    """On policy both have one value, and gradients of -7 and -2.08; off policy .98 stands for 4.92."""
    log_pi = logs(0.1).requires_grad_()
    found, logged = term(trainers(kl, loss), log_pi, logs(old), logs(0.8))
    # dr_grpo divides by its constant length of 12 tokens, not by the one that there is
    count = 12 if loss == "dr_grpo" else 1
    assert float(found.detach()) == pytest.approx(value / count, rel=1e-12)
    assert logged == pytest.approx(value, rel=1e-12), "without beta, with the weight"
    found.backward()
    assert float(log_pi.grad) == pytest.approx(slope / count, rel=1e-12)


@pytest.mark.slow
def test_tokens_that_are_not_trained_have_no_kl(trainers):
    two = [torch.tensor([row], dtype=torch.double).log() for row in ([0.1, 0.3], [0.1, 0.3], [0.8, 0.9])]
    log_pi = two[0].requires_grad_()
    found, logged = term(trainers(PLAIN), log_pi, *two[1:], torch.tensor([[1, 0]]))
    assert float(found.detach()) == pytest.approx(8 - math.log(8) - 1) == logged
    found.backward()
    assert log_pi.grad.flatten().tolist() == pytest.approx([-7, 0])


# ---- every token of a toy policy ---------------------------------------------------------------------------

OLD = torch.tensor([1, 2, 3, 4], dtype=torch.long)
"""The policy that sampled, in tenths: a batch with each token so many times is its expectation."""
REFERENCE = torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=torch.double)
OTHER = torch.tensor([0.3, 0.3, 0.3, 0.1], dtype=torch.double)


def expected_gradient(trainer, pi: torch.Tensor) -> torch.Tensor:
    """Of the term, expected under OLD, in the logits of `pi` [4]."""
    logits = pi.log().requires_grad_()
    tokens = torch.repeat_interleave(torch.arange(4), OLD)[:, None]
    log_pi = logits.log_softmax(0)[tokens]
    found, _ = term(trainer, log_pi, (OLD.double() / 10).log()[tokens], REFERENCE.log()[tokens])
    found.backward()
    return logits.grad


def divergence_gradient(pi: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Of KL(pi || ref), or of KL(ref || pi), in the logits of `pi` [4], from the definition."""
    logits = pi.log().requires_grad_()
    p, q = logits.softmax(0), REFERENCE
    (p * (p / q).log() if reverse else q * (q / p).log()).sum().backward()
    return logits.grad


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dapo", "gspo", "cispo"])
def test_the_expected_gradient_is_that_of_a_divergence(trainers, loss):
    on = OLD.double() / 10

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return torch.allclose(a, b, rtol=0, atol=1e-12)

    for pi in (on, OTHER):
        assert same(expected_gradient(trainers(WEIGHTED, loss), pi), divergence_gradient(pi, reverse=True))
    plain = expected_gradient(trainers(PLAIN, loss), on)
    assert same(plain, divergence_gradient(on, reverse=False))
    assert not same(plain, divergence_gradient(on, reverse=True))
    off = expected_gradient(trainers(PLAIN, loss), OTHER)
    ratio = on / OTHER  # sum over y of old (1 - ref/pi) grad log pi, in the logits
    slopes = on - ratio * REFERENCE
    assert same(off, slopes - OTHER * slopes.sum())
    for reverse in (False, True):
        assert not same(off, divergence_gradient(OTHER, reverse))


@pytest.mark.slow
def test_two_tokens_have_the_divergences_after_the_sampled_prefixes(trainers):
    """Of completions of two tokens out of two, under `pi`: the mean of KL(first) and of KL(second | first)
    with the first token as it was sampled. gspo, whose ratio is the completion's, gives another gradient."""
    old = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.25, 0.75]], dtype=torch.double)
    ref = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], dtype=torch.double)
    start = torch.tensor([[0.5, -0.1], [0.3, 0.2], [-0.4, 0.6]], dtype=torch.double)
    times = {(0, 0): 2, (0, 1): 2, (1, 0): 3, (1, 1): 9}  # of 16
    drawn = [pair for pair, n in times.items() for _ in range(n)]
    places = torch.tensor([[0, 1 + first] for first, _ in drawn]), torch.tensor(drawn)

    def gradient(loss: str) -> torch.Tensor:
        logits = start.clone().requires_grad_()
        found, _ = term(
            trainers(WEIGHTED, loss), logits.log_softmax(1)[places], old.log()[places], ref.log()[places]
        )
        found.backward()
        return logits.grad

    logits = start.clone().requires_grad_()
    p = logits.softmax(1)
    each = (p * (p / ref).log()).sum(1)  # KL of the first token, and of the second after 0 and after 1
    ((each[0] + 0.25 * each[1] + 0.75 * each[2]) / 2).backward()
    for loss in ("grpo", "dapo", "bnpo", "cispo"):
        torch.testing.assert_close(gradient(loss), logits.grad, rtol=0, atol=1e-12)
    assert (gradient("gspo") - logits.grad).abs().max() > 0.01


# ---- the recipe --------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path, tiny):
    return write_recipe(tmp_path, tiny)


def test_the_default_is_what_was_done_before_the_key(recipe):
    plain, named, other = (
        load(recipe, [f"policy={{beta: 0.1{more}}}"]) for more in ("", ", kl: k3_weighted", ", kl: k3")
    )
    assert plain.policy.kl == WEIGHTED and recipe_hash(plain) == recipe_hash(named) != recipe_hash(other)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.kl=k3", "policy.kl = k3 is used only with policy.beta above 0"),
        ("policy.kl=k2", "policy.kl = 'k2' .one of: k3, k3_weighted"),
        (
            "train.extra={use_bias_correction_kl: false}",
            "train.extra.use_bias_correction_kl is not allowed: use policy.kl instead",
        ),
    ],
)
def test_what_is_refused(recipe, override, message):
    with pytest.raises(RequestError, match=message):
        load(recipe, [override])
