"""Mode B against the fp64 reference: the torch back-end, and Triton's where it runs here."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_kernels import token_log_probs
from tests.kernels.problems import Problem, distance, random_problem
from tests.kernels.token_cases import CARRIERS, FEATURES, assert_tokens, random_upstream, solve_tokens

FP32 = 1e-5


def both(place, problem: Problem, tol: float = FP32, **options):
    """The back-end in fp32 beside the reference in fp64, on the same numbers."""
    got = solve_tokens(problem.to(place.device), backend=place.backend, **options)
    options.pop("chunk_rows", None)
    want = solve_tokens(problem.to(torch.float64), backend="reference", **options)
    assert_tokens(got, want, tol)
    return got


@pytest.mark.parametrize("name", FEATURES)
def test_features(place, name):
    """One slice, slices of a fifth with a narrower last one, and slices of one column."""
    options, shape = FEATURES[name]
    size = (12, 13) if options.get("chunk_rows") == 1 else (24, 301)  # the interpreter is slow
    got = both(place, random_problem(*size, dtype=torch.float32, **shape), **options)
    assert [t.dtype for t in got.output] == [torch.float32] * 3 + [torch.bool]


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_algorithm_in_fp64(name, chunk_rows):
    options, shape = FEATURES[name]
    problem = random_problem(61, 157, **shape)
    got = solve_tokens(problem, backend="torch", **{"chunk_rows": chunk_rows, **options})
    options = {k: v for k, v in options.items() if k != "chunk_rows"}
    assert_tokens(got, solve_tokens(problem, backend="reference", **options), 1e-11)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocab=st.integers(2, 90),
    seed=st.integers(0, 99),
    chunk_rows=st.one_of(st.none(), st.integers(1, 50)),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    used=st.sets(st.sampled_from(CARRIERS), min_size=1),
)
def test_any_shape(tokens, vocab, seed, chunk_rows, spread, used):
    problem = random_problem(tokens, vocab, width=5, spread=spread, seed=seed, bias=True)
    options = {"upstream": random_upstream(tokens, seed), "used": used}
    got = solve_tokens(problem, backend="torch", chunk_rows=chunk_rows, **options)
    assert_tokens(got, solve_tokens(problem, backend="reference", **options), 1e-10)


# 1 row, one short of a TMA-able head (H = 72 is one, 18 is not), a row more than a tile of it
@pytest.mark.parametrize("tokens,vocab,width", [(1, 1000, 72), (7, 2, 3), (127, 257, 18)])
def test_shapes(place, tokens, vocab, width):
    both(place, random_problem(tokens, vocab, width, dtype=torch.float32))


@pytest.mark.slow
def test_gradcheck():
    problem = random_problem(9, 11, 3, bias=True, rank=2)
    leaves = [getattr(problem, n).requires_grad_() for n in ("hidden", "weight", "bias")]
    low_rank = problem.left.requires_grad_(), problem.right.requires_grad_()

    def function(hidden, weight, bias, *low_rank):
        return token_log_probs(
            hidden,
            weight,
            problem.labels,
            bias=bias,
            low_rank=low_rank,
            softcap=4.0,
            temperature=0.8,
            logit_scale=1.3,
            chunk_rows=2,
            backend="torch",
        )[:3]

    assert torch.autograd.gradcheck(function, (*leaves, *low_rank))


# ---- adversarial ----


@pytest.mark.parametrize("chunk_rows", [1, None])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_extreme_logits(place, chunk_rows, offset):
    """Targets certain (log p = 0), 80 and 500 nats down, every logit equal, ties at the maximum, at
    columns 0 and V - 1. With 300 added to all logits, fp32 spacing is 3e-5: log p keeps its digits
    only if peak and target are subtracted before anything is rounded."""
    vocab, gaps = 33, [500.0, 80.0, -80.0, 0.0, 500.0, 500.0]
    hidden, weight = torch.eye(6), torch.zeros(vocab, 6)
    labels = torch.tensor([0, vocab - 1, 5, 0, 7, vocab - 1])
    for token, gap in enumerate(gaps):
        weight[labels[token], token] = gap
    weight[3, 4], weight[7, 4] = 500.0, 0.0  # token 4: another column leads by 500
    weight[2, 5] = 500.0  # token 5 ties with column 2
    problem = Problem(hidden, weight + offset, labels, torch.arange(6) + 1)
    got = both(place, problem, chunk_rows=chunk_rows)
    assert got.output.log_probs[0] == 0 and got.output.log_probs[4].item() == -500
    assert got.output.correct.tolist() == [True, True, False, True, False, True]


def test_probabilities_survive_a_large_offset(place):
    """z = 2048 + k / 4, exact in fp32, where log z would be rounded to 1e-4: p must come from
    (z - peak) - log(sum), or every entry of the gradient is off by up to 1e-4."""
    gen = torch.Generator().manual_seed(2)
    weight = 2048 + torch.randint(0, 16, (50, 1), generator=gen) / 4
    problem = Problem(torch.ones(1, 1), weight, torch.tensor([3]), torch.tensor([1]))
    options = {"upstream": torch.ones(3, 1), "used": ("log_z",)}
    got = solve_tokens(problem.to(place.device), backend=place.backend, **options)
    want = solve_tokens(problem.to(torch.float64), backend="reference", **options)
    assert distance(got.gradients["weight"], want.gradients["weight"]) <= 1e-6


@pytest.mark.parametrize("spread", [8.0, 20.0])
def test_large_logits(place, spread):
    """|z| to 80: p of 1 - 1e-9 beside p of 1e-30 in the same batch."""
    problem = random_problem(60, 100, spread=spread, dtype=torch.float32)
    peak = problem.logits_peak()
    assert spread < 20 or peak > 70
    both(place, problem, FP32 * max(1, peak / 16))


def test_a_nearly_certain_target_keeps_its_gradient_in_bf16(place):
    """z = (7, 0, 0): 1 - p = 2 / (e^7 + 2) = 1.8e-3. Rounded to bf16 first, p would be 1 and the
    gradient 0."""
    problem = Problem(
        torch.ones(1, 1), torch.tensor([[7.0], [0.0], [0.0]]), torch.tensor([0]), torch.tensor([1])
    ).to(torch.bfloat16)
    options = {"upstream": torch.ones(3, 1), "used": ("log_probs",), "backend": place.backend}
    got = solve_tokens(problem.to(place.device), **options).gradients["weight"].flatten().tolist()
    rest = 1 / (math.exp(7) + 2)
    assert got == pytest.approx([2 * rest, -rest, -rest], rel=2**-8)


@pytest.mark.parametrize("vocab", [256, 257, 2049])
def test_targets_at_edges_of_slices(place, vocab):
    """Slices are 256 columns where a budget cuts them, tiles of the Triton kernel 2048."""
    edges = [0, 1, 127, 128, 255, vocab - 1, min(256, vocab - 1), min(2048, vocab - 1)]
    problem = random_problem(len(edges), vocab, 8, dtype=torch.float32)
    problem = problem._replace(labels=torch.tensor(edges))
    one = both(place, problem)
    assert_tokens(one, both(place, problem, chunk_rows=1), FP32)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_ignored_rows_are_never_read(place, poison):
    clean = random_problem(30, 50, dtype=torch.float32, rank=2)
    ignored = clean.labels == -100
    assert ignored.any()
    hidden, left = clean.hidden.clone(), clean.left.clone()
    hidden[ignored], left[ignored] = poison, poison
    upstream = random_upstream(30)
    got = both(place, clean._replace(hidden=hidden, left=left), upstream=upstream)
    assert_tokens(got, both(place, clean, upstream=upstream), 1e-7)
    for table in got.output:
        assert not table.cpu()[ignored].any()
    for name in ("hidden", "left"):
        assert not got.gradients[name].cpu()[ignored].any()
    upstream[:, ignored] = poison  # nor is what comes back for them
    again = solve_tokens(clean.to(place.device), upstream * 1.0, backend=place.backend)
    for grad in again.gradients.values():
        assert grad.isfinite().all()


def test_a_nan_in_a_trained_row_is_seen(place):
    problem = random_problem(10, 20, dtype=torch.float32)._replace(labels=torch.arange(10))
    problem.hidden[4] = math.nan
    got = solve_tokens(problem.to(place.device), backend=place.backend)
    for name in CARRIERS:
        table = getattr(got.output, name).cpu()
        assert table.isnan().tolist() == [i == 4 for i in range(10)], name
    assert got.gradients["weight"].isnan().all()


@pytest.mark.parametrize("tokens", [0, 6])
def test_nothing_trained_is_zero_and_attached(place, tokens):
    problem = random_problem(tokens, 20, dtype=torch.float32, bias=True, rank=2)
    problem = problem._replace(labels=torch.full((tokens,), -100))
    got = solve_tokens(problem.to(place.device), backend=place.backend)
    assert all(not t.any() and t.shape == (tokens,) for t in got.output)
    assert got.output.log_probs.requires_grad and not got.output.correct.requires_grad
    assert len(got.gradients) == 5 and not any(g.any() for g in got.gradients.values())


def test_strided_inputs(place):
    problem = random_problem(50, 70, dtype=torch.float32)
    wide = torch.randn(50, 2 * 16 + 3)
    wide[:, 1:33:2] = problem.hidden
    turned = problem.weight.t().contiguous().t()
    strided = problem._replace(hidden=wide[:, 1:33:2], weight=turned)
    assert not strided.hidden.is_contiguous() and not turned.is_contiguous()
    assert_tokens(both(place, strided), both(place, problem), 1e-6)


def test_bits_repeat(place):
    problem = random_problem(30, 300, dtype=torch.float32, bias=True).to(place.device)
    runs = [solve_tokens(problem, backend=place.backend, chunk_rows=9) for _ in range(2)]
    for a, b in zip(runs[0].output, runs[1].output, strict=True):
        assert torch.equal(a, b)
    for name, grad in runs[0].gradients.items():
        assert torch.equal(grad, runs[1].gradients[name]), name
