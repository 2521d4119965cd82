"""The public functions: check the arguments, pick a back-end, say which one in the log.

    confidence_limited   Mode A: a loss whose gradients are made in the forward pass, 3 matmuls
    token_log_probs      Mode B: differentiable log-probabilities, entropy and log Z, 4 matmuls

Left out: sequence parallelism (take Mode B, add up the segments' log-probabilities over the ranks,
then apply `family`), and double backward.
"""

import logging
import math

import torch
from torch import Tensor

from . import checks, chunked, compiled, compiled_tokens, reference, rows, tokens
from .family import MEMBERS
from .sharded import whole
from .spec import REDUCTIONS, VALUES, LossOutput, OnHost, Spec, TokenOutput, work_dtype
from .vocab import VocabShard

logger = logging.getLogger("posttrain_kernels")

BACKENDS = ("triton", "torch", "reference")
_announced: set[tuple[str, str]] = set()


def available_backends(device: str = "cpu") -> tuple[str, ...]:
    """Names that `backend=` accepts on `device` besides "auto", fastest first."""
    return BACKENDS if rows.why_not_triton(torch.device(device)) is None else BACKENDS[1:]


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
    skip_below: float | None = None,
    vocab: VocabShard | None = None,
    host: OnHost | None = None,
    backend: str = "auto",
    chunk_rows: int | None = None,
) -> LossOutput:
    """Loss L(log p_s) of every segment s, reduced, with gradients for `hidden` and `weight`.

    hidden [T, H], weight [V, H], labels [T] int64 already shifted (-100 is ignored), segment_ids
    [T] int64: 0 for no segment, else 1..S, unique in the call. A trained token outside every
    segment is a segment of one under plain cross-entropy; an ignored token takes nothing; a segment
    without trained tokens counts nothing. `n`: N of `confidence`, one number or [S], finite and >=
    1; other members ignore it. See `family` for `member` and `exponent`.

    value: "exact" reports L, "surrogate" reports F * cross-entropy; the gradient is F times that of
    cross-entropy in both. `p` [S] in [0, 1] replaces the model's own probability in F, and then
    `value` must be "surrogate". `segment_weights` [S] multiplies the loss of a segment, any sign.

    reduction: sum | token_mean | segment_mean | length_mean. `normalizer` is the denominator over
    all micro-batches and ranks (see `count`), a number or a scalar tensor; None counts this call;
    `sum` divides by nothing, whatever the normalizer. `num_segments` is S; None reads it from the
    [S] arguments, else from the largest id.

    Gates are strict and close a segment entirely: it keeps its loss only if p_hat < `p_threshold`
    (p_hat is `p` where given, else exp(log p_s)) and F > `weight_threshold`. A closed segment has
    value, gradient and `coef` 0 and still counts in every denominator, which is fixed before the
    forward pass. Tokens outside segments pass.

    Logits are softcap(logit_scale (X W^T + bias + U B^T)) / temperature, with `bias` [V] and
    `low_rank` a pair (U [T, r], B [V, r]): LoRA on the head is U = s X A^T. Both get gradients.
    `z_loss` adds z_loss * log_z^2 of each trained token, reduced as its cross-entropy would be.

    skip_below: rows whose |F * segment weight| is at or under this get no gradient and save its
    two matmuls; 0 skips what is exactly zero. Costs one wait for the device, off by default; `skipped` counts the rows.
    vocab: `weight`, `bias` and B are this rank's rows of a larger head. host: see `OnHost`.

    backend: "auto" | "triton" | "torch" | "reference". chunk_rows: rows of logits in memory at once
    (`plan.default_chunk_rows` otherwise).
    """
    weight, bias, low_rank = whole(weight), whole(bias), _whole_pair(low_rank)
    options = {
        "member": member,
        "exponent": exponent,
        "value": value,
        "p": p,
        "segment_weights": segment_weights,
        "reduction": reduction,
        "p_threshold": p_threshold,
        "weight_threshold": weight_threshold,
        "temperature": temperature,
        "softcap": softcap,
        "logit_scale": logit_scale,
        "z_loss": z_loss,
        "skip_below": skip_below,
        "backend": backend,
        "chunk_rows": chunk_rows,
    }
    if torch.compiler.is_compiling():
        return _traced(
            hidden, weight, labels, segment_ids, n, num_segments, normalizer, bias, low_rank, vocab, options
        )
    factors, spec, name = prepare(
        hidden,
        weight,
        labels,
        segment_ids,
        n,
        normalizer=normalizer,
        num_segments=num_segments,
        bias=bias,
        low_rank=low_rank,
        vocab=vocab,
        host=host,
        **options,
    )
    if name == "reference":
        return reference.run(hidden, weight, factors, labels, segment_ids, spec)
    return chunked.run(hidden, weight, factors, labels, segment_ids, spec, name, chunk_rows)


