"""Mode B under torch.compile: one opaque operator forward, one backward, as `compiled` does for Mode A.

Tables that backward needs leave the forward operator as [T], since a graph does not know the number of
trained rows. Operators take tensors and plain values, not a `Request`, hence their long lists of arguments.

Left out: the `reference` back-end and vocabulary shards.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import tokens
from .request import Request, check_tokens
from .rows import pick, scatter
from .spec import Inputs, TokenOutput, work_dtype

OUTPUTS = len(TokenOutput._fields)
OPTIONS = ("temperature", "softcap", "logit_scale", "backend", "chunk_rows")
"""Fields of a `Request` that the operators take as they are, in the order of their arguments."""


@torch.library.custom_op("posttrain_kernels::token_log_probs", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    u: Tensor | None,
    b: Tensor | None,
    labels: Tensor,
    temperature: float,
    softcap: float | None,
    logit_scale: float | None,
    backend: str,
    chunk_rows: int | None,
) -> list[Tensor]:
    """TokenOutput's fields, then peak and log total, all [T]."""
    inputs = Inputs(hidden, weight, u, b, labels)
    chosen = _settings(inputs, temperature, softcap, logit_scale, backend, chunk_rows)
    rows = tokens.trained_rows(labels)
    stats, kept = tokens.forward(inputs, rows, chosen)
    tables = stats.log_probs, stats.entropy, stats.log_z, stats.correct, *kept[:2]
    return [scatter(t.clone(), rows, labels.numel()) for t in tables]


@torch.library.custom_op("posttrain_kernels::token_log_probs_backward", mutates_args=())
def _backward(
    hidden: Tensor,
    weight: Tensor,
    u: Tensor | None,
    b: Tensor | None,
    labels: Tensor,
    kept: Sequence[Tensor],
    d_log_p: Tensor | None,
    d_entropy: Tensor | None,
    d_log_z: Tensor | None,
    temperature: float,
    softcap: float | None,
    logit_scale: float | None,
    backend: str,
    chunk_rows: int | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    """The gradients that are needed of hidden, weight, U, B. `kept`: peak, log total, log p, H."""
    inputs = Inputs(hidden, weight, u, b, labels)
    chosen = _settings(inputs, temperature, softcap, logit_scale, backend, chunk_rows)
    rows = tokens.trained_rows(labels)
    kept = [pick(t, rows) for t in kept]
    grads = tokens.backward(inputs, rows, (d_log_p, d_entropy, d_log_z), kept, needs, chosen)
    return [g for g in grads if g is not None]


def _settings(inputs: Inputs, *options) -> tokens.Settings:
    low_rank = None if inputs.left is None else (inputs.left, inputs.right)
    request = Request(
        hidden=inputs.hidden,
        weight=inputs.weight,
        labels=inputs.labels,
        low_rank=low_rank,
        **dict(zip(OPTIONS, options, strict=True)),
    )
    _, view, name = check_tokens(request)
    return tokens.settings(inputs, view, name, request)


@_forward.register_fake
def _(hidden, weight, u, b, labels, *options):
    dtypes = [work_dtype(hidden, weight)] * 6
    dtypes[3] = torch.bool
    return [hidden.new_empty(labels.shape, dtype=dtype) for dtype in dtypes]


@_backward.register_fake
def _(hidden, weight, u, b, *rest):
    inputs = zip((hidden, weight, u, b), rest[-1], strict=True)
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t, need in inputs if need]


def _setup(ctx, inputs, output):
    log_p, entropy, _, _, peak, log_total = output
    ctx.save_for_backward(*inputs[:5], peak, log_total, log_p, entropy)
    ctx.options = inputs[5:]
    ctx.set_materialize_grads(False)


def _gradients(ctx, upstream):
    inputs, kept = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    needs = list(ctx.needs_input_grad[:4])
    nothing = (None,) * (1 + len(ctx.options))
    if all(d is None for d in upstream[:3]):
        return (None,) * 4 + nothing
    found = iter(
        torch.ops.posttrain_kernels.token_log_probs_backward(
            *inputs, list(kept), *upstream[:3], *ctx.options, needs
        )
    )
    return *(next(found) if need else None for need in needs), *nothing


_forward.register_autograd(_gradients, setup_context=_setup)


def call(request: Request) -> TokenOutput:
    """The operator, for use while torch.compile traces; it does its checks when it runs.

    Raises ValueError for an argument that it does not support.
    """
    request.refuse_traced()
    options = (getattr(request, name) for name in OPTIONS)
    out = torch.ops.posttrain_kernels.token_log_probs(*request.inputs(), *options)
    return TokenOutput(*out[:OUTPUTS])
