"""Problems of every shape the kernel tests share, and one way to run a back-end on them."""

import os
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

# Triton decides when a kernel is defined whether to interpret it: before the first import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from posttrain_kernels import LossOutput, confidence_limited


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Problem(NamedTuple):
    hidden: Tensor  # [T, H]
    weight: Tensor  # [V, H]
    labels: Tensor  # [T]
    segment_ids: Tensor  # [T]

    def to(self, dtype: torch.dtype) -> "Problem":
        return self._replace(hidden=self.hidden.to(dtype), weight=self.weight.to(dtype))


class Result(NamedTuple):
    output: LossOutput
    d_hidden: Tensor | None
    d_weight: Tensor | None


@pytest.fixture
def make():
    """make(T, V, H, ...): random logits of standard deviation `spread`; a tenth of the labels
    ignored; segments of `length` tokens with every fifth id outside every segment (0) and ids left
    unused."""

    def build(tokens, vocab=37, width=16, length=4, spread=2.0, seed=0, dtype=torch.float64):
        gen = torch.Generator().manual_seed(seed)
        hidden = torch.randn(tokens, width, generator=gen, dtype=torch.float64)
        weight = torch.randn(vocab, width, generator=gen, dtype=torch.float64)
        weight *= spread / width**0.5
        labels = torch.randint(vocab, (tokens,), generator=gen)
        ids = torch.arange(tokens) // length + 1
        ids[ids % 5 == 0] = 0
        labels[torch.rand(tokens, generator=gen) < 0.1] = -100
        return Problem(hidden, weight, labels, ids).to(dtype)

    return build


@pytest.fixture
def solve():
    """Run a back-end and its backward; `upstream` is the scalar the loss is multiplied by."""

    def run(problem: Problem, n=1.0, upstream=1.0, frozen_head=False, **options) -> Result:
        hidden = problem.hidden.detach().requires_grad_()
        weight = problem.weight.detach().requires_grad_(not frozen_head)
        output = confidence_limited(
            hidden, weight, problem.labels, problem.segment_ids, n, **options
        )
        (output.loss * upstream).backward()
        return Result(output, hidden.grad, weight.grad)

    return run


@pytest.fixture
def same():
    """Two results agree: outputs elementwise, gradients in norm (relative to the norm wanted)."""

    def check(got: Result, want: Result, tol: float) -> None:
        for name, a, b in zip(LossOutput._fields, got.output, want.output, strict=True):
            if name == "correct":
                assert torch.equal(a, b)
            else:
                torch.testing.assert_close(
                    a.double(), b.double(), rtol=tol, atol=tol, msg=lambda m, n=name: f"{n}: {m}"
                )
        for name in ("d_hidden", "d_weight"):
            a, b = getattr(got, name), getattr(want, name)
            assert (a is None) == (b is None), name
            if a is not None:
                error = (a.double() - b.double()).norm()
                assert error <= tol * b.double().norm() + 1e-30, (name, float(error))

    return check
