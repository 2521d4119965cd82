"""Mode B: log p, entropy and log Z of every token, differentiable, without T x V logits.

Both passes go through the vocabulary in slices W_s of the head, with X [R, H] the trained rows:

    forward    Z = X W_s^T                        fp32                            matmul 1
               peak, sum of e = exp(z - peak), target, sum of e (z - peak); merged over the slices
    backward   Z = X W_s^T                        again                           matmul 2
               G = p (level - tilt s), s = log p  `Slopes`, elementwise
               dX += G W_s                        fp32 [R, H]                     matmul 3
               dW_s = G^T X                       written once, in W's type       matmul 4

With upstream a = d log p, e = d entropy, b = d log z of a row: dL/dz = a (onehot - p) + b p - e p (s + H),
hence level = b - a - e H, tilt = e, and at the target p_t (b - e (s_t + H)) - a expm1(s_t), which keeps its
digits as p_t nears 1. `_Tokens` saves the inputs themselves, not copies, so a parameter that is sharded
between forward and backward (FSDP2, ZeRO-3) is read again after it has been gathered. In slices of the
vocabulary, and not of the rows, no gradient of the head is ever read back, and a low-precision copy of the
head, where one is needed (autocast, CPU), is made slice by slice.

Memory: the slice buffers (`plan.CHUNK_BYTES` together, but at least 256 columns), X, and in backward dX in
fp32. On a GPU forward can also be one kernel, see `tiled`.

Left out: double backward, and gradients through the entropy of rows with infinite logits (NaN).
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import plan
from .backends import operations
from .matmul import multiply_dtype, outside_autograd, product
from .request import Request
from .rows import Partial, RowStats, merge, pick, scatter, stats_of
from .sharded import VocabShard
from .spec import IGNORE, Inputs, TokenOutput, View, work_dtype
from .tokens_torch import Slopes


class Settings(NamedTuple):
    """What a call was given in addition to tensors, the same in forward and backward."""

    view: View
    vocab: VocabShard | None
    backend: str
    chunk_rows: int | None
    mm: torch.dtype  # operands of the matmuls
    work: torch.dtype  # logits and sums


def settings(inputs: Inputs, view: View, backend: str, request: Request) -> Settings:
    mm = multiply_dtype(inputs.hidden, inputs.weight, backend)
    work = work_dtype(inputs.hidden, inputs.weight)
    return Settings(view, request.vocab, backend, request.chunk_rows, mm, work)


def run(inputs: Inputs, chosen: Settings) -> TokenOutput:
    return TokenOutput(*_Tokens.apply(*inputs, chosen))


class _Tokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        inputs, chosen = Inputs(*arguments[:-1]), arguments[-1]
        rows = trained_rows(inputs.labels)
        stats, kept = forward(inputs, rows, chosen)
        ctx.save_for_backward(*inputs, rows, *kept)
        ctx.set_materialize_grads(False)
        ctx.settings = chosen
        tables = stats.log_probs, stats.entropy, stats.log_z, stats.correct
        # The caller may change its outputs in place; backward reads `kept`.
        out = [scatter(t.clone() if rows is None else t, rows, inputs.labels.numel()) for t in tables]
        ctx.mark_non_differentiable(out[3])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_log_p, d_entropy, d_log_z, _):
        *inputs, rows = ctx.saved_tensors[:6]
        kept = ctx.saved_tensors[6:]
        upstream = d_log_p, d_entropy, d_log_z
        if all(d is None for d in upstream):
            return (None,) * 6
        needs = ctx.needs_input_grad[:4]
        return *backward(Inputs(*inputs), rows, upstream, kept, needs, ctx.settings), None, None


def trained_rows(labels: Tensor) -> Tensor | None:
    """[R] indices, or None where all T rows are trained."""
    rows = torch.nonzero(labels != IGNORE).flatten()
    return None if rows.numel() == labels.numel() else rows


def forward(
    inputs: Inputs, rows: Tensor | None, chosen: Settings
) -> tuple[RowStats, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of the trained rows: statistics, and the tables [R] that `backward` needs."""
    with outside_autograd(inputs.hidden):
        walk = _Walk(inputs, rows, chosen)
        part = walk.statistics()
        if chosen.vocab is not None and len(walk.labels):
            part = chosen.vocab.merge(part)
        stats = stats_of(part)
    return stats, (part.peak, part.total.log(), stats.log_probs, stats.entropy)


