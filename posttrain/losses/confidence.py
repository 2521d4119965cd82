"""Maps the `loss:` section of a recipe to arguments of `posttrain_kernels.confidence_limited`.

    L_N = -log(1 - (1 - p)^N),   dL/dlog p = -F,   F = N (1-p)^(N-1) p / (1 - (1-p)^N)

with p the probability of a segment (Chen et al. 2025, arXiv 2502.07154). The formula, the other members of
the family and their numerics live in `posttrain_kernels.family`; this file only translates. Two facts to
choose N by: F is 1 to fp32 precision whenever log p <= -ln(N-1) - 17.3, so long chains under the model's own
p are trained as by cross-entropy; and token-level N above about 8 is very aggressive (N = 4 at p = 0.9 gives
F = 0.0036).
"""

from __future__ import annotations

from typing import Any

from posttrain.errors import RequestError
from posttrain.recipe.schema import Loss

MEMBERS = {
    "cross_entropy": "cross_entropy",
    "confidence_limited": "confidence",
    "dft": "dft",
    "power": "power",
    "focal": "focal",
    "maxrl": "maxrl",
}
"""Recipe name -> name in `posttrain_kernels.family`. A new member is one line here and one in the schema."""


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
        "skip_below": loss.skip_below,
        "chunk_rows": loss.chunk_rows,
    }


def refuse_backend(loss: Loss, device: str) -> None:
    """Raises `RequestError` where `loss.backend` cannot run on `device` ("cuda", "cpu"), before any data is
    read."""
    from posttrain_kernels import available_backends

    there = available_backends(device)
    if loss.backend not in ("auto", *there):
        where = "a GPU and the triton package" if device == "cpu" else "the triton package"
        raise RequestError(
            f"loss.backend = {loss.backend} needs {where}; here run {', '.join(there)}, or auto"
        )
