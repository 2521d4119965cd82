"""Label smoothing and the entropy bonus: by hand, against torch's own cross-entropy and entropy, and every
feature against the reference.

By hand: V = 3, label 0, q = (1/2, 1/4, 1/4), so -log q = (1, 2, 2) ln 2.
    smoothed, eps = 0.3:   0.7 * 1 + 0.3 * 5/3 = 1.2 ln 2;   by the logits q - 0.7 (1, 0, 0) - 0.1 =
                           (-0.3, 0.15, 0.15)
    entropy H:             1/2 * 1 + 1/4 * 2 + 1/4 * 2 = 1.5 ln 2;   -dH = q (log q + H) =
                           (1/2 * 0.5, 1/4 * -0.5, 1/4 * -0.5) ln 2 = (0.25, -0.125, -0.125) ln 2
"""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical

from posttrain_kernels import backends, chunked, confidence_limited, count, shaped
from posttrain_kernels.rows import RowStats
from posttrain_kernels.spec import REDUCTIONS, View
from tests.kernels.features import FEATURES, SHAPED
from tests.kernels.problems import assert_same, distance, random_problem, solve
from tests.kernels.protocol import assert_protocol, plain_torch

LN2 = math.log(2)
CE = {"member": "cross_entropy"}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize(
    ("options", "loss", "gradient"),
    [
        ({**CE, "label_smoothing": 0.3}, 1.2 * LN2, (-0.3, 0.15, 0.15)),
        ({"entropy_bonus": 0.4}, (1 - 0.4 * 1.5) * LN2, (-0.5 + 0.1 * LN2, *[0.25 - 0.05 * LN2] * 2)),
        (
            {**CE, "label_smoothing": 0.3, "entropy_bonus": 0.4},
            (1.2 - 0.4 * 1.5) * LN2,
            (-0.3 + 0.1 * LN2, *[0.15 - 0.05 * LN2] * 2),
        ),
        # log Z = ln 8 for the logits ln (4, 2, 2): 0.1 * 9 ln^2 2, and 0.2 * 3 ln 2 q.
        (
            {**CE, "label_smoothing": 0.3, "entropy_bonus": 0.4, "z_loss": 0.1},
            (1.2 - 0.4 * 1.5 + 0.9 * LN2) * LN2,
            (-0.3 + 0.1 * LN2 + 0.3 * LN2, *[0.15 - 0.05 * LN2 + 0.15 * LN2] * 2),
        ),
    ],
)
def test_by_hand(backend, options, loss, gradient):
    weight = torch.tensor([[4.0], [2.0], [2.0]], dtype=torch.float64).log().requires_grad_()
    hidden, one = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)
    out = confidence_limited(hidden, weight, one * 0, one, backend=backend, **options)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(loss, rel=1e-12)
    assert weight.grad.flatten().tolist() == pytest.approx(gradient, rel=1e-12)
    assert out.log_probs.item() == pytest.approx(-LN2) and out.coef.item() == 1, "those of the label"