def backward(
    inputs: Inputs,
    rows: Tensor | None,
    upstream: tuple[Tensor | None, Tensor | None, Tensor | None],
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    chosen: Settings,
) -> list[Tensor | None]:
    """Gradients that are needed of hidden, weight, U and B; `upstream` [T] by log p, entropy and log z, None
    where nothing came; `kept` from `forward`."""
    with outside_autograd(inputs.hidden):
        walk = _Walk(inputs, rows, chosen)
        grads = walk.gradients([None if d is None else pick(d, rows) for d in upstream], kept, needs)
        for k, like in ((0, inputs.hidden), (2, inputs.left)):
            if grads[k] is not None:
                grads[k] = scatter(grads[k].to(like.dtype), rows, inputs.labels.numel())
    return grads


class _Walk:
    """One pass over the vocabulary. Tables of rows are [R]."""

    def __init__(self, inputs: Inputs, rows: Tensor | None, settings: Settings) -> None:
        hidden, weight, left, right, labels = inputs
        self.settings, self.labels = settings, pick(labels, rows)
        self.parts = operations(settings.backend)
        if settings.vocab is not None:
            self.labels = settings.vocab.local(self.labels, weight.shape[0])
        self.x = pick(hidden, rows).to(settings.mm)  # [R, H]
        self.u = None if left is None else pick(left, rows).to(settings.mm)  # [R, r]
        self.weight, self.right = weight, right  # [V, H], [V, r], in their own types

    def _width(self) -> int:
        """Columns per slice."""
        count, (vocab, width) = len(self.x), self.weight.shape
        mm, work, chunk_rows = self.settings.mm, self.settings.work, self.settings.chunk_rows
        if chunk_rows is not None:  # as many logits at once as that many rows have
            return plan.balanced(vocab, max(1, chunk_rows * vocab // max(count, 1)))
        column = count * (work.itemsize + mm.itemsize)  # Z and G
        if self.weight.dtype != mm or mm == torch.float16:
            column += width * (mm.itemsize + work.itemsize)  # W_s in `mm`, dW_s in fp32
        device = self.x.device.type
        budget = plan.CHUNK_BYTES.get(device, plan.CHUNK_BYTES["cpu"])
        fits = budget // max(column, 1) // plan.TILE * plan.TILE
        return plan.balanced(vocab, max(fits, plan.TILE))

    def _slices(self) -> Iterator[tuple[int, int]]:
        width, vocab = self._width(), len(self.weight)
        for start in range(0, vocab, width) if len(self.x) else ():
            yield start, min(start + width, vocab)

    def _logits(self, start: int, stop: int, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Fills z [R, stop - start] with raw logits; returns these rows of the head and of B."""
        head = self.weight[start:stop].to(self.settings.mm)
        product(self.x, head.t(), out=z)
        if self.u is None:
            return head, None
        right = self.right[start:stop].to(self.settings.mm)
        product(self.u, right.t(), out=z, add=True)
        return head, right

    def _own(self, start: int, stop: int) -> Tensor:
        """Labels within a slice, -1 where they are elsewhere."""
        return VocabShard(start, len(self.weight)).local(self.labels, stop - start)

    # ---- forward ----

    def statistics(self) -> Partial:
        """Of all columns that this rank has."""
        settings = self.settings
        if not len(self.x):
            return Partial(*(self.x.new_empty(4, 0, dtype=settings.work).unbind()))
        tiled = self.parts.tiled
        if tiled is not None and tiled.enabled(self.x, self.u):
            head = self.weight.to(settings.mm)
            return reduce(merge, tiled.statistics(self.x, head, self.labels, settings.view))
        return reduce(merge, self._by_slice())

    def _by_slice(self) -> Iterator[Partial]:
        settings, count, ops, width = self.settings, len(self.x), None, 0
        for start, stop in self._slices():
            if stop - start != width:
                ops, width = None, stop - start  # frees the buffers before there are new ones
                ops = self.parts.rows(count, width, settings.view, settings.work, settings.mm, self.x.device)
            z = ops.logits(count)
            self._logits(start, stop, z)
            yield ops.partial(z, self._own(start, stop))

    # ---- backward ----

    def gradients(self, upstream, kept, needs) -> list[Tensor | None]:
        """For hidden [R, H], weight, U [R, r] and B; those of rows in fp32."""
        slopes, scale = self._slopes(upstream, kept)
        sides = ((self.x, self.weight), (self.u, self.right))
        rows: list[Tensor | None] = [None, None]
        heads = [torch.empty_like(sides[k][1]) if needs[2 * k + 1] else None for k in (0, 1)]
        settings, count = self.settings, len(self.x)
        ops = self.parts.slices(count, self._width(), settings.view, settings.work, settings.mm, self.x)
        for start, stop in self._slices():
            z = ops.logits(stop - start)  # [R, width]
            matrices = self._logits(start, stop, z)
            g = ops.gradient(z, slopes, self._own(start, stop))  # [R, width] in `mm`
            for k, (given, _) in enumerate(sides):
                if needs[2 * k] and rows[k] is None:
                    rows[k] = product(g, matrices[k])
                elif needs[2 * k]:
                    product(g, matrices[k], out=rows[k], add=True)
                if heads[k] is not None:
                    _write(heads[k][start:stop], g, given, scale)
        for k, (given, _) in enumerate(sides):
            if heads[k] is not None and not count:
                heads[k].zero_()
            if not needs[2 * k]:
                continue
            if rows[k] is None:
                rows[k] = torch.zeros_like(given, dtype=settings.work)
            if settings.vocab is not None and count:
                settings.vocab.sum_(rows[k])  # each shard had its part of G W
            if scale is not None:
                rows[k].mul_(scale)
        return [rows[0], heads[0], rows[1], heads[1]]

    def _slopes(self, upstream, kept) -> tuple[Slopes, Tensor | None]:
        """Tables of the rows, and the factor that G leaves to the products, or None."""
        a, e, b = upstream  # [R] by log p, entropy, log z; None where nothing came
        peak, log_total, log_p, entropy = kept
        zero = torch.zeros_like(peak)
        a, b, tilt = zero if a is None else a, zero if b is None else b, zero if e is None else e
        p = log_p.exp()
        bulk = torch.where(p == 0, 0.0, p * (b - tilt * (log_p + entropy)))
        level, target = b - a - tilt * entropy, bulk - a * log_p.expm1()
        slope, scale = self.settings.view.slope, None
        if self.settings.mm == torch.float16 and len(peak):
            # Small gradients would vanish in fp16: G is made for an upstream of at most 1.
            most = torch.stack([a, b, tilt]).abs().amax()
            scale = torch.where(most > 0, most, 1.0)
            slope, scale = 1 / scale, scale * slope
        tables = level * slope, None if e is None else tilt * slope, target * slope
        return Slopes(peak, log_total, *tables), scale


def _write(out: Tensor, g: Tensor, given: Tensor, scale: Tensor | None) -> None:
    """out [width, H] = scale * g^T given, summed in fp32."""
    if scale is None and out.dtype == g.dtype:
        torch.mm(g.t(), given, out=out)
    elif scale is None and out.dtype == torch.float32:
        product(g.t(), given, out=out)
    else:
        wide = product(g.t(), given)
        out.copy_(wide if scale is None else wide.mul_(scale))
