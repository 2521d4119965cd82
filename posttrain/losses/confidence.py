"""Maps the `loss:` section of a recipe to arguments of `posttrain_kernels.confidence_limited`.

    L_N = -log(1 - (1 - p)^N),   dL/dlog p = -F,   F = N (1-p)^(N-1) p / (1 - (1-p)^N)

with p the probability of a segment (Chen et al. 2025, arXiv 2502.07154). Two facts for the choice of N: F is
1 to fp32 precision whenever log p <= -ln(N-1) - 17.3, so with the model's own p a long chain of thought is
trained as by cross-entropy; and token-level N above about 8 is very aggressive (N = 4 at p = 0.9 gives F =
0.0036).

Left out: the formulas, the other members of the family and their numerics, which are in
`posttrain_kernels.family`.
"""

from __future__ import annotations

from typing import Any

from posttrain.errors import RequestError
from posttrain.recipe.schema import Loss
from posttrain_kernels import available_backends

MEMBERS = {
    "cross_entropy": "cross_entropy",
    "confidence_limited": "confidence",
    "dft": "dft",
    "power": "power",
    "focal": "focal",
    "maxrl": "maxrl",
}
"""Name in a recipe -> name in `posttrain_kernels.family`. kernels/README.md lists what else a new member
needs."""


def arguments(loss: Loss) -> dict[str, Any]:
    """Keyword arguments that stay the same for every micro-batch of a run."""
    return {
        "member": MEMBERS[loss.name],
        "n": loss.n,
        "exponent": loss.exponent,
        "value": loss.value,
        "reduction": loss.reduction,
        "p_threshold": loss.p_below,
        "weight_threshold": loss.weight_above,
        "backend": loss.backend,
        "z_loss": loss.z_loss,
        "label_smoothing": loss.label_smoothing,
        "entropy_bonus": loss.entropy_bonus,
        "skip_below": loss.skip_below,
        "chunk_rows": loss.chunk_rows,
    }


def refuse_backend(loss: Loss, device: str) -> None:
    """Raises `RequestError` where `loss.backend` cannot run on `device` ("cuda" or "cpu"). Called before any
    data is read."""
    there = available_backends(device)
    if loss.backend not in ("auto", *there):
        needed = "a GPU and the triton package" if device == "cpu" else "the triton package"
        raise RequestError(
            f"loss.backend = {loss.backend} needs {needed}; available here are {', '.join(there)} and auto"
        )
