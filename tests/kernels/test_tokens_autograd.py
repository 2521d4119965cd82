"""Mode B under autograd, in low precision, and in how much memory; and the merging of statistics.

Values in fp32 and fp64 are in `test_tokens`.
"""

import functools
import itertools
import math

import pytest
import torch

from posttrain_kernels import token_log_probs
from posttrain_kernels.rows import Partial, merge, stats_of
from posttrain_kernels.rows_torch import Rows
from posttrain_kernels.spec import View
from tests.kernels.problems import distance, random_problem
from tests.kernels.test_precision import Watch
from tests.kernels.token_cases import (
    CARRIERS,
    assert_tokens,
    low_precision_gradients,
    random_upstream,
    solve_tokens,
)

# ---- autograd ----


def test_upstream_that_is_expanded_absent_or_zero(place):
    """sum() sends back a stride of 0; an output that nobody uses sends nothing."""
    problem = random_problem(20, 30, dtype=torch.float32).to(place.device)
    ones = torch.ones(3, 20)
    got = solve_tokens(problem, ones, used=("log_probs",), backend=place.backend)
    hidden = problem.hidden.clone().requires_grad_()
    out = token_log_probs(hidden, problem.weight, problem.labels, backend=place.backend)
    out.log_probs.sum().backward()
    assert torch.equal(hidden.grad, got.gradients["hidden"])
    zero = solve_tokens(problem, ones * 0, backend=place.backend)
    assert not any(g.any() for g in zero.gradients.values())


def test_only_what_is_asked_is_computed():
    """4 matmuls a slice; a frozen side saves one; no gradient at all leaves one."""
    problem = random_problem(20, 40, dtype=torch.float32)

    def matmuls(*wanted):
        hidden, weight = problem.hidden.clone(), problem.weight.clone()
        leaves = {"hidden": hidden, "weight": weight}
        for name in wanted:
            leaves[name].requires_grad_()
        with Watch() as watch:
            out = token_log_probs(hidden, weight, problem.labels, chunk_rows=5, backend="torch")
            if wanted:
                torch.autograd.grad(out.log_probs.sum(), [leaves[n] for n in wanted])
        return watch.matmuls

    # 20 trained rows: slices of 5 * 40 // 20 = 10 columns, so 4 of them
    assert int((problem.labels >= 0).sum()) == 20
    assert matmuls("hidden", "weight") == 4 * 4
    assert matmuls("hidden") == matmuls("weight") == 4 * 3
    assert matmuls() == 4


def test_backward_twice_and_never_of_backward():
    problem = random_problem(20, 30)
    hidden, weight = problem.hidden.requires_grad_(), problem.weight.requires_grad_()
    out = token_log_probs(hidden, weight, problem.labels, backend="torch")
    loss = (out.log_probs - 0.1 * out.entropy).sum()
    (first,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(loss, hidden, retain_graph=True, create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="once_differentiable|differentiate twice|grad_fn"):
        second.sum().backward()


def test_changing_an_output_in_place_is_allowed(place):
    """Losses mask what they get; backward reads its own copies."""
    problem = random_problem(20, 30, dtype=torch.float32)
    problem = problem._replace(labels=problem.labels.clamp_min(0)).to(place.device)
    grads = []
    for change in (lambda t: t * 2, lambda t: t.mul_(2)):
        hidden = problem.hidden.clone().requires_grad_()
        out = token_log_probs(hidden, problem.weight, problem.labels, backend=place.backend)
        sum(change(getattr(out, name)).sum() for name in CARRIERS).backward()
        grads.append(hidden.grad)
    assert torch.equal(*grads)


def test_a_parameter_whose_storage_was_swapped_is_read_again(place):
    """ZeRO-3 and FSDP2 take a parameter away between forward and backward and bring it back. What is
    saved is the parameter and not what it held, which would stay in memory on every rank."""
    problem = random_problem(20, 30, dtype=torch.float32).to(place.device)
    weight = torch.nn.Parameter(problem.weight.clone())
    hidden = problem.hidden.clone().requires_grad_()
    out = token_log_probs(hidden, weight, problem.labels, backend=place.backend)
    weight.data = torch.full_like(weight, math.nan)
    weight.data = problem.weight.clone()
    saved = out.log_probs.grad_fn.saved_tensors
    assert any(t is not None and t.data_ptr() == weight.data_ptr() for t in saved)
    (out.log_probs * random_upstream(20)[0].to(place.device)).sum().backward()
    want = solve_tokens(problem, used=("log_probs",), backend=place.backend)
    assert torch.equal(hidden.grad, want.gradients["hidden"])
    assert torch.equal(weight.grad, want.gradients["weight"])


# ---- precision and memory ----


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [2.0, 20.0])
def test_low_precision(place, dtype, spread, autocast):
    """bf16 and fp16, the same numbers in fp64 as the truth: |d log p| <= 1e-4 max(1, |z|/16), dX
    and dW within 4e-3 and within 1.25 of plain torch's error with fp32 logits. Autocast to the same
    type changes nothing: the logits stay in fp32."""
    problem = random_problem(63, 200, 72, spread=spread, dtype=dtype)
    upstream = random_upstream(63)
    with torch.autocast(place.device, dtype, enabled=autocast):
        got = solve_tokens(problem.to(place.device), upstream, backend=place.backend)
    want = solve_tokens(problem.to(torch.float64), upstream, backend="reference")
    plain = low_precision_gradients(problem, upstream)
    limit = 1e-4 * max(1, problem.logits_peak() / 16)
    for name in CARRIERS:
        gap = (getattr(got.output, name).double().cpu() - getattr(want.output, name)).abs().max()
        assert gap <= limit, name
    for name, exact in want.gradients.items():
        mine, theirs = distance(got.gradients[name], exact), distance(plain[name], exact)
        assert got.gradients[name].dtype == dtype
        assert mine <= 4e-3 and mine <= 1.25 * theirs, (name, mine, theirs)


