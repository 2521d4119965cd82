"""Mode B in the tests: one way to run it, its features, and how far a result may be from fp64."""

from typing import NamedTuple

import torch
from torch import Tensor

from posttrain_kernels import TokenOutput, token_log_probs
from tests.kernels.problems import Problem, distance

CARRIERS = ("log_probs", "entropy", "log_z")  # the outputs that carry gradient
GRADIENTS = ("hidden", "weight", "bias", "left", "right")


class TokenResult(NamedTuple):
    output: TokenOutput
    gradients: dict[str, Tensor]  # by field of `Problem`; only what was asked for


FEATURES: dict[str, tuple[dict, dict]] = {  # options of `solve_tokens`, and of `random_problem`
    "plain": ({}, {}),
    "bias": ({}, {"bias": True}),
    "LoRA on the head": ({}, {"rank": 3}),
    "bias and LoRA, trained alone": ({"frozen": ("hidden", "weight")}, {"bias": True, "rank": 3}),
    "softcap": ({"softcap": 3.0}, {}),
    "logit scale": ({"logit_scale": -0.25}, {}),
    "temperature": ({"temperature": 0.7}, {}),
    "everything": ({"softcap": 3.0, "logit_scale": 0.5, "temperature": 0.7}, {"bias": True, "rank": 3}),
    "softcap without entropy": ({"softcap": 3.0, "used": ("log_probs", "log_z")}, {"bias": True}),
    "frozen head": ({"frozen": ("weight", "bias", "right")}, {"bias": True, "rank": 3}),
    "frozen hidden states": ({"frozen": ("hidden", "left")}, {"bias": True, "rank": 3}),
    "log-probabilities alone": ({"used": ("log_probs",)}, {}),
    "entropy alone": ({"used": ("entropy",)}, {}),
    "log Z alone": ({"used": ("log_z",)}, {}),
    "slices of a fifth": ({"chunk_rows": 8}, {"bias": True}),
    "slices of one column": ({"chunk_rows": 1}, {}),
}


def random_upstream(tokens: int, seed: int = 3) -> Tensor:
    """[3, T], any sign, a quarter of it zero."""
    gen = torch.Generator().manual_seed(seed)
    upstream = torch.randn(3, tokens, generator=gen)
    upstream[torch.rand(3, tokens, generator=gen) < 0.25] = 0
    return upstream


def solve_tokens(
    problem: Problem, upstream: Tensor | None = None, used=CARRIERS, frozen=(), **options
) -> TokenResult:
    """Run a back-end, and backward of sum(upstream * outputs) over the outputs in `used`."""
    upstream = random_upstream(len(problem.labels)) if upstream is None else upstream
    upstream = upstream.to(problem.hidden.device)
    leaves = {name: getattr(problem, name) for name in GRADIENTS}
    leaves = {
        name: t.detach().requires_grad_(name not in frozen) for name, t in leaves.items() if t is not None
    }
    if problem.left is not None:
        options["low_rank"] = leaves["left"], leaves["right"]
    out = token_log_probs(
        leaves["hidden"], leaves["weight"], problem.labels, bias=leaves.get("bias"), **options
    )
    rows = zip(CARRIERS, upstream, strict=True)
    sum((getattr(out, name) * up).sum() for name, up in rows if name in used).backward()
    return TokenResult(out, {k: t.grad for k, t in leaves.items() if t.grad is not None})


def assert_tokens(got: TokenResult, want: TokenResult, tol: float, gradients: float = 0) -> None:
    """Outputs elementwise, gradients in norm (relative to the norm wanted) within `gradients`."""
    for name in CARRIERS:
        torch.testing.assert_close(
            getattr(got.output, name).double().cpu(),
            getattr(want.output, name).double().cpu(),
            rtol=tol,
            atol=tol,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    assert torch.equal(got.output.correct.cpu(), want.output.correct.cpu())
    assert got.gradients.keys() == want.gradients.keys()
    for name, b in want.gradients.items():
        a = got.gradients[name]
        rounding = (a.double() - b.double()).abs().max() <= 1e-14  # of a nearly certain row
        assert distance(a, b) <= (gradients or tol) or rounding, (name, distance(a, b))


def low_precision_gradients(problem: Problem, upstream: Tensor, **options) -> dict[str, Tensor]:
    """What plain torch leaves with fp32 logits: every gradient exact but for the rounding of G to
    the type of the matmuls and of the result to its parameter."""
    low = problem.hidden.dtype
    exact = problem.to(torch.float64)
    eye = torch.eye(len(exact.weight), dtype=torch.float64)
    z = exact.hidden @ exact.weight.t()  # [T, V]
    g = solve_tokens(
        Problem(z, eye, exact.labels, exact.segment_ids), upstream, backend="reference", **options
    ).gradients["hidden"]
    g = g.to(low).double()
    return {"hidden": (g @ exact.weight).to(low), "weight": (g.t() @ exact.hidden).to(low)}
