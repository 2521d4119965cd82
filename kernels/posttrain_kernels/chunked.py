"""Mode A: the loss without T x V logits, with three matmuls for a segment that fits in a chunk.

The gradient is linear in the scale of a segment, and the scale is known once the segment's log-probabilities
are. So, for each chunk of rows X and with the head W:

    Z = X W^T                      fp32 logits                                   matmul 1
    log p, entropy, log Z, D       row operations: D = softmax - onehot, in place
    sums -> L, F, scale            `segments.Segments.close`
    dX = scale * (D W)             rows scaled after the product                 matmul 2
    dW += D^T (scale * X)          fp32                                          matmul 3

Gradients are therefore made in forward and only multiplied by the upstream scalar in backward. Ignored rows
are dropped first and never read. A segment longer than a chunk has its unscaled D^T X in an accumulator of
its own, which is added to dW once the scale is known; a short one, and segments that interleave, are computed
twice (a fourth matmul for those rows). Under label smoothing or an entropy bonus the place of D is taken by a
matrix that contains the scale (`shaped`). A bias and LoRA on the head are a second pair of factors (U, B)
with logits U B^T and the same three products.

Memory: the buffers of the row operations, dW and dX in fp32; for low-precision heads on a CPU an fp32 copy of
the head.

Left out: double backward, and the entropy of rows with infinite logits (NaN). Without `host` a call on a GPU
waits once for the labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import plan, shaped
from .backends import operations
from .gradients import KINDS, Block, Gradients
from .matmul import multiply_dtype, outside_autograd, product
from .rows import Delta, pick, scatter, stats_of
from .spec import IGNORE, Inputs, LossOutput, Spec, work_dtype

ACCUMULATE_ROWS = 1100
"""Rows from which a long segment gets an accumulator. Adding a V x H accumulator to dW moves as many bytes as
computing the logits of this many rows again takes time on an H100 or H200 (12 bytes per element at 4.3 TB/s,
790 TFLOP/s in bf16).
"""


def run(
    inputs: Inputs, segment_ids: Tensor, spec: Spec, backend: str, chunk_rows: int | None = None
) -> LossOutput:
    # `needs_input_grad` ignores no_grad, so it is found out here.
    graph = torch.is_grad_enabled()
    wants = tuple(graph and t is not None and t.requires_grad for t in inputs[:KINDS])
    return LossOutput(*_Chunked.apply(*inputs, segment_ids, spec, backend, chunk_rows, wants))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        size = len(Inputs._fields)
        out, grads, inverse = solve(Inputs(*arguments[:size]), *arguments[size:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads, *([inverse] if isinstance(inverse, Tensor) else []))
        ctx.inverse = inverse
        ctx.dtypes = [None if t is None else t.dtype for t in arguments[:KINDS]]
        ctx.nothing = (None,) * (len(arguments) - KINDS)
        ctx.mark_non_differentiable(*out[1:])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        grads = ctx.saved_tensors[:KINDS]
        if upstream is None:
            return (None,) * KINDS + ctx.nothing
        inverse = ctx.saved_tensors[KINDS] if isinstance(ctx.inverse, Tensor) else ctx.inverse
        return *finish(grads, upstream * inverse, ctx.dtypes), *ctx.nothing


def finish(
    grads: Sequence[Tensor | None], factor: Tensor, dtypes: Sequence[torch.dtype | None]
) -> list[Tensor | None]:
    """Gradients times `factor` [], the upstream scalar over the denominator, in the dtypes of the inputs: one
    pass that reads fp32 and writes the dtype of the parameter."""
    out = []
    for grad, dtype in zip(grads, dtypes, strict=True):
        if grad is None:
            out.append(None)
        else:
            out.append(torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype)))
    return out


def solve(
    inputs: Inputs,
    segment_ids: Tensor,
    spec: Spec,
    backend: str,
    chunk_rows: int | None,
    wants: tuple[bool, ...],
) -> tuple[LossOutput, list[Tensor | None], float | Tensor]:
    """(LossOutput, gradients before the denominator, 1 / denominator), outside autograd. `wants`: which of
    hidden, weight, U and B need a gradient."""
    mm = multiply_dtype(inputs.hidden, inputs.weight, backend)  # reads autocast, which is off below
    with outside_autograd(inputs.hidden):
        state = _Run(inputs, segment_ids, spec, backend, mm)
        state.walk(chunk_rows, wants)
        grads = state.gradients.results(spec.vocab)
        return state.output(), grads, state.segments.inverse


class _Run:
    """One call. R trained rows; tables of rows are [R] until `output` scatters them to [T]."""

    def __init__(
        self, inputs: Inputs, segment_ids: Tensor, spec: Spec, backend: str, mm: torch.dtype
    ) -> None:
        """`mm` is the dtype of the matmuls' operands."""
        hidden, weight, left, right, labels = inputs
        self.spec, self.mm = spec, mm
        self.dtype = work_dtype(hidden, weight)
        self.total, device = labels.numel(), hidden.device
        if spec.host is not None:
            on_host = spec.host.labels, spec.host.segment_ids
        else:
            on_host = labels.cpu(), segment_ids.cpu()
        rows = torch.nonzero(on_host[0] != IGNORE).flatten()  # [R]
        self.rows, self.host_ids = None, on_host[1]
        if rows.numel() < self.total:
            self.host_ids = self.host_ids[rows]
            self.rows = rows.pin_memory().to(device, non_blocking=True) if hidden.is_cuda else rows
        self.count = rows.numel()
        # A kernel reads them by address, so a column of a wider table must be copied.
        self.labels, self.ids = (pick(t, self.rows).contiguous() for t in (labels, segment_ids))
        if spec.vocab is not None:
            self.labels = spec.vocab.local(self.labels, weight.shape[0])
        self.hidden, self.left = hidden, left  # [T, H], [T, r]
        self.head = weight.to(self.mm)  # [V, H]
        self.right = None if right is None else right.to(self.mm)  # [V, r]
        parts = operations(backend)
        self.rows_class, self.segments = parts.rows, parts.segments(self.ids, spec, self.dtype)
        self.log_probs, self.log_z, self.entropy = (
            torch.empty(self.count, dtype=self.dtype, device=device) for _ in range(3)
        )
        self.mean_nll = torch.empty_like(self.log_probs) if spec.label_smoothing else None
        self.correct = torch.empty(self.count, dtype=torch.bool, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)

    def _rows_of(self, table: Tensor, block: slice) -> Tensor:
        """A block's rows of a [T, ...] table."""
        return table[block if self.rows is None else self.rows[block]]

    # ---- one chunk after the other ----

    def walk(self, chunk_rows: int | None, wants: tuple[bool, ...]) -> None:
        """Chooses the size of the chunks and computes group after group."""
        spec, device = self.spec, self.head.device
        vocab = self.head.shape[0]
        like = self.hidden, self.head, self.left, self.right
        self.gradients = Gradients(wants, like, self.rows, self.dtype)
        rows = capacity = chunk_rows
        if chunk_rows is None:
            # Ranks that share a vocabulary must cut alike, whatever the size of their shards.
            widest = vocab if spec.vocab is None else spec.vocab.widest()
            most = plan.default_chunk_rows(widest, device.type, self.dtype.itemsize)
            rows, capacity = plan.balanced(self.count, most), plan.slack(most)
        self.size = max(1, min(capacity, self.count))
        self.ops = self.rows_class(self.size, vocab, spec.view, self.dtype, self.mm, device)
        for group in plan.plan(self.host_ids, rows, spec.num_segments, spec.weight_needs_model, self.size):
            self._group(group, any(wants))
        del self.ops

    def _group(self, group: plan.Group, train: bool) -> None:
        """All of some segments: statistics of their rows, the scales, then the gradients."""
        rows = group.stop - group.start
        step = plan.balanced(rows, self.size)
        starts = range(group.start, group.stop, step)
        blocks = [slice(i, min(i + step, group.stop)) for i in starts]
        long = len(blocks) > 1
        # With a z-loss, skipping, smoothing or a bonus a row needs more than the one scale that an
        # accumulator waits for.
        simple = not self.spec.z_loss and self.spec.skip_below is None and not self.spec.shaped
        wait = train and long and group.single and rows >= ACCUMULATE_ROWS and simple
        waiting: list[Tensor | None] = [None] * KINDS
        for rows in blocks:
            block = self._rows(rows, train and (wait or not long))
            if wait:
                self.gradients.add(block, None, waiting=waiting)
        every = slice(group.start, group.stop)
        self.segments.close(group.low, group.high, self.ids[every], self.log_probs[every])
        if wait:
            scale = self.segments.scale[group.low] * self.spec.view.slope  # []
            self.gradients.fold(every, scale, waiting)
            return
        for rows in blocks if train else ():
            # The buffers have the last block only: a long group is computed again.
            self._scaled(self._rows(rows, True) if long else block, rows)

    def _rows(self, rows: slice, want_delta: bool) -> Block:
        """Logits, statistics and D of some trained rows."""
        labels, vocab = self.labels[rows], self.spec.vocab
        z = self.ops.logits(rows.stop - rows.start)  # [r, V]
        x = self._rows_of(self.hidden, rows).to(self.mm)
        u = None if self.left is None else self._rows_of(self.left, rows).to(self.mm)
        product(x, self.head.t(), out=z)
        if u is not None:
            product(u, self.right.t(), out=z, add=True)
        delta = still_open = None
        if self.spec.shaped:
            still_open = shaped.statistics(self.ops, z, labels, vocab)
            stats = still_open.stats
            if self.mean_nll is not None:
                self.mean_nll[rows] = shaped.mean_nll(still_open, vocab)
        elif vocab is None:
            stats, delta = self.ops.forward(z, labels, want_delta)
        else:
            part = self.ops.partial(z, labels)
            stats = stats_of(vocab.merge(part))
            delta = self.ops.delta(z, labels, part, stats) if want_delta else None
        self.log_probs[rows], self.log_z[rows] = stats.log_probs, stats.log_z
        self.entropy[rows], self.correct[rows] = stats.entropy, stats.correct
        return Block(rows, labels, x, u, delta, still_open)

    def _scaled(self, block: Block, rows: slice) -> None:
        """Add a block whose segments have closed."""
        spec, ids = self.spec, self.ids[rows]
        if spec.shaped:
            block.delta = self._shaped(block, rows)
        if spec.skip_below is not None:
            live = torch.nonzero(self.segments.live()[ids]).flatten()
            if len(live) < len(ids):
                self.skipped += len(ids) - len(live)
                if not len(live):
                    return
                block = block.keep(live)
        if spec.shaped:
            self.gradients.add(block, None)
            return
        scale, point = self.segments.scale[self.ids[block.rows]], None  # [r]
        if spec.z_loss:
            # d log_z / dz is the softmax, which is D plus one at the target.
            extra = 2 * spec.z_loss * self.log_z[rows] * self._share(rows)
            scale, point = scale + extra, extra * spec.view.slope
            if spec.view.softcap is not None:
                point = point * spec.view.bend(self.log_probs[rows] + self.log_z[rows])
            point = torch.where(block.labels >= 0, point, 0.0)
        if spec.view.slope != 1:
            scale = scale * spec.view.slope
        self.gradients.add(block, scale, point)

    def _shaped(self, block: Block, rows: slice) -> Delta:
        """The gradient of a block's rows by their logits, complete."""
        spec, share, scale = self.spec, self._share(rows), self.segments.scale[self.ids[rows]]
        words = self.head.shape[0] if spec.vocab is None else spec.vocab.size
        extra = 2 * spec.z_loss * share * self.log_z[rows] if spec.z_loss else torch.zeros_like(scale)
        bonus = share * torch.full_like(scale, spec.entropy_bonus) if spec.entropy_bonus else None
        slopes = shaped.Slopes(scale, extra, bonus, spec.label_smoothing, words)
        return shaped.delta(block.still_open, block.labels, slopes, spec.view, self.mm)

    def _share(self, rows: slice) -> Tensor | float:
        """The factor on the plain cross-entropy of a token in the sum."""
        if self.spec.reduction != "length_mean":
            return 1.0
        lengths = self.segments.lengths.clone()
        lengths[0] = 1
        return 1 / lengths[self.ids[rows]].to(self.dtype)

    # ---- results ----

    def _smoothed(self) -> Tensor:
        """In place of `segments.loss()`: each token's own loss, which is not a function of its log p."""
        scale, smoothing = self.segments.scale[self.ids], self.spec.label_smoothing
        loss = scale * (smoothing * self.mean_nll - (1 - smoothing) * self.log_probs)
        loss = torch.where(scale == 0, 0.0, loss)  # also for an infinite one
        return loss.sum(dtype=self.segments.sums.dtype).to(self.dtype) * self.segments.inverse

    def output(self) -> LossOutput:
        spec, segments = self.spec, self.segments
        loss = segments.loss() if self.mean_nll is None else self._smoothed()
        share = self._share(slice(0, self.count)) if spec.z_loss or spec.entropy_bonus else None
        if spec.z_loss:
            loss = loss + spec.z_loss * (share * self.log_z.square()).sum() * segments.inverse
        if spec.entropy_bonus:
            loss = loss - spec.entropy_bonus * (share * self.entropy).sum() * segments.inverse
        tables = self.log_probs, self.entropy, self.correct, self.log_z
        log_probs, entropy, correct, log_z = (scatter(t, self.rows, self.total) for t in tables)
        sums = segments.sums[1:].to(self.dtype, copy=True)
        return LossOutput(loss, log_probs, sums, segments.coef, entropy, correct, log_z, self.skipped)
