"""What must hold whatever the numbers are: properties under hypothesis, and gradients by finite
differences in fp64.

Triton's interpreter takes a tenth of a second a call, so it gets few examples; `test_triton` has the
fixed cases. Left out: properties of the family alone (`test_family`).
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_kernels import confidence_limited
from posttrain_kernels.spec import REDUCTIONS
from tests.kernels.problems import Result, assert_same, confident, distance, random_problem, solve

V = 11


@st.composite
def requests(draw, tables=True):
    """(problem in fp32, options): up to 14 tokens in up to 4 segments, in any order."""
    tokens = draw(st.integers(1, 14))
    seed = draw(st.integers(0, 10**6))
    spread = draw(st.sampled_from([0.1, 2.0, 20.0]))
    problem = random_problem(
        tokens, V, 4, spread=spread, seed=seed, bias=draw(st.booleans()), rank=draw(st.sampled_from([0, 2]))
    )
    ids = draw(st.lists(st.integers(0, 4), min_size=tokens, max_size=tokens))
    problem = problem._replace(segment_ids=torch.tensor(ids))
    problem = confident(problem, 12.0).to(torch.float32)
    options = {
        "n": draw(st.sampled_from([1.0, 2.0, 64.0, 65536.0])),
        "num_segments": 4,
        "reduction": draw(st.sampled_from(REDUCTIONS)),
        "softcap": draw(st.sampled_from([None, 5.0])),
    }
    if tables and draw(st.booleans()):
        weights = draw(st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0]), min_size=4, max_size=4))
        options["segment_weights"] = torch.tensor(weights)
    return problem, options


BACKENDS = [("torch", "cpu", 40)]
if torch.cuda.is_available():
    BACKENDS.append(pytest.param("triton", "cuda", 40, marks=pytest.mark.gpu))
else:
    BACKENDS.append(("triton", "cpu", 4))
each_backend = pytest.mark.parametrize("backend,device,examples", BACKENDS)


def run(backend, device, problem, **options) -> Result:
    options = {k: v.to(device) if torch.is_tensor(v) else v for k, v in options.items()}
    return solve(problem.to(device), backend=backend, **options)


def check(prop, strategy, examples):
    """Run `prop(request)` on that many examples; the back-end decides how many it can afford."""
    settings(max_examples=examples, deadline=None, database=None, derandomize=True)(given(strategy)(prop))()


@pytest.mark.slow
@each_backend
def test_bounds(backend, device, examples):
    """0 <= F <= 1; max(0, -log p - log N) <= L <= -log p; 0 <= entropy <= log V; log p <= 0; of each
    segment alone, by weights that are one-hot."""

    def prop(request):
        problem, options = request
        problem = problem._replace(segment_ids=problem.segment_ids.clamp_min(1))
        options = {"n": options["n"], "num_segments": 4, "reduction": "sum"}
        out = run(backend, device, problem, **options).output
        assert (out.coef >= 0).all() and (out.coef <= 1 + 1e-6).all()
        assert (out.log_probs <= 1e-5).all() and (out.entropy <= math.log(V) + 1e-5).all()
        assert (out.entropy >= -1e-5).all() and (out.log_z + 1e-5 >= out.log_probs).all()
        total = 0.0
        for i in range(4):
            weights = torch.eye(4)[i]
            loss = run(backend, device, problem, segment_weights=weights, **options).output.loss
            s = -out.segment_log_probs[i].item()
            lowest = max(0.0, s - math.log(options["n"]))
            assert lowest - 1e-4 <= loss.item() <= s * (1 + 1e-5) + 1e-4
            total += loss.item()
        assert total == pytest.approx(out.loss.item(), rel=1e-5, abs=1e-5)

    check(prop, requests(), max(2, examples // 2))


@pytest.mark.slow
@each_backend
def test_against_the_reference(backend, device, examples):
    def prop(request):
        problem, options = request
        want = solve(problem.to(torch.float64), backend="reference", **options)
        peak = max(1.0, problem.logits_peak() / 16)
        assert_same(run(backend, device, problem, **options), want, 3e-5 * peak)

    check(prop, requests(), examples)


@pytest.mark.slow
@each_backend
def test_names_of_segments_do_not_matter(backend, device, examples):
    """Ids permuted, and tables with them: the loss, the gradients and each token stay."""

    def prop(request):
        problem, options = request
        order = torch.tensor([3, 1, 4, 2])  # old id - 1 -> new id
        new = torch.cat([torch.zeros(1, dtype=torch.int64), order])[problem.segment_ids]
        moved = dict(options)
        if "segment_weights" in options:
            moved["segment_weights"] = torch.empty(4).scatter(0, order - 1, options["segment_weights"])
        one = run(backend, device, problem, **options)
        two = run(backend, device, problem._replace(segment_ids=new), **moved)
        at = (order - 1).to(device)
        torch.testing.assert_close(one.output.coef, two.output.coef[at], rtol=0, atol=0)
        back = two.output._replace(
            coef=two.output.coef[at], segment_log_probs=two.output.segment_log_probs[at]
        )
        assert_same(two._replace(output=back), one, 1e-5)

    check(prop, requests(), examples)


@pytest.mark.slow
@each_backend
def test_rows_in_any_order(backend, device, examples):
    """Tokens shuffled: the same loss and head gradient, hidden gradients shuffled alike."""

    def prop(request):
        problem, options = request
        perm = torch.randperm(len(problem.labels), generator=torch.Generator().manual_seed(3))
        left = None if problem.left is None else problem.left[perm]
        shuffled = problem._replace(
            hidden=problem.hidden[perm],
            labels=problem.labels[perm],
            segment_ids=problem.segment_ids[perm],
            left=left,
        )
        one = run(backend, device, problem, **options)
        two = run(backend, device, shuffled, chunk_rows=3, **options)
        perm = perm.to(device)
        torch.testing.assert_close(one.output.loss, two.output.loss, rtol=2e-5, atol=2e-5)
        near(two.d_hidden, one.d_hidden[perm])
        near(two.d_weight, one.d_weight)

    check(prop, requests(), examples)


def near(a, b, tol=2e-5):
    assert distance(a, b) <= tol or (a - b).norm() <= 1e-12


@pytest.mark.slow
@each_backend
def test_two_calls_with_a_common_normalizer_are_one(backend, device, examples):
    """Micro-batches: segments 1-2 in one call, the rest in another, each divided by the same count."""

    def prop(request):
        problem, options = request
        if options["reduction"] != "sum":
            options["normalizer"] = torch.tensor(7)
        whole = run(backend, device, problem, **options)
        first = (problem.segment_ids == 1) | (problem.segment_ids == 2)
        parts = []
        for chosen in (first, ~first):
            labels = torch.where(chosen, problem.labels, -100)
            parts.append(run(backend, device, problem._replace(labels=labels), **options))
        total = sum(p.output.loss.item() for p in parts)
        assert total == pytest.approx(whole.output.loss.item(), rel=2e-5, abs=2e-5)
        near(parts[0].d_weight + parts[1].d_weight, whole.d_weight)
        near(parts[0].d_hidden + parts[1].d_hidden, whole.d_hidden)

    check(prop, requests(), examples)


@pytest.mark.slow
@each_backend
def test_upstream_scales_and_chunks_do_not_matter(backend, device, examples):
    def prop(request):
        problem, options = request
        one = run(backend, device, problem, **options)
        for chunk_rows, upstream in ((1, -3.0), (4, 0.0)):
            two = run(backend, device, problem, chunk_rows=chunk_rows, upstream=upstream, **options)
            near(two.d_hidden, upstream * one.d_hidden)
            near(two.d_weight, upstream * one.d_weight)
            torch.testing.assert_close(two.output.loss, one.output.loss, rtol=2e-5, atol=2e-5)

    check(prop, requests(), examples)


@pytest.mark.slow
@each_backend
def test_ignored_rows_get_exactly_nothing(backend, device, examples):
    def prop(request):
        problem, options = request
        got = run(backend, device, problem, z_loss=0.01, **options)
        ignored = (problem.labels == -100).to(device)
        for rows in (got.d_hidden, got.d_left, *got.output[1:2], *got.output[4:7]):
            assert rows is None or not rows[ignored].any()

    check(prop, requests(), examples)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [3, None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softcap": 4.0},
        {"z_loss": 0.3},
        {"softcap": 4.0, "z_loss": 0.3, "logit_scale": -0.5},
        {"z_loss": 0.3, "reduction": "length_mean", "temperature": 0.7},
        {"softcap": 4.0, "reduction": "segment_mean", "member": "focal", "exponent": 2.0},
    ],
    ids=str,
)
def test_gradcheck(options, chunk_rows):
    """Every input of the torch back-end by central differences in fp64."""
    problem = random_problem(10, 5, 3, bias=True, rank=2)
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


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_gradcheck_through_an_accumulator(rank, monkeypatch):
    monkeypatch.setattr("posttrain_kernels.chunked.ACCUMULATE_ROWS", 0)
    problem = random_problem(9, 5, 3, length=9, bias=True, rank=rank)
    inputs = [t for t in (problem.hidden, problem.weight, problem.bias) if t is not None]
    inputs += [problem.left, problem.right] if rank else []

    def loss(hidden, weight, bias, *low_rank):
        return confidence_limited(
            hidden,
            weight,
            problem.labels,
            problem.segment_ids,
            5.0,
            bias=bias,
            softcap=4.0,
            low_rank=low_rank or None,
            chunk_rows=3,
            backend="torch",
            temperature=0.7,
        ).loss

    assert torch.autograd.gradcheck(loss, tuple(t.requires_grad_() for t in inputs))