@pytest.mark.parametrize("size", [1e-7, 1e4])
def test_fp16_neither_vanishes_nor_overflows(place, size):
    """Upstream of 1e-7 makes G of 1e-9, which fp16 does not have; the inputs are large enough that
    the results (1e-6 and more) are fp16 numbers. 1e4 would overflow: 40 rows * 1e4 > 65504."""
    scale = 4096.0 if size < 1 else 2**-10
    problem = random_problem(40, 50)
    problem = problem._replace(hidden=problem.hidden * scale, weight=problem.weight / scale)
    problem = problem.to(torch.float16)
    upstream = random_upstream(40) * size
    options = {"upstream": upstream, "frozen": ("hidden",)}
    got = solve_tokens(problem.to(place.device), backend=place.backend, **options)
    want = solve_tokens(problem.to(torch.float64), backend="reference", **options)
    assert distance(got.gradients["weight"], want.gradients["weight"]) <= 4e-3


def test_mixed_inputs_under_autocast(place):
    """fp32 head, bf16 hidden state: autocast multiplies in bf16 and the head's gradient is fp32."""
    problem = random_problem(40, 60, dtype=torch.float32)
    problem = problem._replace(hidden=problem.hidden.bfloat16(), weight=problem.weight.bfloat16().float())
    with torch.autocast(place.device, torch.bfloat16):
        got = solve_tokens(problem.to(place.device), backend=place.backend)
    want = solve_tokens(problem.to(torch.float64), backend="reference")
    assert got.gradients["hidden"].dtype == torch.bfloat16
    assert got.gradients["weight"].dtype == torch.float32
    assert_tokens(got, want, 1e-4, gradients=4e-3)


@pytest.mark.parametrize("chunk_rows", [40, None])
def test_no_tensor_of_all_logits(chunk_rows, monkeypatch):
    """360 trained rows of 1000 logits are 360,000. chunk_rows = 40: slices of 40,000 // 360 = 111
    columns; two such buffers. By budget: 2.2 MB over 8 bytes * 360 = 763 columns, in whole 256."""
    problem = random_problem(400, 1000, dtype=torch.float32)
    trained = int((problem.labels >= 0).sum())
    monkeypatch.setattr("posttrain_kernels.plan.CHUNK_BYTES", {"cpu": 763 * 8 * trained})
    with Watch() as watch:
        solve_tokens(problem, backend="torch", chunk_rows=chunk_rows)
    columns = 512 if chunk_rows is None else 40 * 1000 // trained
    assert watch.largest == 2 * trained * columns


# ---- statistics of parts ----


def test_merging_parts_of_a_row():
    """Parts in any order give the statistics of the whole: one is lower by 2 nats, one by 300, and
    one is all -inf: it adds nothing."""
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(5, 16, generator=gen, dtype=torch.float64)
    z[:, 4:8] -= 2
    z[:, 8:12] -= 300
    z[:, 12:] = -math.inf
    labels = torch.tensor([0, 3, 5, 9, 1])

    def part(start, stop):
        ops = Rows(5, stop - start, View(), z.dtype, z.dtype, "cpu")
        own = torch.where((labels >= start) & (labels < stop), labels - start, -1)
        ops.logits(5).copy_(z[:, start:stop])
        return ops.partial(ops.logits(5), own)

    parts = [part(0, 4), part(4, 8), part(8, 12), part(12, 16)]
    want = stats_of(part(0, 12))
    for order in itertools.permutations(parts):
        a, b, c, d = order
        for merged in (functools.reduce(merge, order), merge(merge(a, b), merge(c, d))):
            assert isinstance(merged, Partial)
            for x, y in zip(stats_of(merged), want, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-14, atol=1e-14)
