"""Mode B under torch.compile: one opaque operator forward, one backward, as `compiled` does for Mode A.

Tables that backward wants leave the forward operator as [T], since the number of trained rows is not
known to a graph. Left out: the `reference` back-end and vocabulary shards.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import tokens
from .rows import pick, scatter
from .spec import TokenOutput, work_dtype

OUTPUTS = len(TokenOutput._fields)


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
    chosen = _settings(hidden, weight, u, b, labels, temperature, softcap, logit_scale, backend, chunk_rows)
    rows = tokens.trained_rows(labels)
    stats, kept = tokens.forward(hidden, weight, u, b, labels, rows, chosen)
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
    chosen = _settings(hidden, weight, u, b, labels, temperature, softcap, logit_scale, backend, chunk_rows)
    rows = tokens.trained_rows(labels)
    kept = [pick(t, rows) for t in kept]
    upstream = d_log_p, d_entropy, d_log_z
    grads = tokens.backward(hidden, weight, u, b, labels, rows, upstream, kept, needs, chosen)
    return [g for g in grads if g is not None]


def _settings(hidden, weight, u, b, labels, temperature, softcap, scale, backend, chunk_rows):
    from .dispatch import prepare_tokens

    low_rank = None if u is None else (u, b)
    view, _, name = prepare_tokens(
        hidden,
        weight,
        labels,
        temperature=temperature,
        bias=None,
        low_rank=low_rank,
        softcap=softcap,
        logit_scale=scale,
        vocab=None,
        backend=backend,
        chunk_rows=chunk_rows,
    )
    return tokens.settings(hidden, weight, view, None, name, chunk_rows)


@_forward.register_fake
def _(hidden, weight, u, b, labels, temperature, softcap, logit_scale, backend, chunk_rows):
    dtypes = [work_dtype(hidden, weight)] * 6
    dtypes[3] = torch.bool
    return [hidden.new_empty(labels.shape, dtype=dtype) for dtype in dtypes]


@_backward.register_fake
def _(
    hidden,
    weight,
    u,
    b,
    labels,
    kept,
    d_log_p,
    d_entropy,
    d_log_z,
    temperature,
    softcap,
    logit_scale,
    backend,
    chunk_rows,
    needs,
):
    inputs = zip((hidden, weight, u, b), needs, strict=True)
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t, n in inputs if n]


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


def call(hidden, weight, factors, labels, *options) -> TokenOutput:
    """The operator, for use while torch.compile traces."""
    u, b = factors or (None, None)
    out = torch.ops.posttrain_kernels.token_log_probs(hidden, weight, u, b, labels, *options)
    return TokenOutput(*out[:OUTPUTS])
