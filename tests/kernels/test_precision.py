"""What low precision and autocast may cost, what is never computed, and what is never allocated."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain_kernels import confidence_limited

MATMULS = torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_


class Watch(TorchDispatchMode):
    """Largest tensor that any operator returned, and how many matmuls ran."""

    def __init__(self):
        super().__init__()
        self.largest, self.matmuls = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.numel())
        if func.overloadpacket in MATMULS:
            self.matmuls += 1
        return out


def step(problem, train_hidden=True, train_head=True, **options):
    hidden = problem.hidden.detach().requires_grad_(train_hidden)
    weight = problem.weight.detach().requires_grad_(train_head)
    with Watch() as watch:
        out = confidence_limited(hidden, weight, problem.labels, problem.segment_ids, 8.0, **options)
        if out.loss.requires_grad:
            out.loss.backward()
    return watch, out, hidden.grad, weight.grad


@pytest.mark.parametrize("length", [4, 200])
def test_no_tensor_of_all_logits(make, length):
    """T x V = 400 * 1000; two buffers of 40 rows are 80 * 1000, and nothing is larger; also when a
    segment spans five chunks. The reference shows that the watch sees what it should."""
    problem = make(400, 1000, length=length, dtype=torch.float32)
    watch, *_ = step(problem, chunk_rows=40)
    assert watch.largest == 2 * 40 * 1000
    assert step(problem, backend="reference")[0].largest == int((problem.labels >= 0).sum()) * 1000


def matmuls(make, **options):
    problem = make(40, length=4, dtype=torch.float32)
    problem = problem._replace(labels=problem.labels.clamp_min(0), segment_ids=torch.arange(40) // 4)
    return step(problem, **options)


def test_three_matmuls_a_chunk(make):
    """40 rows, segments of 4. Chunks of 8: 5 chunks, 15 matmuls. Chunks of 3: ids 1-9 do not fit,
    so 9 segments take 2 chunks twice (2 + 2 logits, 2 + 2 gradients: 8 matmuls) = 72, and the 4
    rows outside every segment take 2 chunks of 3 matmuls: 78."""
    assert matmuls(make, chunk_rows=8)[0].matmuls == 15
    assert matmuls(make, chunk_rows=3)[0].matmuls == 78


def test_known_weights_never_need_the_fourth(make):
    """Cross-entropy in chunks of 3: 14 chunks of 3 matmuls, wherever segments end. Same with p."""
    assert matmuls(make, chunk_rows=3, member="cross_entropy")[0].matmuls == 42
    p = torch.full((9,), 0.5)
    assert matmuls(make, chunk_rows=3, p=p, value="surrogate")[0].matmuls == 42


def test_frozen_inputs_cost_nothing(make):
    watch, _, d_hidden, d_weight = matmuls(make, chunk_rows=8, train_head=False)
    assert watch.matmuls == 10 and d_weight is None and d_hidden is not None
    watch, _, d_hidden, d_weight = matmuls(make, chunk_rows=8, train_hidden=False)
    assert watch.matmuls == 10 and d_hidden is None and d_weight is not None
    watch, out, *_ = matmuls(make, chunk_rows=8, train_hidden=False, train_head=False)
    assert watch.matmuls == 5 and not out.loss.requires_grad
    with torch.no_grad():
        watch, out, *_ = matmuls(make, chunk_rows=3)
    assert watch.matmuls == 20 and not out.loss.requires_grad  # (9 segments + 4 rows) * 2 chunks


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_only_the_loss_carries_gradient(make, solve, backend):
    out = solve(make(20, dtype=torch.float32), 8.0, backend=backend).output
    assert out.loss.requires_grad and out.loss.dim() == 0
    assert not any(t.requires_grad for t in out[1:])
    assert [t.dtype for t in out] == [*[torch.float32] * 5, torch.bool, torch.float32, torch.int64]


def errors(got, want):
    d_hidden = (got.d_hidden.double() - want.d_hidden).norm() / want.d_hidden.norm()
    d_weight = (got.d_weight.double() - want.d_weight).norm() / want.d_weight.norm()
    return d_hidden.item(), d_weight.item()


@pytest.mark.parametrize("spread", [2.0, 20.0])
def test_fp32_against_fp64(make, solve, spread):
    """fp32: 1e-5 for log-probs (relative to |z| / 16), dX and dW in norm."""
    problem = make(127, 1000, 72, spread=spread, dtype=torch.float32)
    got = solve(problem, 64.0, chunk_rows=20)
    want = solve(problem.to(torch.float64), 64.0, backend="reference")
    peak = (problem.hidden @ problem.weight.t()).abs().max().item()
    gap = (got.output.log_probs.double() - want.output.log_probs).abs().max().item()
    assert gap <= 1e-5 * max(1, peak / 16)
    assert max(errors(got, want)) <= 1e-5


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("spread", [2.0, 20.0])
def test_bf16_inputs(make, solve, spread, autocast):
    """bf16 hidden and head, the same bf16 numbers in fp64 as the truth: |d log p| <= 1e-4 max(1,
    |z|/16), dX and dW within 4e-3 (their own rounding to bf16) and within 1.25 of plain torch's
    error, F within 1 % where F > 1e-4. Autocast must not lower the logits to bf16 again."""
    problem = make(127, 1000, 72, spread=spread, dtype=torch.bfloat16)
    want = solve(problem.to(torch.float64), 64.0, backend="reference")
    plain = solve(problem, 64.0, backend="reference")
    scope = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with scope:
        got = solve(problem, 64.0, chunk_rows=20)
    assert got.d_hidden.dtype == got.d_weight.dtype == torch.bfloat16
    peak = (problem.hidden.double() @ problem.weight.double().t()).abs().max().item()
    gap = (got.output.log_probs.double() - want.output.log_probs).abs().max().item()
    assert gap <= 1e-4 * max(1, peak / 16)
    for mine, theirs in zip(errors(got, want), errors(plain, want), strict=True):
        assert mine <= 4e-3 and mine <= 1.25 * theirs
    visible = want.output.coef > 1e-4
    ratio = got.output.coef.double()[visible] / want.output.coef[visible]
    assert visible.any() and (ratio - 1).abs().max() <= 0.01


def test_autocast_leaves_fp32_inputs_alone(make, solve):
    """The reference's backward is autograd's own, and follows autocast if called inside it."""
    problem = make(60, dtype=torch.float32)
    want = solve(problem, 8.0)
    for backend in ("torch", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            got = solve(problem, 8.0, backend=backend)
        torch.testing.assert_close(got.output.log_probs, want.output.log_probs, rtol=0, atol=1e-5)
        if backend == "torch":
            assert max(errors(got, want)) < 1e-5


def test_fp16_gradients_survive_until_the_loss_scale(make, solve):
    """A gradient of about 1e-8 is zero in fp16; times a loss scale of 65536 it is not. Kept in fp32
    until backward it comes out as it should."""
    problem = make(40, dtype=torch.float16)
    got = solve(problem, 8.0, upstream=65536.0, normalizer=1e7)
    want = solve(problem.to(torch.float64), 8.0, upstream=65536.0, normalizer=1e7)
    assert got.d_hidden.dtype == torch.float16
    assert max(errors(got, want)) <= 2e-3


def test_mixed_precision_inputs(make, solve):
    """A bf16 hidden state under a fp32 head, as autocast produces: gradients in those dtypes."""
    problem = make(40, dtype=torch.float32)
    problem = problem._replace(hidden=problem.hidden.bfloat16())
    got = solve(problem, 8.0)
    assert got.d_hidden.dtype == torch.bfloat16 and got.d_weight.dtype == torch.float32
    want = solve(problem.to(torch.float64), 8.0)
    assert errors(got, want)[1] <= 1e-5
