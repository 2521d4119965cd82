"""The loss in plain torch, with all T x V logits and autograd: what the other back-ends must equal.

    logits = hidden W^T / temperature         log p_t = log softmax(logits)[label]
    log p_s = sum of log p_t over a segment   (L_s, F_s) = family(log p_s)
    loss = sum of w_s L_s / denominator       dL_s / dlog p_s = -F_s, installed by `_WithSlope`

Works in fp32, or in fp64 for fp64 inputs. Left out: any care for memory or time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .family import value_and_weight
from .spec import IGNORE, LossOutput, Spec, count, work_dtype


class _WithSlope(torch.autograd.Function):
    """A number whose value and whose derivative by log p are both given."""

    @staticmethod
    def forward(ctx, logp, value, slope):
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        (slope,) = ctx.saved_tensors
        return upstream * slope, None, None


def run(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    segment_ids: Tensor,
    spec: Spec,
    chunk_rows: int | None = None,
) -> LossOutput:
    dtype = work_dtype(hidden, weight)
    device = hidden.device.type
    with torch.autocast(device, enabled=False):
        return _run(hidden, weight, labels, segment_ids, spec, dtype)


def _run(hidden, weight, labels, segment_ids, spec, dtype):
    kept = labels != IGNORE
    labels_R, ids_R = labels[kept], segment_ids[kept]
    logits_RV = hidden[kept].to(dtype) @ weight.to(dtype).t()
    if spec.temperature != 1:
        logits_RV = logits_RV / spec.temperature
    ce_R = F.cross_entropy(logits_RV, labels_R, reduction="none")

    # One slot a segment; tokens outside every segment stay apart, as plain cross-entropy.
    inside = ids_R > 0
    ce_S = ce_R.new_zeros(spec.num_segments).index_add(0, ids_R[inside] - 1, ce_R[inside])
    lengths_S = torch.bincount(ids_R[inside] - 1, minlength=spec.num_segments)
    logp_S = -ce_S.detach()
    known_S = logp_S if spec.p is None else spec.p.to(dtype).log()
    value_S, coef_S = value_and_weight(known_S, spec.n, spec.member, spec.exponent)
    if spec.value == "surrogate":
        value_S = torch.where(coef_S == 0, 0.0, coef_S * ce_S.detach())

    live_S = lengths_S > 0
    if spec.p_threshold is not None:
        live_S = live_S & ~(known_S.exp() >= spec.p_threshold)
    if spec.weight_threshold is not None:
        live_S = live_S & ~(coef_S <= spec.weight_threshold)
    coef_S = torch.where(live_S, coef_S, 0.0)
    value_S = torch.where(live_S, value_S, 0.0)

    weights_S = torch.ones_like(value_S)
    if spec.segment_weights is not None:
        weights_S = spec.segment_weights.to(dtype)
    value_S = torch.where(weights_S == 0, 0.0, value_S * weights_S)
    slope_S = coef_S * weights_S
    if spec.reduction == "length_mean":
        value_S, slope_S = value_S / lengths_S.clamp_min(1), slope_S / lengths_S.clamp_min(1)
    loss = _WithSlope.apply(ce_S, value_S, slope_S).sum() + ce_R[~inside].sum()
    if spec.reduction != "sum":
        total = spec.normalizer
        if total is None:
            total = count(labels, segment_ids, spec.reduction)
        total = torch.as_tensor(total, device=loss.device)
        loss = loss / torch.where(total > 0, total, 1).to(dtype)

    with torch.no_grad():
        logq_RV = F.log_softmax(logits_RV, dim=1)
        entropy_R = -(logq_RV.exp() * logq_RV).sum(1)
        correct_R = logits_RV.argmax(1) == labels_R
    zeros_T = torch.zeros(labels.shape, dtype=dtype, device=labels.device)
    return LossOutput(
        loss,
        zeros_T.masked_scatter(kept, -ce_R.detach()),
        logp_S,
        coef_S,
        zeros_T.masked_scatter(kept, entropy_R),
        torch.zeros_like(kept).masked_scatter(kept, correct_R),
    )
