"""The loss without T x V logits, in plain torch: three matmuls for a segment that fits in a chunk.

The gradient is linear in the scale of a segment, and the scale is known once the segment's
log-probabilities are. So, for each chunk of rows X and with the head W:

    Z = X W^T                      fp32 logits                                   matmul 1
    log p, entropy, argmax         from Z and P = softmax(Z)
    sums -> L, F, scale            `segments.Segments.close`
    D = P - onehot                 in place; the target entry is expm1(log p)
    dX = scale * (D W)             rows scaled after the product                 matmul 2
    dW += D^T (scale * X)          fp32                                          matmul 3

Gradients are therefore made in forward and only multiplied by the upstream scalar in backward.
Ignored rows are dropped first and never read. A segment longer than a chunk is walked twice:
log-probabilities first, then logits again for the gradient, which costs a fourth matmul for those
rows and no memory; keeping a V x H accumulator for each open segment would save the matmul and cost
a head.

Memory: two chunk buffers, a fp32 dW, a dX, and a fp32 copy of a head held in lower precision.
Left out: skipping rows whose scale is tiny, vocabulary parallelism, double backward, low-precision
matmuls (bf16 inputs are upcast: on CUDA this back-end is for checking, not for speed), and the
entropy of rows with infinite logits (NaN). On CUDA the row selection synchronises with the host.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .segments import Segments, plan
from .spec import IGNORE, LossOutput, Spec, work_dtype

MAX_CHUNK_ROWS = 4096
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 1024 * 2**20}


def default_chunk_rows(vocab: int, device: str = "cpu", itemsize: int = 4) -> int:
    """As many rows as keep one buffer of logits within 64 MiB (1 GiB on CUDA), from 1 to 4096.
    More rows buy nothing: at 4096 the read and write of dW is a tenth of the matmuls."""
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    return max(1, min(MAX_CHUNK_ROWS, budget // max(1, vocab * itemsize)))


def run(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    segment_ids: Tensor,
    spec: Spec,
    chunk_rows: int | None = None,
) -> LossOutput:
    # `needs_input_grad` ignores no_grad, so the question is asked here.
    graph = torch.is_grad_enabled()
    wants = (graph and hidden.requires_grad, graph and weight.requires_grad)
    return LossOutput(*_Chunked.apply(hidden, weight, labels, segment_ids, spec, chunk_rows, wants))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, segment_ids, spec, chunk_rows, wants):
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            # The matmuls must give fp32 logits whatever autocast says.
            with torch.autocast(device, enabled=False):
                state = _Run(hidden, weight, labels, segment_ids, spec, chunk_rows, wants)
        else:
            state = _Run(hidden, weight, labels, segment_ids, spec, chunk_rows, wants)
        ctx.save_for_backward(state.d_hidden, state.d_weight)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        out = state.output()
        ctx.mark_non_differentiable(*out[1:])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        saved = ctx.saved_tensors
        if upstream.device.type == "cpu" and upstream.item() == 1:  # spare a copy of dW
            grads = [None if g is None else g.to(d) for g, d in zip(saved, ctx.dtypes, strict=True)]
        else:
            grads = [
                None if g is None else (g * upstream).to(d)
                for g, d in zip(saved, ctx.dtypes, strict=True)
            ]
        return *grads, None, None, None, None, None


def _kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp16 gradients wait in fp32: they underflow before the loss scale arrives."""
    return torch.float32 if dtype == torch.float16 else dtype


