"""A call of either mode as one value, and everything that is checked before it runs.

    Request       what both modes are given          check_tokens -> inputs, View, back-end
    LossRequest   and what only the loss is given    check_loss   -> inputs, Spec, back-end

The public functions (`dispatch`) and the operators of torch.compile (`compiled`, `compiled_tokens`) all pass
through here, so a wrong argument gives the same message wherever it is noticed.

Left out: the checks of single arguments (`checks`), and the computation.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from . import backends, checks, family
from .sharded import VocabShard
from .spec import REDUCTIONS, VALUES, Inputs, OnHost, Spec, View


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments that `confidence_limited` and `token_log_probs` share, unchecked."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    temperature: float
    bias: Tensor | None = None
    low_rank: tuple[Tensor, Tensor] | None = None
    softcap: float | None = None
    logit_scale: float | None = None
    vocab: VocabShard | None = None
    backend: str = "auto"
    chunk_rows: int | None = None

    def inputs(self) -> Inputs:
        """The tensors, with a bias and a low-rank addition joined into one pair."""
        pair = checks.factors(self.hidden, self.weight, self.bias, self.low_rank)
        return Inputs(self.hidden, self.weight, *(pair or (None, None)), self.labels)

    def refuse_traced(self) -> None:
        """Raises ValueError for what an operator of torch.compile cannot do."""
        if self.vocab is not None or self.backend == "reference":
            name = "vocab" if self.vocab is not None else "backend"
            raise ValueError(f"{name}: not supported under torch.compile")


@dataclass(frozen=True, kw_only=True)
class LossRequest(Request):
    """The arguments of `confidence_limited`, unchecked."""

    segment_ids: Tensor
    n: float | Tensor
    member: str
    exponent: float | None
    value: str
    p: Tensor | None
    segment_weights: Tensor | None
    reduction: str
    normalizer: float | Tensor | None
    num_segments: int | None
    p_threshold: float | None
    weight_threshold: float | None
    z_loss: float
    label_smoothing: float
    entropy_bonus: float
    skip_below: float | None
    host: OnHost | None = None


def check_tokens(request: Request) -> tuple[Inputs, View, str]:
    """Every check of `token_log_probs`: the inputs, the view, and the name of the back-end that runs."""
    checks.head(request.hidden, request.weight, request.labels, request.vocab)
    return *_head(request), backends.choose(request.backend, request.hidden, request.weight)


def check_loss(request: LossRequest) -> tuple[Inputs, Spec, str]:
    """Every check of `confidence_limited`: the inputs, the spec, and the name of the back-end that runs."""
    checks.head(request.hidden, request.weight, request.labels, request.vocab)
    _loss_options(request)
    inputs, view = _head(request)
    n, p, segment_weights, size = _tables(request)
    spec = Spec(
        n=n,
        member=request.member,
        exponent=request.exponent,
        value=request.value,
        p=p,
        segment_weights=segment_weights,
        reduction=request.reduction,
        normalizer=_normalizer(request.normalizer, request.hidden),
        num_segments=size,
        p_threshold=request.p_threshold,
        weight_threshold=request.weight_threshold,
        view=view,
        z_loss=float(request.z_loss),
        label_smoothing=float(request.label_smoothing),
        entropy_bonus=float(request.entropy_bonus),
        skip_below=request.skip_below,
        vocab=request.vocab,
        host=request.host,
    )
    return (
        inputs,
        spec,
        backends.choose(request.backend, request.hidden, request.weight, _only_in_torch(spec)),
    )


def _only_in_torch(spec: Spec) -> str | None:
    """The argument in use that has no Triton kernel."""
    return next((name for name in ("label_smoothing", "entropy_bonus") if getattr(spec, name)), None)


def _head(request: Request) -> tuple[Inputs, View]:
    """What both modes check after their own arguments."""
    rows = request.chunk_rows
    if rows is not None and (not isinstance(rows, int) or rows < 1):
        raise ValueError(f"chunk_rows: {rows!r} is not an integer >= 1")
    view = checks.view(request.logit_scale, request.softcap, request.temperature)
    return request.inputs(), view


def _loss_options(request: LossRequest) -> None:
    checks.ids("segment_ids", request.segment_ids, request.hidden)
    checks.host(request.host, request.labels)
    checks.choice("member", request.member, family.MEMBERS)
    checks.choice("value", request.value, VALUES)
    checks.choice("reduction", request.reduction, REDUCTIONS)
    checks.exponent(request.member, request.exponent)
    if request.p is not None and request.value != "surrogate":
        raise ValueError(f'p: an external p needs value="surrogate", not value={request.value!r}')
    for name in ("p_threshold", "weight_threshold"):
        checks.number(name, getattr(request, name), lambda x: not math.isnan(x), "a number")
    for name in ("z_loss", "entropy_bonus"):
        checks.number(name, getattr(request, name), lambda x: 0 <= x < math.inf, "a finite number >= 0")
    smoothing = request.label_smoothing
    checks.number("label_smoothing", smoothing, lambda x: 0 <= x < 1, "a number in [0, 1)")
    if smoothing and request.member != "cross_entropy":
        raise ValueError(f'label_smoothing: needs member="cross_entropy", not member={request.member!r}')
    checks.number("skip_below", request.skip_below, lambda x: x >= 0, "a number >= 0")
    for name in ("z_loss", "entropy_bonus"):
        if getattr(request, name) and request.skip_below is not None:
            raise ValueError(f"skip_below: a skipped row would lose its {name} too; use only one of the two")


def _tables(request: LossRequest) -> tuple[float | Tensor, Tensor | None, Tensor | None, int]:
    """`n`, `p` and `segment_weights` checked and on the device of the ids, and S."""
    n, p, segment_weights = request.n, request.p, request.segment_weights
    tables = {"n": n, "p": p, "segment_weights": segment_weights}
    tables = {name: t for name, t in tables.items() if isinstance(t, Tensor) and t.dim() > 0}
    size = checks.segment_count(request.num_segments, tables, request.segment_ids)
    for name, table in tables.items():
        if table.shape != (size,):
            raise ValueError(f"{name}: shape {tuple(table.shape)}, expected [S] = ({size},)")
    device = request.segment_ids.device
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
