"""Every way to compute the loss that the head benchmark compares, each with a line in `VARIANTS`.

A variant's `make` imports what it needs and returns `loss(problem) -> scalar` with gradients for hidden and
weight. A `peer` that returns differentiable log-probabilities of tokens is composed with
`problem.segment_loss`, so it computes the same loss and gradients as `ours`. A `ceiling` computes
cross-entropy only (N = 1, one scalar): it cannot take a weight that is known only after the forward pass, and
shows how fast a head can be. Signatures were read from the sources of the versions named in the `bench` extra
of pyproject.toml.

Left out: tensor-parallel kernels, and anything that needs logits from the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from problem import Problem, segment_loss
from timing import installed

import posttrain_kernels
from posttrain_kernels import confidence_limited

Loss = Callable[[Problem], torch.Tensor]
NOT_INSTALLED = "not installed: pip install posttrain[bench]"
CHUNK_ROWS = 4096  # for peers that let the caller choose: few passes over their fp32 dW, as in ours


@dataclass(frozen=True)
class Variant:
    name: str
    kind: str  # ours | peer | ceiling
    what: str
    make: Callable[[], Loss]
    package: str = "torch"  # the module that must be importable
    needs_gpu: bool = False
    exact: bool = True  # False: drops small gradients by design
    compiles: bool = False  # too slow to start for a toy run

    def reason_not(self, device: torch.device, toy: bool) -> str | None:
        """Why it cannot run here, or None."""
        if not installed(self.package):
            return NOT_INSTALLED
        if self.needs_gpu and device.type != "cuda":
            return "needs a GPU"
        if self.compiles and toy:
            return "left out of toy runs: compiling takes longer than the run"
        return None


# ---- ours ----


def _ours(backend: str, **more) -> Callable[[], Loss]:
    def make() -> Loss:
        def loss(problem: Problem) -> torch.Tensor:
            return confidence_limited(
                problem.hidden,
                problem.weight,
                problem.labels,
                problem.segment_ids,
                problem.n,
                num_segments=problem.segments,
                host=problem.host,
                backend=backend,
                **more,
            ).loss

        return loss

    return make


def _mode_b() -> Loss:
    token_log_probs = posttrain_kernels.token_log_probs

    def loss(problem: Problem) -> torch.Tensor:
        out = token_log_probs(problem.hidden, problem.weight, problem.labels)
        return segment_loss(out.log_probs, problem)

    return loss


# ---- torch ----


def _plain_loss(problem: Problem) -> torch.Tensor:
    logits = (problem.hidden @ problem.weight.t()).float()  # [T, V]
    return segment_loss(-F.cross_entropy(logits, problem.labels, reduction="none"), problem)


def _compiled() -> Loss:
    torch._dynamo.reset()  # each shape compiles for itself; the limit on recompiles is per function

    @torch.compile(dynamic=False)
    def log_probs(hidden, weight, labels):
        return -F.cross_entropy((hidden @ weight.t()).float(), labels, reduction="none")

    def loss(problem: Problem) -> torch.Tensor:
        return segment_loss(log_probs(problem.hidden, problem.weight, problem.labels), problem)

    return loss


# ---- other packages ----


def _trl() -> Loss:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as columns

    def loss(problem: Problem) -> torch.Tensor:
        log_probs, *_ = ChunkedLogProbFunction.apply(
            problem.hidden, problem.weight, None, problem.labels, 1.0, columns, None, 1.0, ("log_probs",)
        )
        return segment_loss(log_probs, problem)

    return loss


def _liger_scaled() -> Loss:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as scaled

    def loss(problem: Problem) -> torch.Tensor:
        nll = scaled.apply(problem.hidden, problem.weight, problem.labels)
        return segment_loss(-nll, problem)

    return loss


def _liger_flce(large_chunks: bool) -> Callable[[], Loss]:
    def make() -> Loss:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as flce

        def loss(problem: Problem) -> torch.Tensor:
            more = {}
            if large_chunks:
                # Rows per chunk = T / ceil(V / (memory H)), rounded up to a power of two.
                tokens, hidden_size, vocab = problem.shape
                pieces = max(1, tokens // CHUNK_ROWS)
                more["chunk_mem_const"] = -(-vocab // (hidden_size * pieces))
            nll = flce(
                problem.hidden,
                problem.weight,
                problem.labels,
                reduction="none",
                accum_dtype=torch.float32,
                **more,
            )
            return segment_loss(-nll, problem)

        return loss

    return make


def _cut(filter_eps: str | None) -> Callable[[], Loss]:
    def make() -> Loss:
        from cut_cross_entropy import linear_cross_entropy

        def loss(problem: Problem) -> torch.Tensor:
            nll = linear_cross_entropy(
                problem.hidden, problem.weight, problem.labels, reduction="none", filter_eps=filter_eps
            )
            return segment_loss(-nll, problem)

        return loss

    return make


def _quack() -> Loss:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda problem: chunked_linear_cross_entropy(
        problem.hidden, problem.weight, problem.labels, chunk_size=CHUNK_ROWS, reduction="mean"
    )


def _liger_cute() -> Loss:
    from liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90 import (
        liger_fused_linear_cross_entropy_sm90 as flce,
    )

    return lambda problem: flce(problem.hidden, problem.weight, problem.labels, reduction="mean")


VARIANTS = (
    Variant("triton", "ours", "Mode A, the default on a GPU", _ours("triton"), needs_gpu=True),
    Variant(
        "triton-skip",
        "ours",
        "Mode A without rows whose weight is below 1e-4",
        _ours("triton", skip_below=1e-4),
        needs_gpu=True,
        exact=False,
    ),
    Variant("torch", "ours", "Mode A in chunks of plain torch, the default on a CPU", _ours("torch")),
    Variant("mode-b", "ours", "differentiable log-probabilities, segment loss by autograd", _mode_b),
    Variant("plain", "peer", "all logits, upcast to fp32, autograd", lambda: _plain_loss),
    Variant("compile", "peer", "plain under torch.compile", _compiled, compiles=True),
    Variant("trl", "peer", "TRL's ChunkedLogProbFunction, log-probabilities only", _trl, "trl"),
    Variant("liger-scaled", "peer", "Liger's fused scaled cross-entropy", _liger_scaled, "liger_kernel"),
    Variant(
        "liger-flce",
        "peer",
        "Liger's fused linear cross-entropy, reduction none, fp32 dW",
        _liger_flce(False),
        "liger_kernel",
        needs_gpu=True,
    ),
    Variant(
        "liger-flce-rows",
        "peer",
        "the same in chunks of 4096 rows or more",
        _liger_flce(True),
        "liger_kernel",
        needs_gpu=True,
    ),
    Variant(
        "cce",
        "peer",
        "cut cross-entropy, every gradient kept",
        _cut(None),
        "cut_cross_entropy",
        needs_gpu=True,
    ),
    Variant(
        "cce-filter",
        "peer",
        "cut cross-entropy, small gradients dropped (its default)",
        _cut("high"),
        "cut_cross_entropy",
        needs_gpu=True,
        exact=False,
    ),
    Variant("quack-ce", "ceiling", "QuACK's chunked linear cross-entropy", _quack, "quack", needs_gpu=True),
    Variant(
        "liger-cute-ce",
        "ceiling",
        "Liger's CuTe linear cross-entropy (Hopper)",
        _liger_cute,
        "liger_kernel",
        needs_gpu=True,
    ),
)