class _Run:
    """One call. R trained rows; tables of rows are [R] until `output` scatters them to [T]."""

    def __init__(self, hidden, weight, labels, segment_ids, spec, chunk_rows, wants):
        self.hidden, self.spec = hidden, spec
        self.dtype = dtype = work_dtype(hidden, weight)
        rows = torch.nonzero(labels != IGNORE).flatten()  # [R]
        self.rows = None if rows.numel() == labels.numel() else rows
        self.total = labels.numel()
        self.labels = labels if self.rows is None else labels[rows]
        self.ids = segment_ids if self.rows is None else segment_ids[rows]
        self.head = weight.to(dtype)  # [V, H]
        self.segments = Segments(self.ids, spec, dtype)
        count, vocab, device = rows.numel(), weight.shape[0], hidden.device
        size = chunk_rows or default_chunk_rows(vocab, device.type, dtype.itemsize)
        size = min(size, count)
        self.log_probs = torch.empty(count, dtype=dtype, device=device)
        self.entropy = torch.empty(count, dtype=dtype, device=device)
        self.correct = torch.empty(count, dtype=torch.bool, device=device)
        self.buffers = torch.empty(2, size, vocab, dtype=dtype, device=device)
        self.d_hidden = self.d_weight = None
        self.want_hidden, self.want_weight = wants
        if self.want_hidden:
            make = torch.empty if self.rows is None else torch.zeros
            self.d_hidden = make(hidden.shape, dtype=_kept_dtype(hidden.dtype), device=device)
        for group in plan(self.ids, size, spec.num_segments, spec.weight_needs_model):
            self._group(group, size)
        del self.buffers
        if self.want_weight:
            if self.d_weight is None:
                self.d_weight = torch.zeros(weight.shape, dtype=dtype, device=device)
            self.d_weight = self.d_weight.to(_kept_dtype(weight.dtype))

    def _group(self, group, size):
        blocks = [slice(i, min(i + size, group.stop)) for i in range(group.start, group.stop, size)]
        for block in blocks:
            inputs, shifted, probs, top = self._softmax(block)
            self._statistics(block, shifted, probs, top)
        self.segments.close(group.low, group.high)
        if not (self.want_hidden or self.want_weight):
            return
        for block in blocks:
            if len(blocks) > 1:  # the buffers hold the last block only
                inputs, _, probs, _ = self._softmax(block)
            self._gradients(block, inputs, probs)

    def _softmax(self, block):
        """X [r, H], logits minus their row maximum [r, V], softmax [r, V], argmax [r]."""
        logits, probs = self.buffers[:, : block.stop - block.start]
        inputs = self.hidden[block] if self.rows is None else self.hidden[self.rows[block]]
        inputs = inputs.to(self.dtype)
        tau = self.spec.temperature
        torch.mm(inputs if tau == 1 else inputs / tau, self.head.t(), out=logits)
        peak, top = logits.max(dim=1)
        logits.sub_(peak.unsqueeze(1))
        torch.softmax(logits, 1, out=probs)
        return inputs, logits, probs, top

    def _statistics(self, block, shifted, probs, top):
        labels = self.labels[block]
        # softmax at the maximum is exp(0) / sum, so its logarithm is minus the log-sum-exp.
        minus_lse = probs.gather(1, top.unsqueeze(1)).squeeze(1).log_()
        log_probs = shifted.gather(1, labels.unsqueeze(1)).squeeze(1).add_(minus_lse)
        self.segments.add(self.ids[block], log_probs)
        self.log_probs[block] = log_probs
        mean = torch.bmm(probs.unsqueeze(1), shifted.unsqueeze(2)).view(-1)  # E[z - max z]
        torch.add(minus_lse, mean, out=self.entropy[block]).neg_()
        torch.eq(top, labels, out=self.correct[block])

    def _gradients(self, block, inputs, probs):
        scale = self.segments.scale[self.ids[block]].unsqueeze(1)  # [r, 1]
        if self.spec.temperature != 1:
            scale = scale / self.spec.temperature
        target = torch.expm1(self.log_probs[block]).unsqueeze(1)
        delta = probs.scatter_(1, self.labels[block].unsqueeze(1), target)  # [r, V]
        if self.want_hidden:
            d_rows = torch.mm(delta, self.head).mul_(scale)
            where = block if self.rows is None else self.rows[block]
            self.d_hidden[where] = d_rows.to(self.d_hidden.dtype)
        if self.want_weight:
            scaled = inputs * scale
            if self.d_weight is None:
                self.d_weight = torch.mm(delta.t(), scaled)
            else:
                self.d_weight.addmm_(delta.t(), scaled)

    def output(self) -> LossOutput:
        segments = self.segments
        return LossOutput(
            segments.loss(),
            self._scatter(self.log_probs),
            segments.sums[1:].to(self.dtype),
            segments.coef,
            self._scatter(self.entropy),
            self._scatter(self.correct),
        )

    def _scatter(self, values: Tensor) -> Tensor:
        if self.rows is None:
            return values
        return values.new_zeros(self.total).index_copy_(0, self.rows, values)
