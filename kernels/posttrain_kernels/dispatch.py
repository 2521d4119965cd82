"""The two public functions: they put the arguments into a request, have it checked, and start the back-end.

    confidence_limited   Mode A: a loss whose gradients are made in the forward pass, 3 matmuls
    token_log_probs      Mode B: differentiable log-probabilities, entropy and log Z, 4 matmuls

Left out: sequence parallelism (take Mode B, add up the segments' log-probabilities over the ranks, then apply
`family`), and double backward.
"""

import torch
from torch import Tensor

from . import chunked, compiled, compiled_tokens, reference, tokens
from .request import LossRequest, Request, check_loss, check_tokens
from .sharded import VocabShard, gathered
from .spec import LossOutput, OnHost, TokenOutput


def confidence_limited(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    segment_ids: Tensor,
    n: float | Tensor = 1.0,
    *,
    member: str = "confidence",
    exponent: float | None = None,
    value: str = "exact",
    p: Tensor | None = None,
    segment_weights: Tensor | None = None,
    reduction: str = "token_mean",
    normalizer: float | Tensor | None = None,
    num_segments: int | None = None,
    p_threshold: float | None = None,
    weight_threshold: float | None = None,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    softcap: float | None = None,
    logit_scale: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    entropy_bonus: float = 0.0,
    skip_below: float | None = None,
    vocab: VocabShard | None = None,
    host: OnHost | None = None,
    backend: str = "auto",
    chunk_rows: int | None = None,
) -> LossOutput:
    """Loss L(log p_s) of every segment s, reduced, with gradients for `hidden` and `weight`.

    hidden [T, H], weight [V, H], labels [T] int64 already shifted (-100 is ignored), segment_ids [T] int64: 0
    for no segment, else 1..S, unique in the call. A trained token outside every segment is a segment of one
    under plain cross-entropy; an ignored token gets no gradient; a segment without trained tokens does not
    count.

    n: N of `confidence`, one number or [S], finite and >= 1; other members ignore it. member, exponent: see
    `family`.

    value: "exact" reports L, "surrogate" reports F * cross-entropy; the gradient is F times that of
    cross-entropy in both. `p` [S] in [0, 1] replaces the model's own probability in F, and then `value` must
    be "surrogate". `segment_weights` [S] multiplies the loss of a segment; any sign.

    reduction: sum | token_mean | segment_mean | length_mean. `normalizer` is the denominator over all
    micro-batches and ranks (see `count`), a number or a scalar tensor; None counts this call; a `sum` is not
    divided, whatever the normalizer. `num_segments` is S; None reads it from the [S] arguments, or else from
    the largest id.

    Gates are strict and close a segment entirely: it keeps its loss only if p_hat < `p_threshold` (p_hat is
    `p` where given, else exp(log p_s)) and F > `weight_threshold`. A closed segment has value, gradient and
    `coef` 0 and still counts in every denominator, which is fixed before the forward pass. Tokens outside
    segments pass.

    Logits are softcap(logit_scale (X W^T + bias + U B^T)) / temperature, with `bias` [V] and `low_rank` a
    pair (U [T, r], B [V, r]): LoRA on the head is U = s X A^T. Both get gradients. `z_loss` adds z_loss *
    log_z^2 of each trained token, reduced as its cross-entropy would be, whatever gates, weights and F are.

    label_smoothing: eps in [0, 1), for member "cross_entropy" only. -log p of a token becomes (1 - eps)
    (-log p) + eps mean_v(-log p_v) over the vocabulary, as in `torch.nn.functional.cross_entropy`; gates and
    weights act on both parts, and `log_probs` and `coef` stay those of the label. `entropy_bonus` subtracts
    entropy_bonus * H of each trained token, in nats, treated as the z-loss is (arXiv 1701.06548, eq. 4). Both
    run on "torch" and "reference": "auto" then takes "torch", also on a GPU. A logit of -inf makes the
    smoothed loss infinite, and the entropy NaN.

    skip_below: rows whose |F * segment weight| is at or below this get no gradient, which saves their two
    matmuls; 0 skips what is exactly zero. It waits for the device once a chunk, so it is off by default.
    `skipped` counts the rows. Not with `z_loss` or `entropy_bonus`, which such rows would lose.

    vocab: `weight`, `bias` and B are this rank's rows of a larger head. host: see `OnHost`.

    backend: "auto" | "triton" | "torch" | "reference". chunk_rows: rows of logits in memory at once
    (`plan.default_chunk_rows` otherwise).

    Raises ValueError, which names the argument, its value and what is allowed. Source: arXiv 2502.07154.
    """
    request = LossRequest(
        hidden=hidden,
        weight=gathered(weight),
        labels=labels,
        segment_ids=segment_ids,
        n=n,
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
        bias=gathered(bias),
        low_rank=_gathered_pair(low_rank),
        softcap=softcap,
        logit_scale=logit_scale,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        entropy_bonus=entropy_bonus,
        skip_below=skip_below,
        vocab=vocab,
        host=host,
        backend=backend,
        chunk_rows=chunk_rows,
    )
    if torch.compiler.is_compiling():
        return compiled.call(request)
    inputs, spec, name = check_loss(request)
    if name == "reference":
        return reference.run(inputs, segment_ids, spec)
    return chunked.run(inputs, segment_ids, spec, name, chunk_rows)


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    softcap: float | None = None,
    logit_scale: float | None = None,
    vocab: VocabShard | None = None,
    backend: str = "auto",
    chunk_rows: int | None = None,
) -> TokenOutput:
    """Differentiable log p(label), entropy and log Z of every token, without T x V logits.

    For DPO, RLVR and losses of your own: any upstream gradients, at the price of computing the logits again
    in backward (4 matmuls; `confidence_limited` needs 3). Arguments and errors are those of
    `confidence_limited`; rows with label -100 are never read and give 0.
    """
    request = Request(
        hidden=hidden,
        weight=gathered(weight),
        labels=labels,
        temperature=temperature,
        bias=gathered(bias),
        low_rank=_gathered_pair(low_rank),
        softcap=softcap,
        logit_scale=logit_scale,
        vocab=vocab,
        backend=backend,
        chunk_rows=chunk_rows,
    )
    if torch.compiler.is_compiling():
        return compiled_tokens.call(request)
    inputs, view, name = check_tokens(request)
    if name == "reference":
        return reference.tokens(inputs, view, vocab)
    return tokens.run(inputs, tokens.settings(inputs, view, name, request))


def _gathered_pair(low_rank):
    pair = isinstance(low_rank, tuple | list)
    return tuple(gathered(t) for t in low_rank) if pair else low_rank
