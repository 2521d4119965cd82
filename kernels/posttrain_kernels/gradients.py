"""The two backward matmuls of Mode A, and how the scale of a row enters them.

    dX = scale * (D W)      dW += D^T (scale * X)      likewise for the second factors: dU, dB

D is unscaled, so both products can be taken before the scale is known: D^T X of a long segment waits in
accumulators of its own until `fold`. Everything is in fp32 (fp64 for fp64 inputs), and not yet divided by the
denominator.

Left out: where D and the scales come from (`rows`, `segments`, `chunked`).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .matmul import product
from .rows import Delta
from .shaped import Open

KINDS = 4  # hidden [T, H], weight [V, H], U [T, r], B [V, r]


@dataclass
class Block:
    """r trained rows whose D is known and whose gradients are not."""

    rows: Tensor | slice  # their indices among the R trained rows
    labels: Tensor  # [r], -1 where another shard has the target
    x: Tensor  # [r, H] in the dtype of the matmuls
    u: Tensor | None  # [r, rank]
    delta: Delta | None = None
    still_open: Open | None = None  # in place of `delta` until the scale is known

    def keep(self, index: Tensor) -> "Block":
        """The rows `index` of a block."""
        rows = index + self.rows.start
        matrix, times = self.delta
        u = None if self.u is None else self.u[index]
        times = None if times is None else times[index]
        return Block(rows, self.labels[index], self.x[index], u, Delta(matrix[index], times))


@dataclass
class Gradients:
    """Gradients of the inputs that need one, by position; `rows` [R], or None where all T rows are
    trained."""

    wants: tuple[bool, ...]
    like: tuple[Tensor | None, ...]  # hidden, head, U, B
    rows: Tensor | None
    dtype: torch.dtype
    found: list[Tensor | None] = field(default_factory=lambda: [None] * KINDS)

    def add(
        self,
        block: Block,
        scale: Tensor | None,
        point: Tensor | None = None,
        waiting: list[Tensor | None] | None = None,
    ) -> None:
        """Add a block's rows. `scale` [r] is None while it is unknown; the head's gradient then goes to
        `waiting`. `point` [r] is an extra gradient of the target's logit alone."""
        matrix, times = block.delta
        if times is not None:
            scale = times if scale is None else scale * times
        into = self.found if waiting is None else waiting
        for k, given in ((0, block.x), (2, block.u)):
            if self.wants[k]:
                self._rows(k, block, matrix, scale, point)
            if self.wants[k + 1]:
                self._head(k + 1, block, matrix, given, scale, point, into)

    def _rows(self, k, block, matrix, scale, point) -> None:
        out = product(matrix, self.like[k + 1])  # [r, H] or [r, rank]
        if scale is not None:
            out.mul_(scale.unsqueeze(1))
        if point is not None:
            target = self.like[k + 1][block.labels.clamp_min(0)].to(out.dtype)
            out.addcmul_(point.unsqueeze(1), target)
        if self.found[k] is None:  # rows that are dropped or skipped keep their zeros
            self.found[k] = torch.zeros(self.like[k].shape, dtype=out.dtype, device=out.device)
        self.found[k][self._at(block.rows)] = out

    def _head(self, k, block, matrix, given, scale, point, into) -> None:
        scaled, unit = given, None
        if scale is not None:
            if given.dtype == torch.float16:
                # In fp16 rows times 1e5 would be infinite and times 1e-6 lose digits: take out a power of
                # two.
                unit = torch.ldexp(scale.new_ones(()), torch.frexp(scale.abs().amax()).exponent)
                scale = scale / unit
            scaled = (given.to(scale.dtype) * scale.unsqueeze(1)).to(given.dtype)
        if unit is not None and into[k] is not None:
            into[k].div_(unit)
        if into[k] is None:
            into[k] = product(matrix.t(), scaled)  # [V, H] or [V, rank]
        else:
            product(matrix.t(), scaled, out=into[k], add=True)
        if unit is not None:
            into[k].mul_(unit)
        if point is not None:
            value = point.unsqueeze(1) * given.to(point.dtype)
            # It sorts by index, unlike index_add_: the same bits every time.
            into[k].index_put_((block.labels.clamp_min(0),), value, accumulate=True)

    def fold(self, rows: slice, scale: Tensor, waiting: list[Tensor | None]) -> None:
        """Apply the scale [] of a long segment, once it is known, to everything that waited for it."""
        for k in (0, 2):
            if self.wants[k]:
                self.found[k][self._at(rows)] *= scale
        for k in (1, 3):
            if waiting[k] is None:
                continue
            if self.found[k] is None:
                self.found[k] = waiting[k].mul_(scale)
            else:
                self.found[k].addcmul_(waiting[k], scale)

    def _at(self, rows: Tensor | slice) -> Tensor | slice:
        return rows if self.rows is None else self.rows[rows]

    def results(self, vocab) -> list[Tensor | None]:
        """The gradients, zeros where nothing was trained; D W is summed over the shards of a vocabulary."""
        for k, like in enumerate(self.like):
            if self.wants[k] and self.found[k] is None:
                self.found[k] = torch.zeros(like.shape, dtype=self.dtype, device=like.device)
            if self.wants[k] and k in (0, 2) and vocab is not None:
                vocab.sum_(self.found[k])
        return self.found
