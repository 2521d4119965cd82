"""Mode A under torch.compile: one opaque operator, so that a graph contains the loss without a break.

The operator does everything in its body, checks and choice of back-end included, and returns the gradients
along with the outputs; its backward multiplies them by the upstream scalar. The shapes and dtypes that the
compiler needs are in the fake. The number of segments must be given, because it is the shape of two outputs.

An operator takes tensors and plain values, not a `LossRequest`, hence its long list of arguments.

Left out: the `reference` back-end (autograd inside an opaque operator), `host`, and vocabulary shards, which
name a process group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import chunked
from .request import LossRequest, check_loss
from .spec import LossOutput, work_dtype

OUTPUTS = len(LossOutput._fields)
OPTIONS = (
    "member",
    "exponent",
    "value",
    "reduction",
    "p_threshold",
    "weight_threshold",
    "temperature",
    "softcap",
    "logit_scale",
    "z_loss",
    "label_smoothing",
    "entropy_bonus",
    "skip_below",
    "backend",
    "chunk_rows",
)
"""Fields of a `LossRequest` that the operator takes as they are, in the order of its arguments."""


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
    label_smoothing: float,
    entropy_bonus: float,
    skip_below: float | None,
    backend: str,
    chunk_rows: int | None,
    wants: Sequence[bool],
) -> list[Tensor]:
    """LossOutput's fields, then the gradients that are wanted, then 1 / denominator."""
    given = locals()
    request = LossRequest(
        hidden=hidden,
        weight=weight,
        labels=labels,
        segment_ids=segment_ids,
        # One N for all segments is a number again: N = 1 is cross-entropy by an explicit branch.
        n=float(n) if n.dim() == 0 and n.device.type == "cpu" else n,
        p=p,
        segment_weights=segment_weights,
        normalizer=normalizer,
        num_segments=num_segments,
        low_rank=None if u is None else (u, b),
        **{name: given[name] for name in OPTIONS},
    )
    inputs, spec, name = check_loss(request)
    out, grads, inverse = chunked.solve(inputs, segment_ids, spec, name, chunk_rows, tuple(wants))
    if not isinstance(inverse, Tensor):
        inverse = torch.full((), inverse, dtype=out.loss.dtype, device=hidden.device)
    return [*out, *(g for g in grads if g is not None), inverse]


@_loss.register_fake
def _(hidden, weight, u, b, labels, segment_ids, n, p, segment_weights, normalizer, num_segments, *options):
    dtype, tokens, wants = work_dtype(hidden, weight), labels.shape[0], options[-1]

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
    ctx.nothing = (None,) * (len(inputs) - 4)
    ctx.dtypes = [t.dtype for t, want in zip(inputs[:4], ctx.wants, strict=True) if want]
    ctx.save_for_backward(*output[OUTPUTS:])


def _backward(ctx, upstream):
    *grads, inverse = ctx.saved_tensors
    found = iter(chunked.finish(grads, upstream[0] * inverse, ctx.dtypes))
    return *(next(found) if want else None for want in ctx.wants), *ctx.nothing


_loss.register_autograd(_backward, setup_context=_setup)


def call(request: LossRequest) -> LossOutput:
    """The operator, for use while torch.compile traces; it does its checks when it runs.

    Raises ValueError for an argument that it does not support, and where S is not known.
    """
    request.refuse_traced()
    size = _num_segments(request)
    inputs = request.inputs()
    tensors = inputs[:4]
    graph = torch.is_grad_enabled()
    wants = [graph and t is not None and t.requires_grad for t in tensors]
    n, normalizer = request.n, request.normalizer
    if normalizer is not None and not isinstance(normalizer, Tensor):
        normalizer = torch.full((), normalizer, dtype=torch.float32, device=inputs.hidden.device)
    if not isinstance(n, Tensor):
        n = torch.full((), n, dtype=torch.float32)
    out = torch.ops.posttrain_kernels.confidence_limited(
        *tensors,
        inputs.labels,
        request.segment_ids,
        n,
        request.p,
        request.segment_weights,
        normalizer,
        size,
        *(getattr(request, name) for name in OPTIONS),
        wants,
    )
    return LossOutput(out[0], *(t.detach() for t in out[1:OUTPUTS]))


def _num_segments(request: LossRequest) -> int:
    """S as it is known without looking at the ids."""
    if request.num_segments is not None:
        return request.num_segments
    for table in (request.n, request.p, request.segment_weights):
        if isinstance(table, Tensor) and table.dim() > 0:
            return table.shape[0]
    raise ValueError("num_segments: needed under torch.compile, where it is a shape")
