"""Mode A on a GPU at real shapes: exactness, memory, waits for the device, 64-bit offsets, tuning.

    pytest -m gpu tests/kernels          these, and the shared tests of the other files, natively

The fp64 reference runs on the same GPU. Written against CUDA's documented behaviour; where no GPU
was at hand, not yet run. Left out: speed (`kernels/benchmarks`).
"""

import json

import pytest
import torch

from posttrain_kernels import OnHost, available_backends, backends, confidence_limited
from tests.kernels.problems import Problem, assert_equal, distance, solve
from tests.kernels.protocol import LOW, assert_protocol, plain_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MIB = 2**20
DTYPES = {"fp32": torch.float32, **LOW}


def problem_of(tokens, vocab, width, dtype=torch.float32, length=16, spread=2.0, gap=10.0):
    """On the GPU, targets planted up to `gap` nats over the rest."""
    gen = torch.Generator("cuda").manual_seed(tokens + vocab)
    hidden = torch.randn(tokens, width, generator=gen, device="cuda")
    weight = torch.randn(vocab, width, generator=gen, device="cuda") * (spread / width**0.5)
    labels = torch.randint(vocab, (tokens,), generator=gen, device="cuda")
    ids = torch.arange(tokens, device="cuda") // length + 1
    raise_by = torch.rand(int(ids.max()) + 1, generator=gen, device="cuda")[ids] * gap
    rows = weight[labels]
    hidden += raise_by.unsqueeze(1) * rows / rows.square().sum(1, keepdim=True)
    labels[torch.rand(tokens, generator=gen, device="cuda") < 0.1] = -100
    ids[ids % 5 == 0] = 0
    return Problem(hidden, weight, labels, ids).to(dtype)


