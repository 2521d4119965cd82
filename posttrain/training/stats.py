"""Sums over micro-batches that become the logged means: kept on the device, reduced across ranks once a log line.

Left out: anything that would need the logits; the fused head returns what is summed here.
"""

from __future__ import annotations

import time

import torch

from posttrain.fused import FusedOutput

NAMES = (
    "trained_tokens", "nll", "entropy", "correct", "weight", "weight_low", "segment_logp", "skipped",
)  # fmt: skip
COUNTS = ("segments", "input_tokens")
"""Known on the host already."""


class LossStats:
    """Running sums of one logging window. `sources` are the names whose shares are logged."""

    def __init__(self, device: torch.device, sources: list[str], skipping: bool = False) -> None:
        """`skipping`: whether the loss leaves out rows of small weight, so that their share is logged."""
        self.device = device
        self.sources = sources
        self.skipping = skipping
        self.reset()

    def reset(self) -> None:
        # fp64: a window may hold more tokens than fp32 counts exactly.
        self.sums = torch.zeros(len(NAMES), dtype=torch.float64, device=self.device)
        # The last slot takes what is in no source: the held-out loss may come from a data set of its own.
        self.shares = torch.zeros(len(self.sources) + 1, dtype=torch.float64, device=self.device)
        self.counts = dict.fromkeys(COUNTS, 0)
        self.since = time.perf_counter()

    @torch.no_grad()
    def add(self, out: FusedOutput, batch: dict[str, torch.Tensor]) -> None:
        """Add one micro-batch: `out` of the fused forward, `batch` from the collator.

        Nothing is copied to the device and nothing waits for it: this runs in every micro-batch.
        """
        weight = out.coef
        values = [
            out.label_mask.sum(), -out.log_probs.sum(), out.entropy.sum(), out.is_top1.sum(),
            weight.sum(), (weight < 0.1).sum(), out.segment_log_probs.sum(), out.skipped,
        ]  # fmt: skip
        self.sums += torch.stack([value.double() for value in values])
        self.counts["segments"] += weight.numel()
        self.counts["input_tokens"] += batch["num_tokens"]
        source = batch["example_ids"][:, 0].clamp(max=len(self.sources))
        self.shares.index_add_(0, source, self.shares.new_ones(()).expand(len(source)))

    def means(self, reduce) -> dict[str, float]:
        """Logged values of the window; `reduce` sums a tensor over ranks (collective: call on all ranks)."""
        seconds = time.perf_counter() - self.since
        counts = self.sums.new_tensor([self.counts[name] for name in COUNTS])
        total = reduce(torch.cat([self.sums, counts, self.shares])).tolist()
        v = dict(zip(NAMES + COUNTS, total, strict=False))
        shares = total[len(NAMES + COUNTS) : -1]
        tokens, segments = max(v["trained_tokens"], 1.0), max(v["segments"], 1.0)
        out = {
            "nll": v["nll"] / tokens,
            "entropy": v["entropy"] / tokens,
            "token_accuracy": v["correct"] / tokens,
            "tokens_per_second": v["input_tokens"] / max(seconds, 1e-9),
            "trained_tokens": v["trained_tokens"],
        }
        if v["segments"]:
            out |= {
                "weight_mean": v["weight"] / segments,
                "weight_below_0.1": v["weight_low"] / segments,
                "segment_logp": v["segment_logp"] / segments,
            }
        if self.skipping:
            out["skipped_rows"] = v["skipped"] / tokens
        examples = max(sum(shares), 1.0)
        if len(self.sources) > 1:
            out |= {f"share/{n}": s / examples for n, s in zip(self.sources, shares, strict=True)}
        return out
