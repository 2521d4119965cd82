"""What only Mode B's Triton kernels have: the tiled forward, the second buffer, rows of a grid.

Runs in Triton's interpreter without a GPU. Everything both back-ends share is in `test_tokens`.
"""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_kernels import backends, rows, tiled, tokens_torch, tokens_triton
from posttrain_kernels.rows import stats_of
from posttrain_kernels.spec import View
from tests.kernels.problems import random_problem
from tests.kernels.token_cases import CARRIERS, assert_tokens, random_upstream, solve_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def tiled_forward(monkeypatch):
    """Switches it on and counts its calls."""
    calls = []
    inner = tiled.statistics

    def counted(*args):
        calls.append(args)
        return inner(*args)

    monkeypatch.setenv("POSTTRAIN_KERNELS_TILED", "1")
    monkeypatch.setattr(tiled, "statistics", counted)
    return calls


def solve(problem, **options):
    return solve_tokens(problem.to(DEVICE), backend="triton", **options)


# H = 8 is one TMA row of 16 bytes in bf16, 9 goes by pointers, 136 is two tiles deep and a rest.
# V: less than a tile, whole tiles, one column more. T: one row, a tile of rows and a ragged one.
@pytest.mark.slow
@pytest.mark.parametrize("tokens,vocab,width", [(1, 37, 8), (7, 512, 9), (40, 513, 136), (130, 300, 70)])
@pytest.mark.parametrize("dtype,tol", [(torch.float32, 1e-5), (torch.bfloat16, 1e-4)])
@pytest.mark.parametrize("processors", [1, 4])
def test_tiled_forward(tiled_forward, monkeypatch, processors, tokens, vocab, width, dtype, tol):
    """One processor walks all tiles of a split; with four, a tile is a split of its own."""
    monkeypatch.setattr(tiled, "_processors", lambda x: processors)
    problem = random_problem(tokens, vocab, width, dtype=dtype)
    got = solve(problem)
    assert len(tiled_forward) == 1
    want = solve_tokens(problem.to(torch.float64), backend="reference")
    assert_tokens(got, want, tol, gradients=4e-3 if dtype == torch.bfloat16 else tol)


@pytest.mark.parametrize(
    "options", [{"softcap": 3.0, "logit_scale": 1.5}, {"logit_scale": -0.25}, {"temperature": 0.7}]
)
def test_tiled_forward_with_a_view(tiled_forward, options):
    problem = random_problem(20, 300, dtype=torch.float32)
    got = solve(problem, **options)
    assert tiled_forward
    want = solve_tokens(problem.to(torch.float64), backend="reference", **options)
    assert_tokens(got, want, 1e-5)


