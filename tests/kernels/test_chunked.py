"""The chunked back-end against the reference, in fp64 where only the algorithm can differ."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from posttrain_kernels import confidence_limited
from posttrain_kernels.plan import Group, balanced, default_chunk_rows, plan
from posttrain_kernels.spec import REDUCTIONS
from tests.kernels.problems import assert_silenced

MEMBERS = [
    ("confidence", None),
    ("cross_entropy", None),
    ("dft", None),
    ("power", 0.5),
    ("focal", 2.0),
    ("maxrl", 4),
]
TOL = 1e-9  # fp64: rounding of sums of a few hundred terms


def both(solve, same, problem, n=1.0, tol=TOL, chunk_rows=None, **options):
    got = solve(problem, n, backend="torch", chunk_rows=chunk_rows, **options)
    want = solve(problem, n, backend="reference", **options)
    same(got, want, tol)
    return got


# 1: no chunk boundary. 7: one segment and a half. 127: prime. 601: many chunks, a ragged last one.
@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 7, 127, 601])
@pytest.mark.parametrize("chunk_rows", [1, 3, 64, None])
def test_shapes(make, solve, same, tokens, chunk_rows):
    for vocab in (2, 37, 1001):
        both(solve, same, make(tokens, vocab), 8.0, chunk_rows=chunk_rows)


@pytest.mark.parametrize("member,exponent", MEMBERS)
@pytest.mark.parametrize("value", ["exact", "surrogate"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunk_rows", [5, None])
def test_members_values_reductions(make, solve, same, member, exponent, value, reduction, chunk_rows):
    options = {"member": member, "exponent": exponent, "value": value, "reduction": reduction}
    both(solve, same, make(61, seed=3), 8.0, chunk_rows=chunk_rows, upstream=-1.7, **options)


@pytest.mark.parametrize("n", [1.0, 16.0])
def test_a_segment_over_three_chunks(make, solve, same, n):
    """20 rows in chunks of 7: rows 2..17 are one segment, which touches three chunks."""
    problem = make(20)
    ids = torch.tensor([1, 1] + [2] * 16 + [3, 3])
    problem = problem._replace(segment_ids=ids, labels=problem.labels.clamp_min(0))
    both(solve, same, problem, n, chunk_rows=7)
    both(solve, same, problem, n, chunk_rows=7, frozen_head=True)


def test_interleaved_segments(make, solve, same):
    """Ids need not be contiguous: every third token of a segment belongs to another one."""
    problem = make(60)
    ids = torch.arange(60) % 3 + 3 * (torch.arange(60) // 20)
    both(solve, same, problem._replace(segment_ids=ids), 8.0, chunk_rows=9)
    shuffled = ids[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    both(solve, same, problem._replace(segment_ids=shuffled), 8.0, chunk_rows=9)


@pytest.mark.parametrize("chunk_rows", [6, None])
def test_tables_by_segment(make, solve, same, chunk_rows):
    problem = make(100)
    gen = torch.Generator().manual_seed(5)
    size = 30  # ids reach 25: the last five are absent
    n = torch.tensor([1.0, 2.0, 4096.0, 65536.0, 1.5]).repeat(6)
    weights = torch.randn(size, generator=gen)
    weights[::4] = 0
    p = torch.rand(size, generator=gen)
    p[0], p[1] = 0, 1
    for reduction in REDUCTIONS:
        options = {"chunk_rows": chunk_rows, "reduction": reduction}
        both(solve, same, problem, n, segment_weights=weights, **options)
        both(solve, same, problem, n, p=p, value="surrogate", segment_weights=weights, **options)
        both(solve, same, problem, n, p=p, value="surrogate", p_threshold=0.5, **options)
        both(solve, same, problem, n, p_threshold=1e-3, weight_threshold=0.1, **options)
        both(solve, same, problem, n, normalizer=torch.tensor(321), temperature=0.7, **options)
        both(solve, same, problem, 1.0, p_threshold=1e-3, **options)


@pytest.mark.parametrize("upstream", [0.0, -2.5, 1.0, 1e-3])
def test_upstream_scalar(make, solve, same, upstream):
    both(solve, same, make(50), 8.0, chunk_rows=8, upstream=upstream)


def test_backward_twice_through_a_retained_graph(make):
    problem = make(30)
    hidden, weight = problem.hidden.requires_grad_(), problem.weight.requires_grad_()
    loss = confidence_limited(hidden, weight, problem.labels, problem.segment_ids, 8.0).loss
    loss.backward(retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    (loss * 2).backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(hidden.grad, 4 * once[0])
    torch.testing.assert_close(weight.grad, 4 * once[1])


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("tokens", [0, 6])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_trained_is_zero_and_attached(make, solve, backend, tokens, reduction):
    problem = make(tokens)
    problem = problem._replace(labels=torch.full((tokens,), -100))
    for normalizer in (None, 0, 12, torch.tensor(0)):
        options = {"backend": backend, "reduction": reduction, "normalizer": normalizer}
        got = solve(problem, 8.0, **options)
        assert got.output.loss.item() == 0 and got.output.loss.requires_grad
        assert not got.d_hidden.any() and not got.d_weight.any()
        assert not got.output.coef.any() and not got.output.segment_log_probs.any()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("chunk_rows", [4, None])
def test_ignored_rows_are_never_read(make, solve, same, poison, chunk_rows):
    clean = make(40)
    hidden = clean.hidden.clone()
    hidden[clean.labels == -100] = poison
    got = both(solve, same, clean._replace(hidden=hidden), 8.0, chunk_rows=chunk_rows)
    same(got, solve(clean, 8.0, backend="reference"), TOL)
    for tensor in (*got.output, got.d_hidden, got.d_weight):
        assert tensor.isfinite().all()


def test_a_nan_in_a_trained_row_is_seen(make, solve):
    """Gates must not hide it."""
    problem = make(40)
    problem.hidden[int((problem.labels >= 0).nonzero()[0])] = math.nan
    for options in ({}, {"p_threshold": 0.5}, {"weight_threshold": 0.5}):
        assert math.isnan(solve(problem, 8.0, **options).output.loss.item())


def test_strided_hidden(make, solve, same):
    problem = make(50)
    wide = torch.randn(50, 2 * 16 + 3, dtype=torch.float64)
    wide[:, 1:33:2] = problem.hidden
    view = wide[:, 1:33:2]
    assert not view.is_contiguous()
    got = both(solve, same, problem._replace(hidden=view), 8.0, chunk_rows=8)
    same(got, solve(problem, 8.0, backend="reference"), TOL)
    turned = problem.weight.t().contiguous().t()
    same(solve(problem._replace(weight=turned), 8.0), got, TOL)


@pytest.mark.parametrize("dtype,tol", [(torch.float64, TOL), (torch.float32, 3e-5)])
def test_extreme_logits(make, solve, same, dtype, tol):
    """Targets certain (log p = 0), 500 nats down, |z| = 80, all logits equal, columns 0, V - 1."""
    vocab, gaps = 33, [500.0, 80.0, -80.0, 0.0, 500.0, 500.0]
    hidden = torch.eye(6, dtype=dtype)
    weight = torch.zeros(vocab, 6, dtype=dtype)
    labels = torch.tensor([0, vocab - 1, 5, 0, 7, vocab - 1])
    for token, gap in enumerate(gaps):
        weight[labels[token], token] = gap
    weight[3, 4], weight[7, 4] = 500.0, 0.0  # token 4: another column leads by 500
    weight[2, 5] = 500.0  # token 5: the label ties with column 2 at the maximum
    problem = make(6)._replace(hidden=hidden, weight=weight, labels=labels, segment_ids=torch.arange(6) + 1)
    for n in (1.0, 256.0, 65536.0):
        got = both(solve, same, problem, n, tol=tol, reduction="sum", chunk_rows=2)
        assert got.output.log_probs[0] == 0
        assert got.output.log_probs[4].item() == pytest.approx(-500)
        assert got.output.log_probs[3].item() == pytest.approx(-math.log(vocab))
        assert got.output.loss.isfinite()
    assert got.output.coef[0] == 0 and got.output.coef[4] == 1


@pytest.mark.parametrize("chunk_rows", [32, None])
def test_plain_cross_entropy_to_1e_6(make, solve, chunk_rows):
    problem = make(301, 501, dtype=torch.float32)
    hidden = problem.hidden.clone().requires_grad_()
    weight = problem.weight.clone().requires_grad_()
    want = F.cross_entropy(hidden @ weight.t(), problem.labels)
    want.backward()
    for options in ({"n": 1.0}, {"n": 64.0, "member": "cross_entropy"}):
        got = solve(problem, chunk_rows=chunk_rows, **options)
        assert got.output.loss.item() == pytest.approx(want.item(), rel=1e-6)
        assert (got.d_hidden - hidden.grad).norm() <= 1e-6 * hidden.grad.norm()
        assert (got.d_weight - weight.grad).norm() <= 1e-6 * weight.grad.norm()


def test_reference_is_cross_entropy_bit_for_bit(make, solve):
    """N = 1 and token segments: the same numbers as torch, summed in the same order."""
    problem = make(127, 101, dtype=torch.float32)._replace(segment_ids=torch.arange(127) + 1)
    kept = problem.labels >= 0
    hidden = problem.hidden.clone().requires_grad_()
    weight = problem.weight.clone().requires_grad_()
    ce = F.cross_entropy(hidden[kept] @ weight.t(), problem.labels[kept], reduction="none")
    for n in (1.0, torch.ones(127)):
        got = solve(problem, n, backend="reference", reduction="sum")
        assert torch.equal(got.output.log_probs[kept], -ce.detach())
        everything = torch.zeros(127).masked_scatter(kept, ce.detach())
        assert torch.equal(got.output.loss.detach(), everything.sum())
    hidden.grad = weight.grad = None
    ce.sum().backward()
    assert torch.equal(got.d_hidden, hidden.grad) and torch.equal(got.d_weight, weight.grad)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [3, None])
@pytest.mark.parametrize("member,exponent", MEMBERS)
def test_gradcheck(make, member, exponent, chunk_rows):
    problem = make(14, 5, 3)

    def loss(hidden, weight):
        return confidence_limited(
            hidden,
            weight,
            problem.labels,
            problem.segment_ids,
            5.0,
            member=member,
            exponent=exponent,
            chunk_rows=chunk_rows,
            temperature=0.8,
        ).loss

    inputs = problem.hidden.requires_grad_(), problem.weight.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_bitwise_repeatable(make, solve):
    problem = make(200, dtype=torch.float32)
    first, second = (solve(problem, 8.0, chunk_rows=16) for _ in range(2))
    assert torch.equal(first.d_hidden, second.d_hidden)
    assert torch.equal(first.d_weight, second.d_weight)
    assert torch.equal(first.output.loss, second.output.loss)


def test_plan_cuts_where_segments_end():
    """Rows 0-1 | 2-3 | 4-8 (longer than 4) | 9 outside | 10-11, at most 4 rows a group. When
    weights do not wait for the model, every cut is clean and the groups are plain runs of 4."""
    ids = torch.tensor([1, 1, 2, 2, 3, 3, 3, 3, 3, 0, 4, 4])
    assert plan(ids, 4, 4, True) == [Group(0, 4, 1, 2), Group(4, 9, 3, 3, single=True), Group(9, 12, 4, 4)]
    assert [g[:2] for g in plan(ids, 4, 4, False)] == [(0, 4), (4, 8), (8, 12)]
    assert plan(ids, 12, 4, True) == [Group(0, 12, 1, 4)]
    assert plan(ids[:0], 4, 4, True) == []
    nothing = torch.zeros(5, dtype=torch.int64)
    assert plan(nothing, 4, 0, True) == [Group(0, 4, 1, 0), Group(4, 5, 1, 0)]


def test_balanced_chunks():
    """Equal chunks in whole tiles of 256: 8192 rows at most 3533 at once are three chunks of 2731,
    rounded up to 2816, rather than two of 3533 and one of 1126."""
    assert balanced(8192, 3533) == 2816
    assert balanced(3533, 3533) == 3533 and balanced(0, 5) == 1
    assert balanced(10, 7) == 7  # a tile would be more than fits


def test_default_chunk_rows():
    """64 MiB / (32768 * 4 B) = 512; never under 1 nor over 4096; fp64 halves it; CUDA has 2 GiB,
    in whole tiles of 256 rows: 2 GiB / (151936 * 4 B) = 3533."""
    assert default_chunk_rows(32768) == 512
    assert default_chunk_rows(32768, itemsize=8) == 256
    assert default_chunk_rows(20) == 4096
    assert default_chunk_rows(10**9) == 1
    assert default_chunk_rows(262144, "cuda") == 2048
    assert default_chunk_rows(151936, "cuda") == 13 * 256


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_an_impossible_segment_can_be_silenced(solve, backend):
    """-1e20 * 1e20 overflows to a logit of -inf, so token 0 has log p = -inf: L = inf, F = 1. A
    weight of 0, a gate, or an external p of 1 selects 0 for it rather than 0 * inf."""
    assert_silenced(partial(solve, backend=backend))
