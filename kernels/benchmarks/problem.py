"""The inputs of the head benchmark, the loss every variant computes, and the error against fp64.

    log p_s = sum of token log-probabilities      L_s, F_s = family(log p_s, N)
    loss = sum of L_s / T                         dL_s / dlog p_s = -F_s

`random`: independent normal inputs; every token has a probability near 1/V, so F = 1. `planted`: the hidden
state of a token points to its label, so that tokens are likely and F of the segments is anywhere in (0, 1),
as in a model that is being trained. Never zeros, which are computed faster.

Left out: ignored tokens. Some variants drop them at the cost of a gather and others compute them, which would
mix two effects.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain_kernels import OnHost, confidence_limited
from posttrain_kernels.family import value_and_weight

INPUTS = ("random", "planted")
SEGMENT = 16  # tokens per segment: a short answer
WEIGHT_SCALE = 0.02  # the usual standard deviation of a freshly made head


@dataclass
class Problem:
    """T tokens, hidden size H, V words, S segments."""

    hidden: Tensor  # [T, H], requires grad
    weight: Tensor  # [V, H], requires grad
    labels: Tensor  # [T] int64
    segment_ids: Tensor  # [T] int64, 1..S
    segments: int
    n: float

    @functools.cached_property
    def host(self) -> OnHost:
        """The copies that a trainer has before it moves a batch to the device."""
        return OnHost(self.labels.cpu(), self.segment_ids.cpu())

    @property
    def shape(self) -> tuple[int, int, int]:
        return *self.hidden.shape, self.weight.shape[0]

    def forget(self) -> None:
        self.hidden.grad = self.weight.grad = None


def make_problem(
    tokens: int,
    hidden_size: int,
    vocab: int,
    dtype: torch.dtype,
    device: torch.device,
    inputs: str = "planted",
    n: float = 256.0,
    seed: int = 0,
) -> Problem:
    draw = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=device)

    weight = (normal(vocab, hidden_size) * WEIGHT_SCALE).to(dtype)  # [V, H]
    hidden = normal(tokens, hidden_size)  # [T, H]
    labels = torch.randint(vocab, (tokens,), generator=draw, device=device)
    ids = torch.arange(tokens, device=device) // SEGMENT + 1
    count = -(-tokens // SEGMENT)
    if inputs == "planted":
        # Log-odds of the label: a level from 0 to 5 for each segment, 1 up or down within it.
        level = 5 * torch.rand(count, generator=draw, device=device)
        odds = level[ids - 1] + normal(tokens)
        rows = weight[labels].float()
        height = math.log(vocab) + odds  # of the label's logit above the others' mean
        others = WEIGHT_SCALE**2 * hidden_size + height**2 / hidden_size  # their variance
        hidden += rows * ((height + others / 2) / rows.square().sum(1)).unsqueeze(1)
    elif inputs != "random":
        raise ValueError(f"inputs: {inputs!r} is not one of {', '.join(INPUTS)}")
    hidden = hidden.to(dtype).requires_grad_()
    return Problem(hidden, weight.requires_grad_(), labels, ids, count, n)


def segment_loss(log_probs: Tensor, problem: Problem) -> Tensor:
    """The loss from differentiable log-probabilities [T]: value L, slope -F, by autograd."""
    ce = -log_probs.float()
    ce = ce.new_zeros(problem.segments).index_add(0, problem.segment_ids - 1, ce)  # [S]
    value, slope = value_and_weight(-ce.detach(), problem.n)
    return (value + slope * (ce - ce.detach())).sum() / log_probs.numel()


def reference(problem: Problem) -> tuple[float, Tensor, Tensor]:
    """(loss, dX, dW) in fp64 on the host, from the rounded inputs."""
    hidden, weight = (t.detach().double().cpu().requires_grad_() for t in (problem.hidden, problem.weight))
    out = confidence_limited(
        hidden,
        weight,
        problem.labels.cpu(),
        problem.segment_ids.cpu(),
        problem.n,
        num_segments=problem.segments,
        backend="reference",
    )
    out.loss.backward()
    return out.loss.item(), hidden.grad, weight.grad


def errors(problem: Problem, loss: Tensor, truth: tuple[float, Tensor, Tensor]) -> dict[str, float]:
    """Relative errors of the loss and, in the 2-norm, of the gradients that `problem` now has."""
    value, d_hidden, d_weight = truth

    def gap(found: Tensor, right: Tensor) -> float:
        return ((found.double().cpu() - right).norm() / right.norm()).item()

    return {
        "loss": abs(loss.item() - value) / abs(value),
        "d_hidden": gap(problem.hidden.grad, d_hidden),
        "d_weight": gap(problem.weight.grad, d_weight),
    }


def mean_weight(problem: Problem) -> float:
    """Mean F over the segments: the share of the cross-entropy gradient that is left."""
    with torch.no_grad():
        out = confidence_limited(
            problem.hidden,
            problem.weight,
            problem.labels,
            problem.segment_ids,
            problem.n,
            num_segments=problem.segments,
            backend="torch",
        )
    return out.coef.mean().item()


class Floor:
    """The three matmuls of the head, Z = X W^T, dX = D W, dW = D^T X, in the inputs' dtype: 6TVH."""

    def __init__(self, problem: Problem) -> None:
        self.hidden, self.weight = problem.hidden.detach(), problem.weight.detach()
        tokens, _, vocab = problem.shape
        self.delta = torch.randn(tokens, vocab, dtype=self.hidden.dtype, device=self.hidden.device)  # [T, V]
        self.logits = torch.empty_like(self.delta)
        self.d_hidden = torch.empty_like(self.hidden)
        self.d_weight = torch.empty_like(self.weight)

    def __call__(self) -> None:
        torch.mm(self.hidden, self.weight.t(), out=self.logits)
        torch.mm(self.delta, self.weight, out=self.d_hidden)
        torch.mm(self.delta.t(), self.hidden, out=self.d_weight)


def head_flops(tokens: int, hidden_size: int, vocab: int) -> float:
    """Operations of the three matmuls."""
    return 6.0 * tokens * hidden_size * vocab
