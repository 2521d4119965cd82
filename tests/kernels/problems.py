"""Random problems that the kernel tests share, and one way to run a back-end on them.

Also imported by scripts in child processes (`parity_table`, `vocab_worker`), hence no fixtures here.
Left out: the options of a call (`features`), how exact a result must be (`protocol`),
problems with a result computed by hand (`test_reductions`), and Mode B (`test_tokens*`).
"""

import inspect
import math
from typing import NamedTuple

import torch
from torch import Tensor

from posttrain_kernels import LossOutput, confidence_limited


class Problem(NamedTuple):
    hidden: Tensor  # [T, H]
    weight: Tensor  # [V, H]
    labels: Tensor  # [T]
    segment_ids: Tensor  # [T]
    bias: Tensor | None = None  # [V]
    left: Tensor | None = None  # [T, r]
    right: Tensor | None = None  # [V, r]

    def to(self, where: torch.dtype | str) -> "Problem":
        """Another dtype (of what is not an index), or another device."""
        moves = isinstance(where, str)
        return Problem(
            *(t if t is None or not (moves or t.is_floating_point()) else t.to(where) for t in self)
        )

    @property
    def segments(self) -> int:
        return int(self.segment_ids.max())

    def logits_peak(self) -> float:
        """Largest |logit| before any softcap or scale."""
        return (self.hidden.double() @ self.weight.double().t()).abs().max().item()


class Result(NamedTuple):
    output: LossOutput
    d_hidden: Tensor | None
    d_weight: Tensor | None
    d_bias: Tensor | None = None
    d_left: Tensor | None = None
    d_right: Tensor | None = None


def random_problem(
    tokens, vocab=37, width=16, length=4, spread=2.0, seed=0, dtype=torch.float64, bias=False, rank=0
) -> Problem:
    """Logits of standard deviation `spread`; a tenth of the labels ignored; segments of `length`
    tokens with every fifth id outside every segment (0) and ids left unused."""
    gen = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=gen, dtype=torch.float64)
    weight = torch.randn(vocab, width, generator=gen, dtype=torch.float64)
    weight *= spread / width**0.5
    labels = torch.randint(vocab, (tokens,), generator=gen)
    ids = torch.arange(tokens) // length + 1
    ids[ids % 5 == 0] = 0
    labels[torch.rand(tokens, generator=gen) < 0.1] = -100
    problem = Problem(hidden, weight, labels, ids)
    if bias:
        problem = problem._replace(bias=torch.randn(vocab, generator=gen, dtype=torch.float64))
    if rank:
        left = torch.randn(tokens, rank, generator=gen, dtype=torch.float64)
        right = torch.randn(vocab, rank, generator=gen, dtype=torch.float64) / rank**0.5
        problem = problem._replace(left=left, right=right)
    return problem.to(dtype)


def confident(problem: Problem, most: float = 14.0, seed: int = 1) -> Problem:
    """Each segment's targets raised by 0 to `most` nats: log p from near 0 to -20, as in the middle
    of training. Without it every F is 1."""
    gen = torch.Generator().manual_seed(seed)
    gaps = torch.rand(int(problem.segment_ids.max()) + 1, generator=gen).double() * most
    kept = (problem.labels >= 0).nonzero().flatten()
    rows = problem.weight[problem.labels[kept]].double()
    step = gaps[problem.segment_ids[kept]].unsqueeze(1) * rows / rows.square().sum(1, keepdim=True)
    hidden = problem.hidden.clone()
    hidden[kept] = (hidden[kept].double() + step).to(hidden.dtype)
    return problem._replace(hidden=hidden)


def solve(problem: Problem, n=1.0, upstream=1.0, frozen_head=False, frozen_hidden=False, **options) -> Result:
    """Run a back-end and its backward; `upstream` is the scalar the loss is multiplied by."""

    def leaf(tensor, frozen):
        return None if tensor is None else tensor.detach().requires_grad_(not frozen)

    hidden, left = (leaf(t, frozen_hidden) for t in (problem.hidden, problem.left))
    weight, bias, right = (leaf(t, frozen_head) for t in (problem.weight, problem.bias, problem.right))
    if bias is not None:
        options["bias"] = bias
    if left is not None:
        options["low_rank"] = left, right
    out = confidence_limited(hidden, weight, problem.labels, problem.segment_ids, n, **options)
    (out.loss * upstream).backward()
    leaves = hidden, weight, bias, left, right
    return Result(out, *(None if t is None else t.grad for t in leaves))


def assert_same(got: Result, want: Result, tol: float) -> None:
    """Outputs elementwise, gradients in norm (relative to the norm wanted)."""
    for name, a, b in zip(LossOutput._fields, got.output, want.output, strict=True):
        if name == "correct":
            assert torch.equal(a.cpu(), b.cpu())
        else:
            torch.testing.assert_close(
                a.double().cpu(), b.double().cpu(), rtol=tol, atol=tol, msg=lambda m, n=name: f"{n}: {m}"
            )
    for name in Result._fields[1:]:
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert distance(a, b) <= tol or not (a.any() or b.any()), (name, distance(a, b))


def assert_equal(got: Result, want: Result) -> None:
    """Bit for bit."""
    for a, b in zip([*got.output, *got[1:]], [*want.output, *want[1:]], strict=True):
        assert a is b is None or torch.equal(a, b)


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, Frobenius, on the device of `a`."""
    a, b = a.double(), b.to(a.device).double()
    return ((a - b).norm() / b.norm().clamp_min(1e-300)).item()


def remember_builtins() -> None:
    """See `conftest`; also for scripts."""
    from triton.runtime import interpreter

    found: dict = {}

    def patch(package, *rest):
        if package not in found:
            members = inspect.getmembers(package)
            found[package] = [(k, v) for k, v in members if interpreter.tl.core.is_builtin(v)]
        for name, member in found[package]:
            if getattr(package, name) is member:
                interpreter._patch_attr(package, name, member, *rest)

    interpreter._patch_builtin = patch


def assert_silenced(solve) -> None:
    """An impossible segment (logit -inf: L = inf, F = 1) is loud, and silent under a weight of 0, a
    gate, or an external p of 1, each of which selects 0 for it rather than 0 * inf."""
    hidden, weight = torch.eye(2) * 1e20, torch.zeros(3, 2)
    weight[0, 0] = -1e20
    problem = random_problem(2)._replace(
        hidden=hidden, weight=weight, labels=torch.tensor([0, 1]), segment_ids=torch.tensor([1, 2])
    )
    loud = solve(problem, 4.0)
    assert loud.output.loss == math.inf and loud.output.coef[0] == 1
    assert loud.d_hidden.isfinite().all() and loud.d_weight.isfinite().all()
    for options in (
        {"segment_weights": torch.tensor([0.0, 1.0])},
        {"weight_threshold": 1.0},
        {"p": torch.tensor([1.0, 0.0]), "value": "surrogate"},
    ):
        got = solve(problem, 4.0, **options)
        assert got.output.loss.isfinite()
        assert not got.d_hidden[0].any() and got.d_weight.isfinite().all()
