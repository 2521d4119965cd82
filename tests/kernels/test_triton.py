"""Triton's back-end against the fp64 reference: every feature, every dtype, every tile.

On a machine without a GPU the kernels run in Triton's interpreter, one program at a time, hence the
small shapes; with one they run natively (`-m gpu`), and `test_gpu` adds the real shapes.
"""

import itertools

import pytest
import torch

from posttrain_kernels import rows_triton
from posttrain_kernels.spec import View
from tests.kernels.features import FEATURES
from tests.kernels.problems import confident, random_problem, solve
from tests.kernels.protocol import LOW, assert_protocol, errors, plain_torch


def against_fp64(place, problem, dtype, options):
    """Triton on `problem` in `dtype`, judged by fp64 on the same numbers."""
    problem = problem.to(dtype)
    got = place.solve(problem, **options)
    want = solve(problem.to(torch.float64), backend="reference", **options)
    plain = None
    if dtype != torch.float32:
        plain = plain_torch(problem, **options)
    return got, assert_protocol(got, want, plain, dtype, problem.logits_peak(), options)


def judge(place, problem, dtype, options):
    """fp32 by the protocol; four rows of bf16 are too few for its comparison, 4e-3 holds."""
    if dtype == torch.float32:
        return against_fp64(place, problem, dtype, options)
    problem = problem.to(dtype)
    got = place.solve(problem, **options)
    want = solve(problem.to(torch.float64), backend="reference", **options)
    found = errors(got, want, options)
    assert found.log_probs <= 1e-4 and max(found.gradients.values()) <= 4e-3, found


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature(triton_place, name):
    problem, options = FEATURES[name].build(40)
    got, found = against_fp64(triton_place, problem, torch.float32, options)
    assert got.output.loss.dtype == torch.float32 and found.gradients
    coef = got.output.coef
    if "gate" in name:
        assert (coef == 0).any() and (coef > 0).any(), "the gate must stop some and keep some"
    if "skip" in name:
        assert 0 < got.output.skipped < (problem.labels >= 0).sum()


# 127 rows of 1000 logits: enough entries for the rounding of outputs to bf16, which both share, to
# average out of the comparison with plain torch.
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(
    "name",
    [
        "confidence",
        "bias and LoRA, trained alone",
        "softcap, scale, temperature, LoRA",
        "z-loss, length_mean, softcap, LoRA",
    ],
)
def test_low_precision(triton_place, dtype, name):
    problem, options = FEATURES[name].build(127, vocab=1000, width=72)
    if "softcap" in options:
        options["softcap"] = 12.0  # a lower cap would leave every F at 1
    if "z_loss" in options:
        options["z_loss"] = 1e-3  # ten times what is usual
    got, _ = against_fp64(triton_place, problem, LOW[dtype], {**options, "n": 64.0})
    coef = got.output.coef
    assert ((coef > 1e-4) & (coef < 0.99)).sum() >= 3, "F of 0 or 1 shows nothing"
    assert got.d_weight.dtype == LOW[dtype]


@pytest.mark.parametrize("dtype", LOW)
def test_low_precision_with_large_logits(triton_place, dtype):
    """|z| to 80, where bf16 logits would be off by 0.25."""
    problem = confident(random_problem(127, 1000, 72, spread=20.0), 80.0)
    _, found = against_fp64(triton_place, problem, LOW[dtype], {"n": 64.0})
    assert problem.logits_peak() > 70 and found.weight > 0


TILES = sorted({config.block for config in rows_triton.CONFIGS})


@pytest.mark.parametrize("config", rows_triton.CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tile_edges(triton_place, monkeypatch, config, dtype):
    """Targets at columns 0 and V - 1 and on either side of a tile's edge, V one off a tile, a whole
    tile, and two and a bit. D of a later tile lies over logits of an earlier one."""
    if triton_place.device == "cpu" and config.warps != min(
        c.warps for c in rows_triton.CONFIGS if c.block == config.block
    ):
        pytest.skip("the interpreter has no warps: the same tile once is enough")
    monkeypatch.setattr(rows_triton, "CONFIGS", (config,))
    tile = config.block
    for vocab in (tile - 1, tile, tile + 1, 2 * tile + 9):
        labels = torch.tensor([0, vocab - 1, min(tile, vocab) - 1, min(tile + 1, vocab) - 1, -100])
        # 8 wide, a confident row's gradient cancels so far that plain fp32 itself passes 1e-5 on some
        # machines
        problem = random_problem(5, vocab, 16)._replace(
            labels=labels, segment_ids=torch.tensor([1, 1, 2, 2, 0])
        )
        rows = rows_triton.Rows(1, vocab, *_settings(dtype, triton_place.device))
        assert rows.config.block == (tile if vocab >= tile else rows.config.block)
        judge(triton_place, confident(problem), dtype, {"n": 4.0})


def _settings(dtype, device):
    return View(), torch.float32, dtype, device


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 1000])
def test_small_vocabularies(triton_place, vocab):
    for tokens in (1, 7):
        problem = random_problem(tokens, vocab)
        against_fp64(triton_place, problem, torch.float32, {"n": 4.0})


def test_rows_of_the_buffer_are_aligned():
    """Whatever V, rows start on 256 bytes, so that 16-byte loads are possible."""
    for vocab, dtype in itertools.product((1, 37, 64, 50257), (torch.float32, torch.bfloat16)):
        rows = rows_triton.Rows(3, vocab, *_settings(dtype, "cpu"))
        assert rows.buffer.stride(0) % 64 == 0 and rows.vocab <= rows.reach <= rows.buffer.stride(0)
        assert rows.reach % 16 == 0
        assert rows.logits(2).shape == rows.deltas[:2, :vocab].shape
        assert rows.deltas.dtype == dtype and rows.deltas.data_ptr() == rows.buffer.data_ptr()
