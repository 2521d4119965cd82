"""Mode A: the loss without T x V logits, three matmuls for a segment that fits in a chunk.

The gradient is linear in the scale of a segment, and the scale is known once the segment's
log-probabilities are. So, for each chunk of rows X and with the head W:

    Z = X W^T                      fp32 logits                                   matmul 1
    log p, entropy, log Z, D       row operations: D = softmax - onehot, in place
    sums -> L, F, scale            `segments.Segments.close`
    dX = scale * (D W)             rows scaled after the product                 matmul 2
    dW += D^T (scale * X)          fp32                                          matmul 3

Gradients are therefore made in forward and only multiplied by the upstream scalar in backward.
Ignored rows are dropped first and never read. A segment longer than a chunk has its unscaled
D^T X in an accumulator of its own, added to dW once the scale is known; a short one, and segments
that interleave, are walked twice (a fourth matmul for those rows). A bias and LoRA on the head are
a second pair of factors (U, B) with logits U B^T and the same three products.

Memory: the row operations' buffers, a fp32 dW and dX; for low-precision heads on a CPU a fp32 copy.
Left out: double backward, and the entropy of rows with infinite logits (NaN). Without `host` a call
on a GPU waits once for the labels.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import plan
from .gradients import KINDS, Block, Gradients
from .matmul import multiply_dtype, outside_autograd, product
from .rows import operations, pick, scatter, stats_of
from .spec import IGNORE, LossOutput, Spec, work_dtype

ACCUMULATE_ROWS = 1100
"""Adding a V x H accumulator to dW moves as many bytes as computing this many rows of logits again
takes time on an H100 or H200 (12 bytes an element at 4.3 TB/s, 790 TFLOP/s in bf16)."""


def run(
    hidden: Tensor,
    weight: Tensor,
    factors: tuple[Tensor, Tensor] | None,
    labels: Tensor,
    segment_ids: Tensor,
    spec: Spec,
    backend: str,
    chunk_rows: int | None = None,
) -> LossOutput:
    tensors = (hidden, weight, *(factors or (None, None)))
    # `needs_input_grad` ignores no_grad, so the question is asked here.
    graph = torch.is_grad_enabled()
    wants = tuple(graph and t is not None and t.requires_grad for t in tensors)
    return LossOutput(*_Chunked.apply(*tensors, labels, segment_ids, spec, backend, chunk_rows, wants))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        out, grads, inverse = solve(*arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads, *([inverse] if isinstance(inverse, Tensor) else []))
        ctx.inverse = inverse
        ctx.dtypes = [None if t is None else t.dtype for t in arguments[:KINDS]]
        ctx.mark_non_differentiable(*out[1:])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        grads = ctx.saved_tensors[:KINDS]
        if upstream is None:
            return (None,) * (KINDS + 6)
        inverse = ctx.saved_tensors[KINDS] if isinstance(ctx.inverse, Tensor) else ctx.inverse
        return *finish(grads, upstream * inverse, ctx.dtypes), *(None,) * 6


def finish(grads, factor: Tensor, dtypes) -> list[Tensor | None]:
    """Gradients times the upstream scalar over the denominator, in the dtypes of the inputs: one
    pass that reads fp32 and writes what the parameter holds."""
    out = []
    for grad, dtype in zip(grads, dtypes, strict=True):
        if grad is None:
            out.append(None)
        else:
            out.append(torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype)))
    return out


def solve(hidden, weight, left, right, labels, segment_ids, spec, backend, chunk_rows, wants):
    """(LossOutput, gradients before the denominator, 1 / denominator), outside autograd."""
    mm = multiply_dtype(hidden, weight, backend)
    with outside_autograd(hidden):
        state = _Run(hidden, weight, left, right, labels, segment_ids, spec, backend, mm)
        state.walk(chunk_rows, wants)
        grads = state.gradients.results(spec.vocab)
        return state.output(), grads, state.segments.inverse


class _Run:
    """One call. R trained rows; tables of rows are [R] until `output` scatters them to [T]."""

    def __init__(self, hidden, weight, left, right, labels, segment_ids, spec, backend, mm):
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
        # A kernel reads them by address: a column of a wider table would be another table.
        self.labels, self.ids = (pick(t, self.rows).contiguous() for t in (labels, segment_ids))
        if spec.vocab is not None:
            self.labels = spec.vocab.local(self.labels, weight.shape[0])
        self.hidden, self.left = hidden, left  # [T, H], [T, r]
        self.head = weight.to(mm)  # [V, H]
        self.right = None if right is None else right.to(mm)  # [V, r]
        self.rows_class, segments_class = operations(backend)
        self.segments = segments_class(self.ids, spec, self.dtype)
        self.log_probs, self.log_z, self.entropy = (
            torch.empty(self.count, dtype=self.dtype, device=device) for _ in range(3)
        )
        self.correct = torch.empty(self.count, dtype=torch.bool, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)

    def _rows_of(self, table: Tensor, block: slice) -> Tensor:
        """A block's rows of a [T, ...] table."""
        return table[block if self.rows is None else self.rows[block]]

    # ---- walk ----------------------------------------------------------------------------------

    def walk(self, chunk_rows: int | None, wants: tuple[bool, ...]) -> None:
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
        rows = group.stop - group.start
        step = plan.balanced(rows, self.size)
        starts = range(group.start, group.stop, step)
        blocks = [slice(i, min(i + step, group.stop)) for i in starts]
        long = len(blocks) > 1
        # Neither a z-loss nor skipping knows how to wait for the scale of an accumulator.
        simple = not self.spec.z_loss and self.spec.skip_below is None
        wait = train and long and group.single and rows >= ACCUMULATE_ROWS and simple
        waiting: list[Tensor | None] = [None] * KINDS
        for rows in blocks:
            block = self._rows(rows, train and (wait or not long))
            if wait:
                self.gradients.add(block, None, waiting=waiting)
        whole = slice(group.start, group.stop)
        self.segments.close(group.low, group.high, self.ids[whole], self.log_probs[whole])
        if wait:
            scale = self.segments.scale[group.low] * self.spec.view.slope  # []
            self.gradients.fold(whole, scale, waiting)
            return
        for rows in blocks if train else ():
            # The buffers hold the last block only: a long group is walked again.
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
        if vocab is None:
            stats, delta = self.ops.forward(z, labels, want_delta)
        else:
            part = self.ops.partial(z, labels)
            stats = stats_of(vocab.merge(part))
            delta = self.ops.delta(z, labels, part, stats) if want_delta else None
        self.log_probs[rows], self.log_z[rows] = stats.log_probs, stats.log_z
        self.entropy[rows], self.correct[rows] = stats.entropy, stats.correct
        return Block(rows, labels, x, u, delta)

    def _scaled(self, block: Block, rows: slice) -> None:
        """Add a block whose segments have closed."""
        spec, ids = self.spec, self.ids[rows]
        scale, point = self.segments.scale[ids], None  # [r]
        if spec.skip_below is not None:
            live = torch.nonzero(self.segments.live()[ids]).flatten()
            if len(live) < len(ids):
                self.skipped += len(ids) - len(live)
                if not len(live):
                    return
                block, scale = block.keep(live), scale[live]
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

    def _share(self, rows: slice) -> Tensor | float:
        """What the plain cross-entropy of a token counts in the sum."""
        if self.spec.reduction != "length_mean":
            return 1.0
        lengths = self.segments.lengths.clone()
        lengths[0] = 1
        return 1 / lengths[self.ids[rows]].to(self.dtype)

    # ---- results -------------------------------------------------------------------------------

    def output(self) -> LossOutput:
        segments = self.segments
        loss = segments.loss()
        if self.spec.z_loss:
            every = slice(0, self.count)
            squares = (self._share(every) * self.log_z.square()).sum()
            loss = loss + self.spec.z_loss * squares * segments.inverse
        tables = self.log_probs, self.entropy, self.correct, self.log_z
        log_probs, entropy, correct, log_z = (scatter(t, self.rows, self.total) for t in tables)
        sums = segments.sums[1:].to(self.dtype, copy=True)
        return LossOutput(loss, log_probs, sums, segments.coef, entropy, correct, log_z, self.skipped)