def torch_loss(problem, smoothing, bonus, reduction) -> torch.Tensor:
    """Of plain torch: per token, then summed with a weight each."""
    logits = problem.hidden @ problem.weight.t()
    kept = problem.labels >= 0
    each = F.cross_entropy(
        logits, problem.labels, reduction="none", ignore_index=-100, label_smoothing=smoothing
    )
    each = (each - bonus * Categorical(logits=logits).entropy())[kept]
    ids = problem.segment_ids[kept]
    if reduction == "length_mean":
        lengths = torch.bincount(ids)[ids]
        each = torch.where(ids > 0, each / lengths, each)
    units = {
        "sum": 1,
        "token_mean": int(kept.sum()),
        "segment_mean": len(ids[ids > 0].unique()) + int((ids == 0).sum()),
    }
    return each.sum() / max(1, units.get(reduction, units["segment_mean"]))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocab=st.integers(2, 70),
    smoothing=st.one_of(st.just(0.0), st.floats(1e-6, 0.999)),
    bonus=st.one_of(st.just(0.0), st.floats(1e-6, 3.0)),
    reduction=st.sampled_from(REDUCTIONS),
    chunk_rows=st.sampled_from([None, 1, 3, 7]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
def test_equals_torch(tokens, vocab, smoothing, bonus, reduction, chunk_rows, dtype, seed):
    problem = random_problem(tokens, vocab, seed=seed)
    want = problem._replace(
        hidden=problem.hidden.clone().requires_grad_(), weight=problem.weight.clone().requires_grad_()
    )
    loss = torch_loss(want, smoothing, bonus, reduction)
    loss.backward()
    got = solve(
        problem.to(dtype),
        backend="torch",
        label_smoothing=smoothing,
        entropy_bonus=bonus,
        reduction=reduction,
        chunk_rows=chunk_rows,
        **CE,
    )
    tol = 1e-10 if dtype == torch.float64 else 2e-5
    assert got.output.loss.item() == pytest.approx(loss.item(), rel=tol, abs=tol)
    for grad, leaf in ((got.d_hidden, want.hidden), (got.d_weight, want.weight)):
        assert (grad.double() - leaf.grad).norm() <= tol * max(1.0, leaf.grad.norm())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_micro_batches_add_up(reduction):
    """Under one denominator over all of them."""
    problem = random_problem(40, 23)
    options = {**CE, "label_smoothing": 0.1, "entropy_bonus": 0.05, "reduction": reduction}
    total = count(problem.labels, problem.segment_ids, reduction)
    whole = solve(problem, backend="torch", **options)
    parts = []
    for low in (0, 8, 32):  # segments of 4 tokens are cut nowhere
        rows = slice(low, {0: 8, 8: 32, 32: 40}[low])
        one = problem._replace(**{k: getattr(problem, k)[rows] for k in ("hidden", "labels", "segment_ids")})
        parts.append(solve(one, backend="torch", normalizer=total, **options))
    assert sum(p.output.loss for p in parts).item() == pytest.approx(whole.output.loss.item(), rel=1e-12)
    assert distance(torch.cat([p.d_hidden for p in parts]), whole.d_hidden) <= 1e-12
    assert distance(sum(p.d_weight for p in parts), whole.d_weight) <= 1e-12


@pytest.mark.parametrize("chunk_rows", [None, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"entropy_bonus": 0.5, "member": "dft"},
        {"entropy_bonus": 0.5, "softcap": 4.0, "logit_scale": -0.5},
        {**CE, "label_smoothing": 0.3, "z_loss": 0.3, "entropy_bonus": 0.2, "softcap": 4.0},
        {**CE, "label_smoothing": 0.3, "reduction": "length_mean", "temperature": 0.7},
    ],
    ids=str,
)
def test_gradcheck(options, chunk_rows):
    problem = random_problem(8, 5, 3, bias=True, rank=2)
    inputs = problem.hidden, problem.weight, problem.bias, problem.left, problem.right

    def loss(hidden, weight, bias, left, right):
        return confidence_limited(
            hidden,
            weight,
            problem.labels,
            problem.segment_ids,
            5.0,
            bias=bias,
            low_rank=(left, right),
            chunk_rows=chunk_rows,
            backend="torch",
            **options,
        ).loss

    assert torch.autograd.gradcheck(loss, tuple(t.requires_grad_() for t in inputs))


@pytest.mark.parametrize("chunk_rows", [None, 1, 9])
@pytest.mark.parametrize("name", SHAPED)
def test_every_feature_equals_the_reference(monkeypatch, name, chunk_rows):
    monkeypatch.setattr(chunked, "ACCUMULATE_ROWS", 0)  # no length makes a segment wait in an accumulator
    problem, options = SHAPED[name].build(60)
    want = solve(problem, backend="reference", **options)
    got = solve(problem, backend="torch", chunk_rows=chunk_rows, **options)
    assert_same(got, want, 1e-9)
    if "gate" in name:
        assert (got.output.coef == 0).any() and (got.output.coef > 0).any()
    if "skip" in name:
        assert 0 < got.output.skipped < (problem.labels >= 0).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHAPED)
def test_low_precision(monkeypatch, name, dtype):
    """With operands in the dtype of the inputs, as on a GPU; on a CPU they would be fp32."""
    monkeypatch.setattr(chunked, "multiply_dtype", lambda hidden, weight, backend: hidden.dtype)
    problem, options = SHAPED[name].build(127, dtype, vocab=1000, width=72)
    options |= {"softcap": 12.0} if "softcap" in options else {}
    want = solve(problem.to(torch.float64), backend="reference", **options)
    plain = None if dtype == torch.float32 else plain_torch(problem, **options)
    got = solve(problem, backend="torch", **options)
    assert_protocol(got, want, plain, dtype, problem.logits_peak(), options)


