"""Hostile inputs, on the torch and the Triton back-end alike: numbers at the edge of fp32, rows that
must not be read, memory that nobody has written, segments that do not fit.

Left out: what `test_chunked` tests of the torch back-end in fp64, with arithmetic only.
"""

import math

import pytest
import torch

from posttrain_kernels import chunked
from tests.kernels.features import FEATURES
from tests.kernels.problems import (
    assert_equal,
    assert_same,
    assert_silenced,
    confident,
    distance,
    random_problem,
    solve,
)
from tests.kernels.test_precision import Watch

F32 = torch.float32


def reference(problem, **options):
    return solve(problem.to(torch.float64), backend="reference", **options)


@pytest.mark.parametrize("n", [1.0, 256.0, 65536.0])
def test_extreme_logits(place, n):
    """Target certain (log p = 0), |z| = 80 above and below, all logits equal, another column leads
    by 500 nats, the label ties at the maximum; columns 0 and V - 1."""
    vocab, gaps = 33, [500.0, 80.0, -80.0, 0.0, 500.0, 500.0]
    hidden, weight = torch.eye(6), torch.zeros(vocab, 6)
    labels = torch.tensor([0, vocab - 1, 5, 0, 7, vocab - 1])
    for token, gap in enumerate(gaps):
        weight[labels[token], token] = gap
    weight[3, 4], weight[7, 4] = 500.0, 0.0
    weight[2, 5] = 500.0
    problem = random_problem(6)._replace(
        hidden=hidden, weight=weight, labels=labels, segment_ids=torch.arange(6) + 1
    )
    got = place.solve(problem, n, reduction="sum", chunk_rows=4)
    assert_same(got, reference(problem, n=n, reduction="sum"), 3e-5)
    log_probs = got.output.log_probs.tolist()
    assert log_probs[0] == 0 and log_probs[4] == pytest.approx(-500)
    assert log_probs[3] == pytest.approx(-math.log(vocab))
    # Tokens 0 and 1 lead, 3 ties with everything, 5 with one column.
    assert got.output.correct.tolist() == [True, True, False, True, False, True]
    assert got.output.coef[0] == (n == 1) and got.output.coef[4] == 1


@pytest.mark.parametrize("tokens", [0, 6])
def test_everything_ignored(place, tokens):
    problem = random_problem(tokens, dtype=F32, bias=True, rank=2)
    problem = problem._replace(labels=torch.full((tokens,), -100))
    for options in ({}, {"z_loss": 0.1}, {"skip_below": 0.1}, {"normalizer": torch.tensor(0)}):
        got = place.solve(problem, 8.0, **options)
        assert got.output.loss.item() == 0 and got.output.loss.requires_grad
        for tensor in (*got[1:], *got.output[1:]):
            assert not tensor.any()


