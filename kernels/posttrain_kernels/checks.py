"""Checks of single arguments: an error names the argument, its value and what is allowed.

Values on the host are always checked. Values inside tensors are checked at once on a CPU; on a device the
check is a device-side assert, because reading the result would make the host wait for the queue.

Left out: which checks a call needs (`request`), and which back-end can run (`backends`).
"""

import difflib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .family import EXPONENTS
from .sharded import VocabShard
from .spec import IGNORE, OnHost, View


def choice(argument: str, given: str, choices: Sequence[str]) -> None:
    """Raises ValueError with the nearest spelling unless `given` is one of `choices`."""
    if given in choices:
        return
    near = difflib.get_close_matches(str(given), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument}: {given!r} is not one of {', '.join(choices)}{hint}")


def number(argument: str, given: float | None, test: Callable[[float], bool], expected: str) -> None:
    """Raises ValueError unless `given` is a number that passes `test`. None passes: the argument is not
    used."""
    if given is not None and not (isinstance(given, int | float) and test(given)):
        raise ValueError(f"{argument}: {given!r} is not {expected}")


def require(good: Tensor, argument: str, values: Tensor, problem: str) -> None:
    """Fails where `good`, shaped like `values`, is False: ValueError on a CPU, an assert on a device."""
    if good.device.type != "cpu":
        torch._assert_async(good.all(), f"{argument}: a value is {problem}")
    elif not bool(good.all()):
        raise ValueError(f"{argument}: {values[~good].flatten()[0].item()} is {problem}")


def view(logit_scale: float | None, softcap: float | None, temperature: float) -> View:
    def finite(x):
        return math.isfinite(x)

    number("logit_scale", logit_scale, lambda x: finite(x) and x != 0, "a finite number other than 0")
    number("softcap", softcap, lambda x: finite(x) and x > 0, "a finite number > 0")
    number("temperature", temperature, lambda x: finite(x) and x > 0, "a finite number > 0")
    return View(
        1.0 if logit_scale is None else float(logit_scale),
        None if softcap is None else float(softcap),
        float(temperature),
    )


def head(hidden: Tensor, weight: Tensor, labels: Tensor, vocab: VocabShard | None) -> None:
    """Shapes, dtypes and devices of hidden states, head and labels, and the range of the labels."""
    if hidden.dim() != 2:
        raise ValueError(f"hidden: shape {tuple(hidden.shape)}, expected [T, H]; flatten(0, 1)?")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        expected = f"[V, H] with H = {hidden.shape[1]}"
        raise ValueError(f"weight: shape {tuple(weight.shape)}, expected {expected}")
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: dtype {tensor.dtype}, expected a floating-point type")
    on(hidden, weight=weight)
    ids("labels", labels, hidden)
    size = weight.shape[0]
    if vocab is not None:
        size = vocab.size
        if vocab.start < 0 or vocab.start + weight.shape[0] > size:
            raise ValueError(
                f"vocab: rows {vocab.start}..{vocab.start + weight.shape[0]} of the head are not "
                f"within its size, {size}"
            )
    if not labels.numel():
        return
    if labels.device.type != "cpu":
        good = (labels < size) & ((labels >= 0) | (labels == IGNORE))
        torch._assert_async(good.all(), f"labels: outside 0..{size - 1} and not {IGNORE}")
        return
    low, high = labels.aminmax()
    if high >= size:
        raise ValueError(f"labels: {high} is not below V = {size}")
    if low < 0 and not bool(((labels >= 0) | (labels == IGNORE)).all()):
        raise ValueError(f"labels: a negative label other than {IGNORE}, lowest {low}")


def on(hidden: Tensor, **others: Tensor) -> None:
    """The other tensors are on the device of `hidden`."""
    for name, tensor in others.items():
        if tensor.device != hidden.device:
            raise ValueError(f"{name}: on {tensor.device}, but hidden is on {hidden.device}")


def ids(name: str, given: Tensor, hidden: Tensor) -> None:
    if given.shape != hidden.shape[:1]:
        raise ValueError(f"{name}: shape {tuple(given.shape)}, expected [T] = ({hidden.shape[0]},)")
    if given.dtype != torch.int64:
        raise ValueError(f"{name}: dtype {given.dtype}, expected int64")
    on(hidden, **{name: given})


def factors(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, low_rank: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """One pair (U [T, r], B [V, r]) whose product is added to the logits, or None; a bias is a pair of rank
    one."""
    tokens, vocab = hidden.shape[0], weight.shape[0]
    if low_rank is not None:
        if not (isinstance(low_rank, tuple | list) and len(low_rank) == 2):
            raise ValueError("low_rank: expected a pair of tensors (U [T, r], B [V, r])")
        u, b = low_rank
        if u.dim() != 2 or b.dim() != 2 or (u.shape[0], b.shape) != (tokens, (vocab, u.shape[1])):
            raise ValueError(
                f"low_rank: shapes {tuple(u.shape)} and {tuple(b.shape)}, "
                f"expected ({tokens}, r) and ({vocab}, r)"
            )
        on(hidden, low_rank=u)
        on(hidden, low_rank=b)
        if bias is None:
            return u, b
    if bias is None:
        return None
    if bias.shape != (vocab,):
        raise ValueError(f"bias: shape {tuple(bias.shape)}, expected [V] = ({vocab},)")
    on(hidden, bias=bias)
    ones, column = bias.new_ones(tokens, 1), bias.unsqueeze(1)
    if low_rank is None:
        return ones, column
    return torch.cat([ones.to(u.dtype), u], 1), torch.cat([column.to(b.dtype), b], 1)


def exponent(member: str, given: float | None) -> None:
    takes = EXPONENTS.get(member)
    if takes is None:
        if given is not None:
            raise ValueError(f"exponent: member {member!r} takes none, got {given!r}")
        return
    if not (isinstance(given, int | float) and math.isfinite(given) and takes.allowed(given)):
        raise ValueError(f"exponent: member {member!r} needs {takes.meaning}, got {given!r}")


def segment_count(given: int | None, tables: dict[str, Tensor], segment_ids: Tensor) -> int:
    """S: `given`, or the length of the [S] arguments, or the largest id, for which the host waits."""
    size = given
    if size is None and tables:
        size = next(iter(tables.values())).numel()
    if segment_ids.numel() and (size is None or segment_ids.device.type == "cpu"):
        low, high = (int(x) for x in segment_ids.aminmax())
        if low < 0:
            raise ValueError(f"segment_ids: {low} is negative")
        if size is not None and high > size:
            raise ValueError(f"segment_ids: {high} is above the number of segments, {size}")
        size = high if size is None else size
    elif segment_ids.numel():
        good = (segment_ids >= 0) & (segment_ids <= size)
        torch._assert_async(good.all(), f"segment_ids: outside 0..{size}")
    return size or 0


def host(given: OnHost | None, labels: Tensor) -> None:
    if given is None:
        return
    for name in ("labels", "segment_ids"):
        copy = getattr(given, name)
        if copy.device.type != "cpu" or copy.shape != labels.shape or copy.dtype != torch.int64:
            raise ValueError(
                f"host.{name}: {tuple(copy.shape)} {copy.dtype} on {copy.device}, "
                f"expected a copy of {tuple(labels.shape)} int64 on the CPU"
            )
