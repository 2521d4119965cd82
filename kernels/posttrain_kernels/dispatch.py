"""The public function: checks its arguments, picks a back-end, says which one in the log.

Values on the host are checked always. Values inside tensors are checked at once on CPU; on a device
the check is a device-side assert, because reading the answer would stall the queue.

Left out: `bias`, `softcap` and `logit_scale` on the head, and the Triton back-end they come with;
naming one of them is an error rather than a silent approximation.
"""

import difflib
import logging
import math

import torch
from torch import Tensor

from . import reference, torch_chunked
from .family import EXPONENTS, MEMBERS
from .spec import IGNORE, REDUCTIONS, VALUES, LossOutput, Spec

logger = logging.getLogger("posttrain_kernels")

BACKENDS = {"torch": torch_chunked.run, "reference": reference.run}
_announced: set[tuple[str, str]] = set()


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` accepts besides "auto", fastest first."""
    return tuple(BACKENDS)


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
    backend: str = "auto",
    chunk_rows: int | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float | None = None,
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
    forward pass. Tokens outside segments pass. `temperature` divides the logits.

    backend: "auto" | "torch" | "reference". chunk_rows: rows of logits in memory at once ("torch"
    only; `torch_chunked.default_chunk_rows` otherwise).
    """
    for name, given in (("bias", bias), ("softcap", softcap), ("logit_scale", logit_scale)):
        if given is not None:
            raise ValueError(f"{name}: not supported by the built back-ends {_listed(BACKENDS)}")
    _check_choice("member", member, MEMBERS)
    _check_choice("value", value, VALUES)
    _check_choice("reduction", reduction, REDUCTIONS)
    _check_inputs(hidden, weight, labels, segment_ids)
    _check_exponent(member, exponent)
    if p is not None and value != "surrogate":
        raise ValueError(f'p: an external p needs value="surrogate", not value={value!r}')
    for name, number in (("p_threshold", p_threshold), ("weight_threshold", weight_threshold)):
        if number is not None and math.isnan(number):
            raise ValueError(f"{name}: NaN")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: {temperature} is not a finite number > 0")
    if chunk_rows is not None and (not isinstance(chunk_rows, int) or chunk_rows < 1):
        raise ValueError(f"chunk_rows: {chunk_rows!r} is not an integer >= 1")

    tables = {"n": n, "p": p, "segment_weights": segment_weights}
    tables = {name: t for name, t in tables.items() if isinstance(t, Tensor) and t.dim() > 0}
    size = _segments(num_segments, tables, segment_ids)
    for name, table in tables.items():
        if table.shape != (size,):
            raise ValueError(f"{name}: shape {tuple(table.shape)}, expected [S] = ({size},)")
    if p is not None:
        if "p" not in tables:
            raise ValueError("p: expected a tensor [S]")
        _require((p >= 0) & (p <= 1), "p", p, "outside [0, 1]")
        p = p.detach().to(hidden.device)
    if segment_weights is not None:
        if "segment_weights" not in tables:
            raise ValueError("segment_weights: expected a tensor [S]")
        _require(segment_weights.isfinite(), "segment_weights", segment_weights, "not finite")
        segment_weights = segment_weights.detach().to(hidden.device)
    if isinstance(n, Tensor):
        _require((n >= 1) & n.isfinite(), "n", n, "not a finite number >= 1")
        n = n.detach().to(hidden.device).expand(size)
    elif not (math.isfinite(n) and n >= 1):
        raise ValueError(f"n: {n} is not a finite number >= 1")
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != 1:
            raise ValueError(f"normalizer: shape {tuple(normalizer.shape)}, expected a scalar")
        _require(normalizer >= 0, "normalizer", normalizer, "not >= 0")
        normalizer = normalizer.detach().to(hidden.device).reshape(())
    elif normalizer is not None and not (math.isfinite(normalizer) and normalizer >= 0):
        raise ValueError(f"normalizer: {normalizer} is not a finite number >= 0")

    spec = Spec(
        n, member, exponent, value, p, segment_weights, reduction, normalizer, size,
        p_threshold, weight_threshold, temperature,
    )  # fmt: skip
    return _choose(backend, hidden.device.type)(
        hidden, weight, labels, segment_ids, spec, chunk_rows
    )


def _choose(backend: str, device: str):
    if backend == "triton":
        raise ValueError(f'backend: "triton" is not built yet; available: {_listed(BACKENDS)}')
    _check_choice("backend", backend, ("auto", *BACKENDS))
    name = "torch" if backend == "auto" else backend
    if (name, device) not in _announced:
        _announced.add((name, device))
        logger.info("confidence_limited runs on the %s back-end (%s)", name, device)
    return BACKENDS[name]


def _listed(names) -> str:
    return ", ".join(names)


def _check_choice(argument: str, given: str, choices) -> None:
    if given in choices:
        return
    near = difflib.get_close_matches(str(given), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument}: {given!r} is not one of {_listed(choices)}{hint}")


def _require(good: Tensor, argument: str, values: Tensor, problem: str) -> None:
    if good.device.type != "cpu":
        torch._assert_async(good.all(), f"{argument}: a value is {problem}")
    elif not bool(good.all()):
        raise ValueError(f"{argument}: {values[~good].flatten()[0].item()} is {problem}")


def _check_inputs(hidden: Tensor, weight: Tensor, labels: Tensor, segment_ids: Tensor) -> None:
    if hidden.dim() != 2:
        raise ValueError(f"hidden: shape {tuple(hidden.shape)}, expected [T, H]; flatten(0, 1)?")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        expected = f"[V, H] with H = {hidden.shape[1]}"
        raise ValueError(f"weight: shape {tuple(weight.shape)}, expected {expected}")
    for name, ids in (("labels", labels), ("segment_ids", segment_ids)):
        if ids.shape != hidden.shape[:1]:
            raise ValueError(
                f"{name}: shape {tuple(ids.shape)}, expected [T] = ({hidden.shape[0]},)"
            )
        if ids.dtype != torch.int64:
            raise ValueError(f"{name}: dtype {ids.dtype}, expected int64")
        if ids.device != hidden.device:
            raise ValueError(f"{name}: on {ids.device}, but hidden is on {hidden.device}")
    if labels.numel() and labels.device.type == "cpu":
        # Elsewhere the gather of the target logit asserts the same.
        low, high = labels.aminmax()
        if high >= weight.shape[0]:
            raise ValueError(f"labels: {high} is not below V = {weight.shape[0]}")
        if low < 0 and not bool(((labels >= 0) | (labels == IGNORE)).all()):
            raise ValueError(f"labels: a negative label other than {IGNORE}, lowest {low}")


def _check_exponent(member: str, exponent: float | None) -> None:
    meaning = EXPONENTS.get(member)
    if meaning is None:
        if exponent is not None:
            raise ValueError(f"exponent: member {member!r} takes none, got {exponent!r}")
        return
    valid = isinstance(exponent, int | float) and math.isfinite(exponent)
    if valid:
        valid = {"power": exponent > 0, "focal": exponent >= 0}.get(
            member, exponent >= 1 and exponent == int(exponent)
        )
    if not valid:
        raise ValueError(f"exponent: member {member!r} needs {meaning}, got {exponent!r}")


def _segments(num_segments: int | None, tables: dict[str, Tensor], ids: Tensor) -> int:
    size = num_segments
    if size is None and tables:
        size = next(iter(tables.values())).numel()
    if ids.numel() and (size is None or ids.device.type == "cpu"):
        low, high = (int(x) for x in ids.aminmax())
        if low < 0:
            raise ValueError(f"segment_ids: {low} is negative")
        if size is not None and high > size:
            raise ValueError(f"segment_ids: {high} is above the number of segments, {size}")
        size = high if size is None else size
    return size or 0