@pytest.mark.parametrize("processors", [1, 4])
def test_tiled_forward_on_extremes(tiled_forward, monkeypatch, processors):
    """Targets at both ends of tiles of 256 and of the vocabulary; certain, tied, 500 nats down; a
    first tile in which every logit is -inf."""
    monkeypatch.setattr(tiled, "_processors", lambda x: processors)
    vocab = 600
    problem = random_problem(8, vocab, 16, dtype=torch.float32)
    hidden = torch.cat([torch.eye(8), torch.zeros(8, 8)], 1)
    weight = torch.zeros(vocab, 16)
    labels = torch.tensor([0, 255, 256, 511, 512, 599, 300, 5])
    gaps = torch.tensor([500.0, 80.0, -80.0, -500.0, 0.0, 500.0, 30.0, 1.0])
    weight[labels, torch.arange(8)] = gaps
    weight[599, 7] = 1.0  # token 7: a tie across tiles
    problem = problem._replace(hidden=hidden, weight=weight, labels=labels)
    got = solve(problem)
    want = solve_tokens(problem.to(torch.float64), backend="reference")
    assert_tokens(got, want, 1e-5)
    assert got.output.correct.tolist() == [True, True, False, False, True, True, True, True]
    weight[:256] = 0
    weight[:256, 15], hidden[:, 15] = -1e20, 1e20  # a product of -inf
    labels = torch.full((8,), 400)
    part = tiled.statistics(*(t.to(DEVICE) for t in (hidden, weight, labels)), View())
    stats = stats_of(functools.reduce(rows.merge, part))
    expected = (hidden @ weight[256:].t()).log_softmax(1)[:, 400 - 256]
    torch.testing.assert_close(stats.log_probs.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_tiled_forward_repeats_and_ignores_what_it_should(tiled_forward):
    """Split over programs without atomics; a bias or LoRA goes the default way; NaN is not read."""
    problem = random_problem(20, 1100, dtype=torch.float32)
    problem.hidden[problem.labels == -100] = float("nan")
    first, second = solve(problem), solve(problem)
    assert len(tiled_forward) == 2
    for a, b in zip(first.output, second.output, strict=True):
        assert torch.equal(a, b) and (a.dtype == torch.bool or a.isfinite().all())
    biased = random_problem(5, 50, dtype=torch.float32, bias=True)
    solve(biased)
    assert len(tiled_forward) == 2


def test_tiled_forward_is_off_by_default(monkeypatch):
    monkeypatch.delenv("POSTTRAIN_KERNELS_TILED", raising=False)
    monkeypatch.setattr(tiled, "statistics", None)  # a call would fail
    solve(random_problem(5, 50, dtype=torch.float32))


def test_an_autocast_head_is_cast_for_tiles(tiled_forward):
    problem = random_problem(20, 300, dtype=torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = solve(problem)
    assert tiled_forward[0][1].dtype == torch.bfloat16
    rounded = problem.to(torch.bfloat16).to(torch.float64)
    want = solve_tokens(rounded, backend="reference")
    assert_tokens(got, want, 1e-4, gradients=4e-3)


def test_splits_fill_the_processors():
    """64 blocks of rows on 132 processors: two programs a block leave 4 idle, one leaves 68. One
    block: 32 at most. More blocks than processors: 133 blocks are two waves, the second of which
    a split of 32 fills: ceil(133 * 32 / 132) = 33 steps of 16 tiles, 528 rather than 2 * 501."""
    assert tiled.splits(64, 501, 132) == 2
    assert tiled.splits(1, 501, 132) == 32
    assert tiled.splits(1, 3, 132) == 3
    assert tiled.splits(132, 501, 132) == 1
    assert tiled.splits(133, 501, 132) > 16


@pytest.mark.interpreter
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 40),
    extra=st.integers(0, 30),
    tilt=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
    mm=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_slice_gradient_equals_torch(rows, columns, extra, tilt, softcap, mm, seed):
    """The same tables and logits through both; the buffers are wider than the slice, and what they
    held before (NaN) goes nowhere."""
    gen = torch.Generator().manual_seed(seed)
    logits = torch.rand(rows, columns, generator=gen) * 4 - 2  # a saturated tanh loses digits
    own = torch.randint(-1, columns, (rows,), generator=gen)
    tables = torch.randn(5, rows, generator=gen)
    tables[0] += 3
    slopes = tokens_torch.Slopes(tables[0], tables[1], tables[2], tables[3] if tilt else None, tables[4])
    view = View(1.3, softcap, 0.7)
    results = []
    for module, device, low in ((tokens_torch, "cpu", torch.float32), (tokens_triton, DEVICE, mm)):
        ops = module.Slice(rows, columns + extra, view, torch.float32, low, logits.to(device))
        for name in ("buffers", "z", "g"):
            if hasattr(ops, name):
                getattr(ops, name).fill_(float("nan"))
        z = ops.logits(columns)
        z.copy_(logits)
        here = tokens_torch.Slopes(*(None if t is None else t.to(device) for t in slopes))
        g = ops.gradient(z, here, own.to(device))
        assert g.dtype == low and g.shape == (rows, columns)
        results.append(g.cpu().float())
    # Half a unit in the last place: to nearest, where cutting off would cost a whole one.
    half = 0.0 if mm == torch.float32 else torch.finfo(mm).eps / 2
    tiny = 4e-8 if mm == torch.float16 else 1e-7  # fp16 ends at 6e-8
    torch.testing.assert_close(results[1], results[0], rtol=half + 1e-5, atol=tiny)


def test_auto_takes_torch_without_a_gpu():
    problem = random_problem(4, 9, dtype=torch.float32)
    name = backends.choose("auto", problem.hidden.to(DEVICE), problem.weight.to(DEVICE))
    assert name == ("triton" if DEVICE == "cuda" else "torch")


@pytest.mark.interpreter
@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    tokens_=st.integers(1, 12),
    vocab=st.integers(2, 60),
    seed=st.integers(0, 99),
    chunk_rows=st.one_of(st.none(), st.integers(4, 20)),
    used=st.sets(st.sampled_from(CARRIERS), min_size=1),
    bias=st.booleans(),
)
def test_any_shape(tokens_, vocab, seed, chunk_rows, used, bias):
    problem = random_problem(tokens_, vocab, 5, seed=seed, dtype=torch.float32, bias=bias)
    options = {"upstream": random_upstream(tokens_, seed), "used": used}
    got = solve(problem, chunk_rows=chunk_rows, **options)
    want = solve_tokens(problem.to(torch.float64), backend="reference", **options)
    assert_tokens(got, want, 1e-5, gradients=2e-5)
