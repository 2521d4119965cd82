"""The loss in plain torch, with all T x V logits and autograd: what the other back-ends must equal.

    z = view(hidden W^T + U B^T)              log p_t = log softmax(z)[label]
    log p_s = sum of log p_t over a segment   (L_s, F_s) = family(log p_s)
    loss = sum of w_s L_s / denominator       dL_s / dlog p_s = -F_s, installed by `_WithSlope`

Under label smoothing, which is for cross-entropy alone, the smoothed loss takes the place of -log p_t in L_s.

Computes in fp32, or in fp64 for fp64 inputs. Suffixes name the axes: R trained rows, S segments, T tokens, V
words.

Left out: any care for memory or time, and heads that are split over ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .family import value_and_weight
from .sharded import VocabShard
from .spec import IGNORE, Inputs, LossOutput, Spec, TokenOutput, View, count, work_dtype


def run(inputs: Inputs, segment_ids: Tensor, spec: Spec) -> LossOutput:
    """Mode A. Raises ValueError for a head that is split over ranks."""
    _refuse_shards(spec.vocab)
    with torch.autocast(inputs.hidden.device.type, enabled=False):
        return _run(inputs, segment_ids, spec)


def tokens(inputs: Inputs, view: View, vocab: VocabShard | None = None) -> TokenOutput:
    """Mode B: outputs per token, with gradients by autograd. Raises ValueError for a head that is split over
    ranks."""
    _refuse_shards(vocab)
    labels = inputs.labels
    kept = labels != IGNORE
    with torch.autocast(inputs.hidden.device.type, enabled=False):
        z_RV = _logits(inputs, kept, view)
        logq_RV = F.log_softmax(z_RV, dim=1)
        target_R1 = labels[kept].unsqueeze(1)
        zeros_T = torch.zeros(labels.shape, dtype=z_RV.dtype, device=labels.device)
        return TokenOutput(
            zeros_T.masked_scatter(kept, logq_RV.gather(1, target_R1)),
            zeros_T.masked_scatter(kept, -(logq_RV.exp() * logq_RV).sum(1)),
            zeros_T.masked_scatter(kept, z_RV.logsumexp(1)),
            torch.zeros_like(kept).masked_scatter(kept, _correct(z_RV, target_R1)),
        )


class _WithSlope(torch.autograd.Function):
    """The number `value`, whose derivative by `logp` is `slope`."""

    @staticmethod
    def forward(ctx, logp, value, slope):
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        (slope,) = ctx.saved_tensors
        return upstream * slope, None, None


def _refuse_shards(vocab: VocabShard | None) -> None:
    if vocab is not None:
        raise ValueError('vocab: the "reference" back-end needs the whole head; use "torch"')


def _logits(inputs: Inputs, kept: Tensor, view: View) -> Tensor:
    dtype = work_dtype(inputs.hidden, inputs.weight)
    logits_RV = inputs.hidden[kept].to(dtype) @ inputs.weight.to(dtype).t()
    if inputs.left is not None:
        logits_RV = logits_RV + inputs.left[kept].to(dtype) @ inputs.right.to(dtype).t()
    return view.apply(logits_RV)


def _correct(z_RV: Tensor, target_R1: Tensor) -> Tensor:
    return z_RV.gather(1, target_R1).squeeze(1) == z_RV.max(1).values


def _run(inputs: Inputs, segment_ids: Tensor, spec: Spec) -> LossOutput:
    labels = inputs.labels
    kept = labels != IGNORE
    labels_R, ids_R = labels[kept], segment_ids[kept]
    logits_RV = _logits(inputs, kept, spec.view)
    dtype = logits_RV.dtype
    ce_R = F.cross_entropy(logits_RV, labels_R, reduction="none")
    trained_R = ce_R
    if spec.label_smoothing:
        smoothing = spec.label_smoothing
        trained_R = F.cross_entropy(logits_RV, labels_R, reduction="none", label_smoothing=smoothing)

    # One slot for each segment; tokens outside every segment stay apart, as plain cross-entropy.
    inside = ids_R > 0
    ce_S, trained_S = (
        each_R.new_zeros(spec.num_segments).index_add(0, ids_R[inside] - 1, each_R[inside])
        for each_R in (ce_R, trained_R)
    )
    lengths_S = torch.bincount(ids_R[inside] - 1, minlength=spec.num_segments)
    value_S, slope_S, coef_S, skipped = _segments(ce_S.detach(), trained_S.detach(), lengths_S, spec)
    loss = _WithSlope.apply(trained_S, value_S, slope_S).sum() + trained_R[~inside].sum()
    share_R = ce_R.new_ones(ce_R.shape)
    if spec.reduction == "length_mean":
        share_R[inside] = 1 / lengths_S[ids_R[inside] - 1].to(dtype)
    if spec.z_loss:
        loss = loss + spec.z_loss * (share_R * logits_RV.logsumexp(1).square()).sum()
    logq_RV = F.log_softmax(logits_RV, dim=1)
    entropy_R = -(logq_RV.exp() * logq_RV).sum(1)
    if spec.entropy_bonus:
        loss = loss - spec.entropy_bonus * (share_R * entropy_R).sum()
    if spec.reduction != "sum":
        total = spec.normalizer
        if total is None:
            total = count(labels, segment_ids, spec.reduction)
        total = torch.as_tensor(total, device=loss.device)
        loss = loss / torch.where(total > 0, total, 1).to(dtype)

    correct_R = _correct(logits_RV.detach(), labels_R.unsqueeze(1))
    zeros_T = torch.zeros(labels.shape, dtype=dtype, device=labels.device)
    return LossOutput(
        loss,
        zeros_T.masked_scatter(kept, -ce_R.detach()),
        -ce_S.detach(),
        coef_S,
        zeros_T.masked_scatter(kept, entropy_R.detach()),
        torch.zeros_like(kept).masked_scatter(kept, correct_R),
        zeros_T.masked_scatter(kept, logits_RV.detach().logsumexp(1)),
        skipped,
    )


def _segments(
    ce_S: Tensor, trained_S: Tensor, lengths_S: Tensor, spec: Spec
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(value, slope, F, number of skipped rows): `value` and `slope` as they enter the sum, F after the
    gates."""
    dtype = ce_S.dtype
    known_S = -ce_S if spec.p is None else spec.p.to(dtype).log()
    value_S, coef_S = value_and_weight(known_S, spec.n, spec.member, spec.exponent)
    if spec.value == "surrogate":
        value_S = torch.where(coef_S == 0, 0.0, coef_S * ce_S)
    if spec.label_smoothing:
        value_S = trained_S

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
    skipped = torch.zeros((), dtype=torch.int64, device=ce_S.device)
    if spec.skip_below is not None:
        idle_S = slope_S.abs() <= spec.skip_below
        slope_S = torch.where(idle_S, 0.0, slope_S)
        skipped = (idle_S * lengths_S).sum()
    if spec.reduction == "length_mean":
        value_S, slope_S = value_S / lengths_S.clamp_min(1), slope_S / lengths_S.clamp_min(1)
    return value_S, slope_S, coef_S, skipped