@pytest.mark.parametrize("mm", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_share_of_a_large_vocabulary_keeps_its_digits(mm):
    """eps / V = 5e-8 is below what fp16 can tell from 0."""
    words, smoothing, scale = 200_000, 0.01, torch.tensor([1.0, 3e-5, -7e4])
    gaps = torch.full((3, words), -40.0)
    gaps[:, 7] = 0
    stats = RowStats(torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.ones(3).bool())
    rows = shaped.Open(gaps, gaps.exp(), torch.zeros(3), torch.zeros(3), stats)
    slopes = shaped.Slopes(scale, torch.zeros(3), None, smoothing, words)
    matrix, times = shaped.delta(rows, torch.full((3,), 7), slopes, View(), mm)
    assert matrix.dtype == mm and matrix.isfinite().all()
    got = matrix.double() * times.double().unsqueeze(1)
    want = (-smoothing / words * scale.double()).unsqueeze(1).expand(3, words).clone()
    want[:, 7] += smoothing * scale.double()
    torch.testing.assert_close(got, want, rtol=4e-3, atol=0)


def test_large_logits_keep_their_digits():
    """A bias of 2^11 on every word changes log Z alone; in fp32 it costs digits of the logits, no others."""
    problem = random_problem(30, 50, spread=1.0)
    high = problem._replace(bias=torch.full((50,), 2.0**11, dtype=torch.float64)).to(torch.float32)
    options = {**CE, "label_smoothing": 0.2, "entropy_bonus": 0.3}
    want = solve(problem, backend="reference", **options)
    got = solve(high, backend="torch", **options)
    assert got.output.loss.item() == pytest.approx(want.output.loss.item(), abs=1e-3)
    assert distance(got.d_hidden, want.d_hidden) <= 2e-3


def test_entropy_of_a_uniform_distribution_is_at_its_maximum():
    """No gradient of the bonus; the smoothed gradient is (1 - eps) (1/V - onehot)."""
    problem = random_problem(4, 8)._replace(weight=torch.zeros(8, 16, dtype=torch.float64))
    problem = problem._replace(labels=torch.tensor([0, 3, 7, 0]))
    plain = solve(problem, backend="torch", **CE)
    bonus = solve(problem, backend="torch", **CE, entropy_bonus=0.5)
    assert bonus.output.loss.item() == pytest.approx(0.5 * math.log(8), rel=1e-12)
    assert distance(bonus.d_weight, plain.d_weight) <= 1e-12
    smoothed = solve(problem, backend="torch", **CE, label_smoothing=0.25)
    assert smoothed.output.loss.item() == pytest.approx(math.log(8), rel=1e-12)
    assert distance(smoothed.d_weight, 0.75 * plain.d_weight) <= 1e-12


def test_an_impossible_word_is_loud():
    """A logit of -inf: the mean of -log p is infinite, as in torch, and the entropy NaN."""
    problem = random_problem(6, 5, bias=True)
    problem.bias[4] = -math.inf
    problem = problem._replace(labels=problem.labels.clamp(0, 3))
    for backend in ("torch", "reference"):
        assert solve(problem, backend=backend, **CE, label_smoothing=0.1).output.loss == math.inf
        assert solve(problem, backend=backend, **CE, entropy_bonus=0.1).output.loss.isnan()


@pytest.mark.parametrize("name", ["label_smoothing", "entropy_bonus"])
def test_triton_is_refused_and_auto_takes_torch(monkeypatch, caplog, name):
    problem = random_problem(6)
    with pytest.raises(ValueError, match=f'backend: "triton" has no kernel for {name}'):
        solve(problem.to(torch.float32), backend="triton", **CE, **{name: 0.1})
    gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, is_cuda=True)
    monkeypatch.setattr(backends, "_triton_installed", lambda: True)
    monkeypatch.setattr(backends, "_announced", set())
    with caplog.at_level(logging.INFO, "posttrain_kernels"):
        assert backends.choose("auto", gpu, gpu) == "triton"
        assert backends.choose("auto", gpu, gpu, name) == "torch"
    assert f"the torch back-end (cuda; triton has no kernel for {name})" in caplog.text


def test_without_them_nothing_changed():
    for name in ("confidence", "z-loss", "skipping", "chunks of 9, long segments"):
        problem, options = FEATURES[name].build(40)
        zeros = {"label_smoothing": 0.0, "entropy_bonus": 0.0}
        one, two = (solve(problem, backend="torch", **options, **more) for more in ({}, zeros))
        assert torch.equal(one.d_weight, two.d_weight) and torch.equal(one.output.loss, two.output.loss)
