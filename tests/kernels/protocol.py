"""How far a result may be from the fp64 reference, and plain torch to compare with.

Left out: bounds on time and memory (`test_gpu`, `test_precision`).
"""

from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from posttrain_kernels import reference
from posttrain_kernels.family import value_and_weight
from tests.kernels.problems import Problem, Result, distance, solve

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Multiply(torch.autograd.Function):
    """x w^T to fp32; in backward the gradient is rounded to the inputs' dtype first, which is what
    tensor cores need."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.float() @ w.float().t()

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        grad = grad.to(x.dtype).float()
        return (grad @ w.float()).to(x.dtype), (grad.t() @ x.float()).to(w.dtype)


def plain_torch(problem: Problem, **options) -> Result:
    """All logits in fp32, autograd, products of low-precision operands: what a careful user of plain
    torch gets. (`reference` itself also multiplies in fp32, which no tensor core does for bf16.)"""

    def logits(inputs, kept, view):
        z = _Multiply.apply(inputs.hidden[kept], inputs.weight)
        if inputs.left is not None:
            z = z + _Multiply.apply(inputs.left[kept], inputs.right)
        return view.apply(z)

    with mock.patch.object(reference, "_logits", logits):
        return solve(problem, **options, backend="reference")


class Errors(NamedTuple):
    """Against the fp64 reference on the same numbers. None where a gradient was not needed."""

    log_probs: float  # largest difference
    weight: float  # of F: largest relative difference where F > 1e-4
    given: float  # of F, relative, given this result's own log p of the segment
    loss: float  # relative
    gradients: dict[str, float]  # by field of `Result`, relative in norm


def errors(got: Result, want: Result, options: dict) -> Errors:
    coef, exact = got.output.coef.double().cpu(), want.output.coef.double().cpu()
    visible = exact.abs() > 1e-4
    ratio = (coef[visible] / exact[visible] - 1).abs()
    # F once more, in fp64, from the log p that this back-end found; closed segments have none.
    logp = got.output.segment_log_probs.double().cpu()
    known = logp if options.get("p") is None else options["p"].double().log()
    n = options["n"].double() if isinstance(options["n"], Tensor) else options["n"]
    f = value_and_weight(known, n, options.get("member", "confidence"), options.get("exponent"))[1]
    open_ = (coef > 1e-37) & (f > 1e-37)
    given = (coef[open_] / f[open_] - 1).abs()
    return Errors(
        (got.output.log_probs.double().cpu() - want.output.log_probs.double().cpu()).abs().max().item(),
        ratio.max().item() if ratio.numel() else 0.0,
        given.max().item() if given.numel() else 0.0,
        distance(got.output.loss, want.output.loss),
        {
            name: distance(getattr(got, name), getattr(want, name))
            for name in Result._fields[1:]
            if getattr(want, name) is not None
        },
    )


def assert_protocol(
    got: Result, want: Result, plain: Result | None, dtype: torch.dtype, peak: float, options: dict
) -> Errors:
    """The tolerances of the project. `plain`: `plain_torch` on the same low-precision inputs, whose
    error bounds ours; `peak`: largest |logit|."""
    found = errors(got, want, options)
    scale = max(1.0, peak / 16)
    assert found.given <= 3e-5, found
    exact = (1e-5 if dtype == torch.float32 else 1e-4) * scale
    for name in ("entropy", "log_z"):
        a, b = getattr(got.output, name), getattr(want.output, name)
        assert (a.double().cpu() - b.cpu()).abs().max() <= exact, name
    assert got.output.skipped.item() == want.output.skipped.item()
    wrong = (got.output.correct.cpu() != want.output.correct.cpu()).sum().item()
    assert wrong <= (0 if dtype == torch.float32 else 1), "of what the largest logit decides"
    if dtype == torch.float32:
        assert found.log_probs <= exact, found
        assert found.loss <= 3e-5 * scale, found
        assert all(e <= 1e-5 * scale for e in found.gradients.values()), found
        return found
    assert found.log_probs <= exact, found
    assert found.weight <= 0.01, found
    assert all(e <= 4e-3 for e in found.gradients.values()), found
    # We round D, the scaled X and the result; plain torch the scaled D and the result: sqrt(3/2) =
    # 1.22 at worst on average, which only hidden states and head are large enough to show. A z-loss
    # is added to a D that is rounded already: one more.
    theirs = errors(plain, want, options).gradients
    for name in found.gradients.keys() & {"d_hidden", "d_weight"}:
        ratio = found.gradients[name] / theirs[name]
        assert ratio <= 1.25 or options.get("z_loss"), (name, ratio)
    return found
