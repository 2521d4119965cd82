"""Mode A under torch.compile: one opaque operator, so that a graph holds the loss without a break.

The operator does everything in its body, checks and choice of back-end included, and returns the
gradients beside the outputs; its backward multiplies them by the upstream scalar. What the compiler
needs to know is in the fake: shapes and dtypes. The number of segments must be said, because it is
the shape of two outputs.

Left out: the `reference` back-end (autograd inside an opaque operator), `host`, and vocabulary
shards, which name a process group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import chunked
from .spec import LossOutput, work_dtype

OUTPUTS = len(LossOutput._fields)


@torch.library.custom_op("posttrain_kernels::confidence_limited", mutates_args=())
def _loss(
    hidden: Tensor,
    weight: Tensor,
    u: Tensor | None,
    b: Tensor | None,
    labels: Tensor,
    segment_ids: Tensor,
    n: Tensor,
    p: Tensor | None,
    segment_weights: Tensor | None,
    normalizer: Tensor | None,
    num_segments: int,
    member: str,
    exponent: float | None,
    value: str,
    reduction: str,
    p_threshold: float | None,
    weight_threshold: float | None,
    temperature: float,
    softcap: float | None,
    logit_scale: float | None,
    z_loss: float,
    skip_below: float | None,
    backend: str,
    chunk_rows: int | None,
    wants: Sequence[bool],
) -> list[Tensor]:
    """LossOutput's fields, then the gradients that are wanted, then 1 / denominator."""
    from .dispatch import prepare

    # One N for all is a number again: N = 1 then is cross-entropy by an explicit branch.
    single = float(n) if n.dim() == 0 and n.device.type == "cpu" else n
    factors, spec, name = prepare(
        hidden,
        weight,
        labels,
        segment_ids,
        single,
        member=member,
        exponent=exponent,
        value=value,
        p=p,
        segment_weights=segment_weights,
        reduction=reduction,
        normalizer=normalizer,
        num_segments=num_segments,
        p_threshold=p_threshold,
        weight_threshold=weight_threshold,
        temperature=temperature,
        bias=None,
        low_rank=None if u is None else (u, b),
        softcap=softcap,
        logit_scale=logit_scale,
        z_loss=z_loss,
        skip_below=skip_below,
        vocab=None,
        host=None,
        backend=backend,
        chunk_rows=chunk_rows,
    )
    left, right = factors or (None, None)
    out, grads, inverse = chunked.solve(
        hidden, weight, left, right, labels, segment_ids, spec, name, chunk_rows, tuple(wants)
    )
    if not isinstance(inverse, Tensor):
        inverse = torch.full((), inverse, dtype=out.loss.dtype, device=hidden.device)
    return [*out, *(g for g in grads if g is not None), inverse]


@_loss.register_fake
def _(
    hidden,
    weight,
    u,
    b,
    labels,
    segment_ids,
    n,
    p,
    segment_weights,
    normalizer,
    num_segments,
    member,
    exponent,
    value,
    reduction,
    p_threshold,
    weight_threshold,
    temperature,
    softcap,
    logit_scale,
    z_loss,
    skip_below,
    backend,
    chunk_rows,
    wants,
):
    dtype, tokens = work_dtype(hidden, weight), labels.shape[0]

    def make(*shape, dtype=dtype):
        return hidden.new_empty(shape, dtype=dtype)

    grads = [make(*t.shape) for t, want in zip((hidden, weight, u, b), wants, strict=True) if want]
    return [
        make(),
        make(tokens),
        make(num_segments),
        make(num_segments),
        make(tokens),
        make(tokens, dtype=torch.bool),
        make(tokens),
        make(dtype=torch.int64),
        *grads,
        make(),
    ]


def _setup(ctx, inputs, output):
    ctx.wants = inputs[-1]
    ctx.dtypes = [t.dtype for t, want in zip(inputs[:4], ctx.wants, strict=True) if want]
    ctx.save_for_backward(*output[OUTPUTS:])


def _backward(ctx, upstream):
    *grads, inverse = ctx.saved_tensors
    found = iter(chunked.finish(grads, upstream[0] * inverse, ctx.dtypes))
    return *(next(found) if want else None for want in ctx.wants), *(None,) * 21


_loss.register_autograd(_backward, setup_context=_setup)


def call(hidden, weight, factors, labels, segment_ids, n, num_segments, normalizer, **options):
    """The operator with the arguments of `confidence_limited`, for use while torch.compile traces."""
    u, b = factors or (None, None)
    tensors = (hidden, weight, u, b)
    graph = torch.is_grad_enabled()
    wants = [graph and t is not None and t.requires_grad for t in tensors]
    if normalizer is not None and not isinstance(normalizer, Tensor):
        normalizer = torch.full((), normalizer, dtype=torch.float32, device=hidden.device)
    if not isinstance(n, Tensor):
        n = torch.full((), n, dtype=torch.float32)
    out = torch.ops.posttrain_kernels.confidence_limited(
        *tensors,
        labels,
        segment_ids,
        n,
        options["p"],
        options["segment_weights"],
        normalizer,
        num_segments,
        options["member"],
        options["exponent"],
        options["value"],
        options["reduction"],
        options["p_threshold"],
        options["weight_threshold"],
        options["temperature"],
        options["softcap"],
        options["logit_scale"],
        options["z_loss"],
        options["skip_below"],
        options["backend"],
        options["chunk_rows"],
        wants,
    )
    return LossOutput(out[0], *(t.detach() for t in out[1:OUTPUTS]))