def test_empty_and_one_token_segments(place):
    """Ids 1 and 6 have one token, 2 only an ignored one, 3 and 7 none."""
    problem = random_problem(7, dtype=F32)._replace(
        labels=torch.tensor([1, -100, 4, 4, 0, 36, 2]), segment_ids=torch.tensor([1, 2, 4, 4, 5, 5, 6])
    )
    for reduction in ("token_mean", "segment_mean", "length_mean"):
        options = {"n": 8.0, "num_segments": 7, "reduction": reduction}
        got = place.solve(problem, **options)
        assert_same(got, reference(problem, **options), 1e-5)
        assert got.output.coef[[1, 2, 6]].tolist() == [0, 0, 0]
        assert got.output.segment_log_probs[[1, 2, 6]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("route", ["accumulator", "again"])
def test_a_segment_over_three_chunks(place, route, monkeypatch):
    """20 rows in chunks of 7: rows 2..17 are one segment, in three blocks of 6. Rows 0-1 and 18-19
    are a chunk each: 3 matmuls. Long enough to have an accumulator, the segment takes 3 matmuls a
    block (15 in all); else its logits are computed again (18)."""
    monkeypatch.setattr(chunked, "ACCUMULATE_ROWS", 16 if route == "accumulator" else 17)
    problem = random_problem(20, dtype=F32)
    problem = problem._replace(
        segment_ids=torch.tensor([1, 1] + [2] * 16 + [3, 3]), labels=problem.labels.clamp_min(0)
    )
    with Watch() as watch:
        got = place.solve(confident(problem), 16.0, chunk_rows=7)
    assert watch.matmuls == (15 if route == "accumulator" else 18)
    assert_same(got, reference(confident(problem), n=16.0), 1e-5)


@pytest.mark.parametrize("feature", ["softcap, scale, temperature, LoRA", "segment weights"])
def test_both_routes_agree(place, feature, monkeypatch):
    """The accumulator multiplies D^T X by the scale once, the other route every row of X before."""
    problem, options = FEATURES[feature].build(40, F32, length=26)
    problem = problem._replace(segment_ids=problem.segment_ids.clamp_min(1))
    results = []
    for least in (0, 10**9):
        monkeypatch.setattr(chunked, "ACCUMULATE_ROWS", least)
        with Watch() as watch:
            results.append((place.solve(problem, **options, chunk_rows=8), watch.matmuls))
    (waited, few), (again, many) = results
    assert few < many
    assert_same(waited, again, 2e-6)
    assert_same(waited, reference(problem, **options), 1e-5)


@pytest.mark.parametrize("feature", ["chunks of 9, long segments, z-loss", "skipping zero weights"])
def test_what_cannot_wait_takes_the_other_route(place, feature, monkeypatch):
    """A z-loss and skipping want the scale of each row, whatever the length of its segment."""
    monkeypatch.setattr(chunked, "ACCUMULATE_ROWS", 0)
    problem, options = FEATURES[feature].build(40, F32, length=24)
    problem = problem._replace(segment_ids=problem.segment_ids.clamp_min(1))
    got = place.solve(problem, **{**options, "chunk_rows": 9})
    assert_same(got, reference(problem, **options), 1e-5)


def test_frozen_sides_of_a_long_segment(place, monkeypatch):
    monkeypatch.setattr(chunked, "ACCUMULATE_ROWS", 0)
    problem = random_problem(30, length=30, dtype=F32, bias=True, rank=2)
    for frozen in ({"frozen_head": True}, {"frozen_hidden": True}):
        got = place.solve(problem, 8.0, chunk_rows=8, **frozen)
        assert_same(got, reference(problem, n=8.0, **frozen), 1e-5)


def test_n_of_one_is_cross_entropy_bit_for_bit(place):
    problem = random_problem(40, dtype=F32)
    plain = place.solve(problem, member="cross_entropy")
    for n in (1, 1.0, torch.ones(problem.segments)):
        assert_equal(place.solve(problem, n), plain)
    # and it is cross-entropy: sum over trained tokens of log Z - z
    kept = problem.labels >= 0
    want = torch.nn.functional.cross_entropy(
        (problem.hidden @ problem.weight.t())[kept].double(), problem.labels[kept]
    )
    assert plain.output.loss.item() == pytest.approx(want.item(), rel=1e-6)


def test_interleaved_segments(place):
    problem = random_problem(36, dtype=F32)
    ids = torch.arange(36) % 3 + 3 * (torch.arange(36) // 12)
    for order in (torch.arange(36), torch.randperm(36, generator=torch.Generator().manual_seed(1))):
        mixed = problem._replace(segment_ids=ids[order])
        for options in ({"n": 8.0}, {"n": 1.0, "segment_weights": torch.randn(8)}):
            got = place.solve(mixed, chunk_rows=7, **options)
            assert_same(got, reference(mixed, **options), 1e-5)


def test_strided_tensors(place):
    """Hidden states as every other column of a wider matrix, a head stored transposed, and labels
    and ids as columns of a batch: the same numbers as from contiguous tensors."""
    plain = random_problem(24, dtype=F32)._replace(labels=torch.arange(24)).to(place.device)
    wide = plain.hidden.new_zeros(24, 35)
    wide[:, 1:33:2] = plain.hidden
    columns = torch.stack([plain.labels, plain.labels * 0, plain.segment_ids], 1)
    strided = plain._replace(
        hidden=wide[:, 1:33:2],
        weight=plain.weight.t().contiguous().t(),
        labels=columns[:, 0],
        segment_ids=columns[:, 2],
    )
    assert not any(t.is_contiguous() for t in strided[:4])
    for options in ({}, {"chunk_rows": 5}):
        assert_same(place.solve(strided, 8.0, **options), place.solve(plain, 8.0, **options), 2e-6)


def poison(monkeypatch):
    """Memory that was never written contains NaN, huge integers, or True."""

    def filled(make):
        def wrapper(*args, **kwargs):
            out = make(*args, **kwargs)
            if out.is_floating_point():
                return out.fill_(math.nan)
            return out.fill_(out.dtype == torch.bool or torch.iinfo(out.dtype).max // 3)

        return wrapper

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "feature", ["confidence", "softcap, scale, temperature, LoRA", "skipping", "chunks of 9, long segments"]
)
def test_nothing_unwritten_leaks(place, feature, dtype, monkeypatch):
    """V = 37 leaves 27 unused columns in every row of Triton's buffer."""
    problem, options = FEATURES[feature].build(30, dtype)
    want = place.solve(problem, **options)
    poison(monkeypatch)
    assert torch.empty(2).isnan().all()
    got = place.solve(problem, **options)
    assert_equal(got, want)
    assert all(t is None or t.isfinite().all() for t in (*got.output, *got[1:]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_ignored_rows_are_never_read(place, bad):
    clean = random_problem(24, dtype=F32, bias=True, rank=2)
    ignored = clean.labels == -100
    assert ignored.any()
    hidden, left = clean.hidden.clone(), clean.left.clone()
    hidden[ignored], left[ignored] = bad, bad
    for options in ({}, {"chunk_rows": 5, "z_loss": 0.1}):
        got = place.solve(clean._replace(hidden=hidden, left=left), 8.0, **options)
        assert_equal(got, place.solve(clean, 8.0, **options))
        assert not got.d_hidden[ignored].any() and not got.d_left[ignored].any()


def test_a_nan_in_a_trained_row_is_seen(place):
    """Gates and skipping must not hide it."""
    problem = random_problem(12, dtype=F32)
    problem.hidden[int((problem.labels >= 0).nonzero()[0])] = math.nan
    for options in ({}, {"p_threshold": 0.5}, {"weight_threshold": 0.5}, {"skip_below": 0.5}):
        got = place.solve(problem, 8.0, **options)
        assert math.isnan(got.output.loss.item()) and got.d_weight.isnan().any()


@pytest.mark.parametrize("masked", [3, 5000])
def test_masked_columns(place, masked):
    """A bias of -inf takes tokens out of the vocabulary; 5000 of them fill whole tiles."""
    problem = random_problem(6, masked + 900, 8, dtype=F32, bias=True)
    problem.bias[:masked] = -math.inf
    problem = problem._replace(labels=problem.labels % 900 + masked)
    small = problem._replace(
        weight=problem.weight[masked:], bias=problem.bias[masked:], labels=problem.labels - masked
    )
    got, want = place.solve(problem, 4.0), reference(small, n=4.0)
    torch.testing.assert_close(
        got.output.log_probs.cpu(), want.output.log_probs.float(), rtol=1e-5, atol=1e-5
    )
    assert distance(got.d_hidden, want.d_hidden) <= 1e-5
    assert distance(got.d_weight[masked:], want.d_weight) <= 1e-5
    assert not got.d_weight[:masked].any()


def test_an_impossible_segment_can_be_silenced(place):
    """-1e20 * 1e20 overflows to a logit of -inf: log p = -inf, L = inf, F = 1. A weight of 0, a gate
    or an external p of 1 selects 0 for it rather than 0 * inf."""
    assert_silenced(place.solve)


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e5])
def test_fp16_keeps_small_and_large_weights(place, size):
    """fp16 ends at 65504 and loses digits under 6e-5; a weighted hidden state may be beyond both."""
    problem = random_problem(30, dtype=torch.float16, rank=2)
    weights = torch.full((problem.segments,), size)
    problem = problem._replace(segment_ids=problem.segment_ids.clamp_min(1))
    options = {"n": 8.0, "segment_weights": weights, "upstream": 1 / size}
    got = place.solve(problem, chunk_rows=8, **options)
    want = reference(problem, **options)
    for name in ("d_hidden", "d_weight", "d_left", "d_right"):
        assert distance(getattr(got, name), getattr(want, name)) <= 1e-3, name


def test_unnormalized_deltas_fit_in_fp16():
    """The torch back-end on a GPU keeps D in the inputs' dtype and leaves 1 / total to the row's
    scale. Flat logits of a large vocabulary have a total of 128256: over the end of fp16."""
    from posttrain_kernels.rows_torch import Rows
    from posttrain_kernels.spec import View

    for dtype in (torch.float16, torch.bfloat16):
        rows = Rows(1, 128256, View(), F32, dtype, "cpu")
        stats, delta = rows.forward(rows.logits(1).zero_(), torch.tensor([5]), True)
        times = 1.0 if delta.times is None else delta.times
        assert delta.matrix.isfinite().all()
        assert (delta.matrix[0, 5] * times).item() == pytest.approx(-1, rel=4e-3)
        assert (delta.matrix[0, 6] * times).item() == pytest.approx(1 / 128256, rel=4e-3)
        assert stats.log_probs.item() == pytest.approx(-math.log(128256))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bitwise_repeatable(place, dtype):
    problem, options = FEATURES["z-loss, length_mean, softcap, LoRA"].build(30, dtype)
    assert_equal(*(place.solve(problem, chunk_rows=7, **options) for _ in range(2)))