def prepare(
    hidden,
    weight,
    labels,
    segment_ids,
    n,
    *,
    member,
    exponent,
    value,
    p,
    segment_weights,
    reduction,
    normalizer,
    num_segments,
    p_threshold,
    weight_threshold,
    temperature,
    bias,
    low_rank,
    softcap,
    logit_scale,
    z_loss,
    skip_below,
    vocab,
    host,
    backend,
    chunk_rows,
):
    """Every check of `confidence_limited`: (factors, Spec, name of the back-end)."""
    checks.head(hidden, weight, labels, vocab)
    checks.ids("segment_ids", segment_ids, hidden)
    checks.host(host, labels)
    checks.choice("member", member, MEMBERS)
    checks.choice("value", value, VALUES)
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.exponent(member, exponent)
    if p is not None and value != "surrogate":
        raise ValueError(f'p: an external p needs value="surrogate", not value={value!r}')
    for name, given in (("p_threshold", p_threshold), ("weight_threshold", weight_threshold)):
        checks.number(name, given, lambda x: not math.isnan(x), "a number")
    checks.number("z_loss", z_loss, lambda x: 0 <= x < math.inf, "a finite number >= 0")
    checks.number("skip_below", skip_below, lambda x: x >= 0, "a number >= 0")
    if z_loss and skip_below is not None:
        raise ValueError("skip_below: a skipped row would lose its z_loss too; use one of the two")
    _chunk_rows(chunk_rows)
    view = checks.view(logit_scale, softcap, temperature)
    factors = checks.factors(hidden, weight, bias, low_rank)
    n, p, segment_weights, size = _tables(n, p, segment_weights, num_segments, segment_ids)
    spec = Spec(
        n,
        member,
        exponent,
        value,
        p,
        segment_weights,
        reduction,
        _normalizer(normalizer, hidden),
        size,
        p_threshold,
        weight_threshold,
        view,
        float(z_loss),
        skip_below,
        vocab,
        host,
    )
    return factors, spec, _choose(backend, hidden, weight)


def _traced(hidden, weight, labels, segment_ids, n, num_segments, normalizer, bias, low_rank, vocab, options):
    """Under torch.compile: an opaque operator, which does its checks when it runs."""
    _refuse_traced(vocab, options["backend"])
    for table in (n, options["p"], options["segment_weights"]):
        if num_segments is None and isinstance(table, Tensor) and table.dim() > 0:
            num_segments = table.shape[0]
    if num_segments is None:
        raise ValueError("num_segments: needed under torch.compile, where it is a shape")
    factors = checks.factors(hidden, weight, bias, low_rank)
    return compiled.call(hidden, weight, factors, labels, segment_ids, n, num_segments, normalizer, **options)