# Every T, V and H of the protocol at least once; with 151936 columns, whole and ragged tiles.
SHAPES = [
    (1, 1000, 72),
    (7, 151936, 896),
    (127, 50257, 72),
    (127, 32000, 4096),
    (4097, 1000, 2048),
    (4097, 32000, 896),
    (4097, 50257, 896),
    (127, 128256, 4096),
    (4097, 151936, 896),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens,vocab,width", SHAPES)
def test_real_shapes(tokens, vocab, width, dtype):
    problem = problem_of(tokens, vocab, width, DTYPES[dtype])
    options = {"n": 64.0, "num_segments": problem.segments}
    got = solve(problem, backend="triton", **options)
    want = solve(problem.to(torch.float64), backend="reference", **options)
    assert_equal(got, solve(problem, backend="triton", **options))
    if dtype != "fp32" and tokens < 127:  # too few rows for a comparison of rounding errors
        assert distance(got.d_weight, want.d_weight) <= 4e-3
        return
    plain = None if dtype == "fp32" else plain_torch(problem, **options)
    peak = problem.logits_peak()
    assert_protocol(got, want, plain, DTYPES[dtype], peak, options)


@pytest.mark.parametrize("dtype", LOW)
def test_everything_at_once(dtype):
    """Bias, LoRA, softcap, scale, temperature, weights, N per segment, chunks, a long segment."""
    problem = problem_of(4097, 50257, 896, LOW[dtype])
    ids = problem.segment_ids.clone()
    ids[1000:3000] = 70
    gen = torch.Generator("cuda").manual_seed(1)

    def noise(*shape, size=1.0):
        return (torch.randn(*shape, generator=gen, device="cuda") * size).to(LOW[dtype])

    problem = problem._replace(
        segment_ids=ids, bias=noise(50257), left=noise(4097, 8), right=noise(50257, 8, size=0.3)
    )
    size = problem.segments
    options = {
        "n": torch.tensor([1.0, 4.0, 64.0, 65536.0], device="cuda").repeat(size)[:size],
        "segment_weights": torch.randn(size, generator=gen, device="cuda"),
        "softcap": 15.0,
        "logit_scale": 0.5,
        "temperature": 0.8,
        "reduction": "length_mean",
    }
    want = solve(problem.to(torch.float64), backend="reference", **options)
    plain = plain_torch(problem, **options)
    for chunk_rows in (None, 600):
        got = solve(problem, backend="triton", chunk_rows=chunk_rows, **options)
        assert_protocol(got, want, plain, LOW[dtype], problem.logits_peak(), options)


def test_torch_back_end_on_the_gpu():
    problem = problem_of(1000, 32000, 896, torch.bfloat16)
    options = {"n": 64.0, "num_segments": problem.segments}
    want = solve(problem.to(torch.float64), backend="reference", **options)
    for dtype in ("bf16", "fp16"):
        here = problem.to(LOW[dtype])
        got = solve(here, backend="torch", **options)
        plain = plain_torch(here, **options)
        if dtype == "fp16":
            want = solve(here.to(torch.float64), backend="reference", **options)
        assert_protocol(got, want, plain, LOW[dtype], here.logits_peak(), options)


def test_auto_is_triton():
    assert available_backends("cuda")[0] == "triton"
    problem = problem_of(64, 5000, 72, torch.bfloat16)
    assert backends.choose("auto", problem.hidden, problem.weight) == "triton"
    double = problem.to(torch.float64)
    assert backends.choose("auto", double.hidden, double.weight) == "torch"
    assert_equal(solve(problem, 8.0), solve(problem, 8.0, backend="triton"))


@pytest.mark.parametrize("frozen_head", [False, True])
def test_workspace(frozen_head):
    """8192 x 4096 x 128256 in bf16: at most 2.5 GiB beyond inputs, gradients and the fp32 dW. While
    backward runs, the fp32 dX (128 MiB) and the gradients it turns into live side by side."""
    problem = problem_of(8192, 128256, 4096, torch.bfloat16)
    segments = problem.segments
    solve(problem, 64.0, num_segments=segments, backend="triton", frozen_head=frozen_head)  # tunes
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = solve(problem, 64.0, num_segments=segments, backend="triton", frozen_head=frozen_head)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    gradients = problem.hidden.nbytes + (0 if frozen_head else problem.weight.nbytes)
    wide_head = 0 if frozen_head else problem.weight.numel() * 4
    workspace = (peak - gradients - wide_head) / MIB
    print(f"workspace {workspace:.0f} MiB, peak {peak / MIB:.0f} MiB above the inputs")
    assert workspace <= 2560
    assert got.d_hidden.isfinite().all()


def test_no_wait_for_the_device():
    """With the host's copies and tables on the device nothing in the call waits; without them the
    labels do, which shows that the switch sees it."""
    problem = problem_of(512, 5000, 72, torch.bfloat16)
    segments = problem.segments
    host = OnHost(problem.labels.cpu(), problem.segment_ids.cpu())
    options = {
        "num_segments": segments,
        "chunk_rows": 100,
        "backend": "triton",
        "segment_weights": torch.randn(segments, device="cuda"),
        "p_threshold": 0.9,
        "normalizer": torch.tensor(1000, device="cuda"),
        "reduction": "length_mean",
    }

    def call(n, **more):
        solve(problem, n, **options, **more)

    for n in (64.0, torch.full((segments,), 64.0, device="cuda")):
        call(n, host=host)  # compiles and tunes, which wait
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call(n, host=host)
            with pytest.raises(RuntimeError, match="synchroniz"):
                call(n)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def test_offsets_beyond_32_bits():
    """8300 rows of 262144 logits in one buffer: 2.18e9 elements. The last rows are those that a
    32-bit offset would miss; alone, in a small buffer, they give the same numbers."""
    problem = problem_of(8300, 262144, 64, torch.bfloat16, length=1)
    assert 8300 * 262144 > 2**31
    problem = problem._replace(labels=problem.labels.clamp_min(0))
    options = {"n": 8.0, "reduction": "sum", "backend": "triton"}
    whole = solve(problem, chunk_rows=8300, **options)
    last = slice(8200, 8300)
    alone = solve(
        problem._replace(
            hidden=problem.hidden[last],
            labels=problem.labels[last],
            segment_ids=torch.where(problem.segment_ids[last] > 0, problem.segment_ids[last] - 8200, 0),
        ),
        **options,
    )
    torch.testing.assert_close(  # cuBLAS may add in another order for another number of rows
        whole.output.log_probs[last], alone.output.log_probs, rtol=1e-5, atol=1e-5
    )
    assert distance(whole.d_hidden[last], alone.d_hidden) <= 1e-3
    small = solve(problem, chunk_rows=1024, **options)
    assert distance(whole.d_weight, small.d_weight) <= 4e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_another_device_than_the_current():
    problem = problem_of(64, 5000, 72)
    want = solve(problem, 8.0, backend="triton")
    got = solve(problem.to("cuda:1"), 8.0, backend="triton")
    assert got.output.loss.device.index == 1 and torch.cuda.current_device() == 0
    torch.testing.assert_close(got.output.loss.cpu(), want.output.loss.cpu(), rtol=1e-5, atol=0)
    assert distance(got.d_weight.cpu(), want.d_weight) <= 1e-5


def test_device_side_checks_pass_on_good_input():
    """Values are checked by asserts on the device; good ones go through."""
    problem = problem_of(64, 1000, 72)
    size = problem.segments
    solve(
        problem,
        torch.full((size,), 2.0, device="cuda"),
        value="surrogate",
        p=torch.linspace(0, 1, size, device="cuda"),
        normalizer=torch.tensor(3, device="cuda"),
        segment_weights=torch.ones(size, device="cuda"),
    )
    torch.cuda.synchronize()


def test_tuning_is_remembered(tmp_path, monkeypatch, caplog):
    """The first call writes what it chose; a process that has forgotten reads it and tries nothing."""
    from posttrain_kernels import autotune

    monkeypatch.setenv("POSTTRAIN_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune, "_chosen", {})
    problem = problem_of(300, 9000, 72, torch.bfloat16)
    first = solve(problem, 8.0, backend="triton")
    (file,) = tmp_path.glob("*.json")
    known = json.loads(file.read_text())["row_loss"]
    assert len(known) == 1
    autotune._chosen.clear()

    def never(*_):
        raise AssertionError("tuned again")

    monkeypatch.setattr(autotune, "_milliseconds", never)
    assert_equal(solve(problem, 8.0, backend="triton"), first)
    file.write_text("{ not json")
    autotune._chosen.clear()
    monkeypatch.setattr(autotune, "_milliseconds", lambda launch, config: config.block)
    solve(problem, 8.0, backend="triton")
    assert json.loads(file.read_text())["row_loss"]
    monkeypatch.setenv("POSTTRAIN_KERNELS_AUTOTUNE", "0")
    monkeypatch.setattr(autotune, "_milliseconds", never)
    autotune._chosen.clear()
    solve(problem, 8.0, backend="triton")


def test_inside_a_cuda_graph():
    """Forward and backward captured once and replayed on new hidden states. Every label is trained:
    the rows of a batch with ignored ones are a copy from the host."""
    problem = problem_of(256, 5000, 72, torch.bfloat16)
    problem = problem._replace(labels=problem.labels.clamp_min(0))
    segments = problem.segments
    host = OnHost(problem.labels.cpu(), problem.segment_ids.cpu())
    hidden = problem.hidden.clone().requires_grad_()
    weight = problem.weight.clone().requires_grad_()

    def step():
        hidden.grad = weight.grad = None
        out = confidence_limited(
            hidden,
            weight,
            problem.labels,
            problem.segment_ids,
            64.0,
            host=host,
            num_segments=segments,
            backend="triton",
        )
        out.loss.backward()
        return out.loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    with torch.no_grad():
        hidden.mul_(0.5)
    graph.replay()
    want = solve(problem._replace(hidden=hidden), 64.0, backend="triton")
    assert torch.equal(loss, want.output.loss) and torch.equal(weight.grad, want.d_weight)
