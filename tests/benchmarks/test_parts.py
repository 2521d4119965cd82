"""The parts of the benchmarks that numbers pass through: clocks in turns, summaries, inputs, errors."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from posttrain_kernels import confidence_limited

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(root) -> SimpleNamespace:
    """The modules of kernels/benchmarks, which is a folder of scripts and no package."""
    folder = str(root / "kernels" / "benchmarks")
    names = ("timing", "problem", "peers")
    sys.path.insert(0, folder)
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(folder)
        for name in names:
            sys.modules.pop(name, None)


def test_summary_by_hand(parts):
    """Passes 1 2 9 and 3 4 5 ms: medians 2 and 4, of all six (3 + 4)/2, so the spread is 2/3.5."""
    found = parts.timing.summary([[0.001, 0.002, 0.009], [0.003, 0.004, 0.005]])
    assert found["ms_passes"] == pytest.approx([2, 4])
    assert found["ms"] == pytest.approx(3.5)
    assert found["ms_min"] == pytest.approx(1)
    assert found["spread"] == pytest.approx(2 / 3.5)
    assert found["calls"] == 6


def test_variants_take_turns_and_each_begins_a_round(parts):
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    found = parts.timing.interleave(steps, 3, CPU)
    assert "".join(calls) == "abcbcacab" * 2
    assert {name: [len(times) for times in passes] for name, passes in found.items()} == {
        name: [3, 3] for name in "abc"
    }


@pytest.mark.parametrize("n", [1.0, 16.0, 256.0])
def test_the_composed_loss_is_the_loss(parts, n):
    """Autograd over log-probabilities gives the reference's loss and gradients, in fp64."""
    problem = parts.problem.make_problem(50, 24, 300, torch.float64, CPU, "planted", n)
    truth = parts.problem.reference(problem)

    class Exact(torch.Tensor):
        """Stays in fp64 where the composed loss would go to fp32."""

        def float(self):
            return self

    logits = problem.hidden @ problem.weight.t()
    log_probs = logits.log_softmax(1).gather(1, problem.labels.unsqueeze(1)).squeeze(1)
    loss = parts.problem.segment_loss(log_probs.as_subclass(Exact), problem)
    loss.backward()
    found = parts.problem.errors(problem, loss.detach(), truth)
    assert all(gap < 1e-10 for gap in found.values()), found


def test_errors_see_a_wrong_gradient(parts):
    problem = parts.problem.make_problem(32, 16, 100, torch.float32, CPU)
    truth = parts.problem.reference(problem)
    loss = parts.peers._plain_loss(problem)
    loss.backward()
    problem.weight.grad *= 1.01
    found = parts.problem.errors(problem, loss.detach(), truth)
    assert found["d_weight"] == pytest.approx(0.01, rel=1e-3)
    assert found["d_hidden"] < 1e-5 and found["loss"] < 1e-5


def test_planted_inputs_are_neither_random_nor_learned(parts):
    """F near 1 for random inputs; between 0 and 1, and spread out, for planted ones."""

    def weights(inputs: str) -> torch.Tensor:
        problem = parts.problem.make_problem(1024, 256, 2000, torch.float32, CPU, inputs)
        with torch.no_grad():
            return confidence_limited(
                problem.hidden, problem.weight, problem.labels, problem.segment_ids, 256.0
            ).coef

    assert weights("random").min() > 0.999
    planted = weights("planted")
    assert (planted < 0.1).any() and (planted > 0.9).any()
    assert ((planted > 0.1) & (planted < 0.9)).sum() >= 5


def test_the_floor_is_the_three_matmuls(parts):
    """Same shapes and no zeros: zeros would time too well."""
    problem = parts.problem.make_problem(20, 8, 30, torch.float32, CPU)
    floor = parts.problem.Floor(problem)
    floor()
    torch.testing.assert_close(floor.logits, problem.hidden @ problem.weight.t())
    torch.testing.assert_close(floor.d_hidden, floor.delta @ problem.weight)
    torch.testing.assert_close(floor.d_weight, floor.delta.t() @ problem.hidden)
    assert (floor.delta != 0).all()
    assert parts.problem.head_flops(20, 8, 30) == 6 * 20 * 8 * 30


def test_no_variant_is_listed_twice_and_ceilings_are_marked(parts):
    variants = parts.peers.VARIANTS
    assert len({v.name for v in variants}) == len(variants)
    assert {v.kind for v in variants} == {"ours", "peer", "ceiling"}
    assert all(v.what and v.package for v in variants)


def test_reasons(parts, monkeypatch):
    variant = parts.peers.Variant("x", "peer", "x", lambda: None, "no_such_module_here", True)
    assert variant.reason_not(CPU, toy=False) == parts.peers.NOT_INSTALLED
    variant = parts.peers.Variant("x", "peer", "x", lambda: None, needs_gpu=True)
    assert variant.reason_not(CPU, toy=False) == "needs a GPU"
    assert variant.reason_not(torch.device("cuda"), toy=False) is None
    variant = parts.peers.Variant("x", "peer", "x", lambda: None, compiles=True)
    assert variant.reason_not(CPU, toy=False) is None
    assert "toy" in variant.reason_not(CPU, toy=True)


def test_a_peak_is_seen(parts):
    """64 MiB held for a moment."""
    if not parts.timing.Peak.known(CPU):
        pytest.skip("needs Linux's /proc")
    peak = parts.timing.Peak(CPU)
    peak.start()
    block = torch.ones(16 * 2**20)
    del block
    assert 50 < peak.mib() < 120