def _refuse_traced(vocab: VocabShard | None, backend: str) -> None:
    if vocab is not None or backend == "reference":
        name = "vocab" if vocab is not None else "backend"
        raise ValueError(f"{name}: not supported under torch.compile")


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

    For DPO, RLVR and losses written outside: any upstream gradients, at the price of computing the
    logits again in backward (4 matmuls; `confidence_limited` needs 3). Arguments are those of
    `confidence_limited`; rows with label -100 are never read and give 0.
    """
    weight, bias, low_rank = whole(weight), whole(bias), _whole_pair(low_rank)
    if torch.compiler.is_compiling():
        _refuse_traced(vocab, backend)
        factors = checks.factors(hidden, weight, bias, low_rank)
        options = temperature, softcap, logit_scale, backend, chunk_rows
        return compiled_tokens.call(hidden, weight, factors, labels, *options)
    view, factors, name = prepare_tokens(
        hidden,
        weight,
        labels,
        temperature=temperature,
        bias=bias,
        low_rank=low_rank,
        softcap=softcap,
        logit_scale=logit_scale,
        vocab=vocab,
        backend=backend,
        chunk_rows=chunk_rows,
    )
    if name == "reference":
        return reference.tokens(hidden, weight, factors, labels, view, vocab)
    return tokens.run(hidden, weight, factors, labels, view, vocab, name, chunk_rows)


def prepare_tokens(
    hidden, weight, labels, *, temperature, bias, low_rank, softcap, logit_scale, vocab, backend, chunk_rows
):
    """Every check of `token_log_probs`: (View, factors, name of the back-end)."""
    checks.head(hidden, weight, labels, vocab)
    _chunk_rows(chunk_rows)
    view = checks.view(logit_scale, softcap, temperature)
    factors = checks.factors(hidden, weight, bias, low_rank)
    return view, factors, _choose(backend, hidden, weight)


def _choose(backend: str, hidden: Tensor, weight: Tensor) -> str:
    checks.choice("backend", backend, ("auto", *BACKENDS))
    obstacle = rows.why_not_triton(hidden.device, work_dtype(hidden, weight))
    if backend == "triton" and obstacle is not None:
        raise ValueError(f'backend: "triton" {obstacle}')
    name = backend
    if backend == "auto":
        name = "triton" if hidden.is_cuda and obstacle is None else "torch"
    if (name, hidden.device.type) not in _announced:
        _announced.add((name, hidden.device.type))
        reason = f"; triton {obstacle}" if hidden.is_cuda and name == "torch" and obstacle else ""
        logger.info("the loss runs on the %s back-end (%s%s)", name, hidden.device.type, reason)
    return name


def _whole_pair(low_rank):
    pair = isinstance(low_rank, tuple | list)
    return tuple(whole(t) for t in low_rank) if pair else low_rank


def _chunk_rows(given: int | None) -> None:
    if given is not None and (not isinstance(given, int) or given < 1):
        raise ValueError(f"chunk_rows: {given!r} is not an integer >= 1")


def _tables(n, p, segment_weights, num_segments, segment_ids):
    """`n`, `p` and `segment_weights` checked and on the device of the ids, and S."""
    tables = {"n": n, "p": p, "segment_weights": segment_weights}
    tables = {name: t for name, t in tables.items() if isinstance(t, Tensor) and t.dim() > 0}
    size = checks.segment_count(num_segments, tables, segment_ids)
    for name, table in tables.items():
        if table.shape != (size,):
            raise ValueError(f"{name}: shape {tuple(table.shape)}, expected [S] = ({size},)")
    device = segment_ids.device
    if p is not None:
        if "p" not in tables:
            raise ValueError("p: expected a tensor [S]")
        checks.require((p >= 0) & (p <= 1), "p", p, "outside [0, 1]")
        p = p.detach().to(device)
    if segment_weights is not None:
        if "segment_weights" not in tables:
            raise ValueError("segment_weights: expected a tensor [S]")
        checks.require(segment_weights.isfinite(), "segment_weights", segment_weights, "not finite")
        segment_weights = segment_weights.detach().to(device)
    if isinstance(n, Tensor):
        checks.require((n >= 1) & n.isfinite(), "n", n, "not a finite number >= 1")
        n = n.detach().to(device).expand(size)
    elif not (math.isfinite(n) and n >= 1):
        raise ValueError(f"n: {n} is not a finite number >= 1")
    return n, p, segment_weights, size


def _normalizer(given: float | Tensor | None, hidden: Tensor) -> float | Tensor | None:
    if isinstance(given, Tensor):
        if given.numel() != 1:
            raise ValueError(f"normalizer: shape {tuple(given.shape)}, expected a scalar")
        checks.require(given >= 0, "normalizer", given, "not >= 0")
        return given.detach().to(hidden.device).reshape(())
    if given is not None and not (math.isfinite(given) and given >= 0):
        raise ValueError(f"normalizer: {given} is not a finite number >= 0")
    return given
