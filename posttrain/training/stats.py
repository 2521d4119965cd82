"""Sums over micro-batches that become the logged means: kept on the device, reduced across ranks once a log line.

Left out: anything that would need the logits; the fused head returns what is summed here.
"""

from __future__ import annotations

import time

import torch

from posttrain.fused import FusedOutput

NAMES = (
    "trained_tokens", "nll", "entropy", "correct",
    "segments", "weight", "weight_low", "segment_logp", "input_tokens",
)  # fmt: skip


class LossStats:
    """Running sums of one logging window. `sources` are the names whose shares are logged."""

    def __init__(self, device: torch.device, sources: list[str]) -> None:
        self.device = device
        self.sources = sources
        self.reset()

    def reset(self) -> None:
        # fp64: a window may hold more tokens than fp32 counts exactly.
        self.sums = torch.zeros(
            len(NAMES) + len(self.sources), dtype=torch.float64, device=self.device
        )
        self.since = time.perf_counter()

    @torch.no_grad()
    def add(self, out: FusedOutput, batch: dict[str, torch.Tensor]) -> None:
        """Add one micro-batch: `out` of the fused forward, `batch` from the collator."""
        weight, logp = out.coef, out.segment_log_probs
        tokens = (
            batch["attention_mask"].sum()
            if "attention_mask" in batch
            else batch["input_ids"].numel()
        )
        values = [
            out.label_mask.sum(), -out.log_probs.sum(), out.entropy.sum(), out.is_top1.sum(),
            weight.numel(), weight.sum(), (weight < 0.1).sum(), logp.sum(), tokens,
        ]  # fmt: skip
        head = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values]
        )
        shares = torch.bincount(
            batch["example_ids"][:, 0].to(self.device), minlength=len(self.sources)
        )
        # The held-out loss may come from a source that is not in the mixture: its share is not counted.
        self.sums += torch.cat([head, shares[: len(self.sources)].double()])

    def means(self, reduce) -> dict[str, float]:
        """Logged values of the window; `reduce` sums a tensor over ranks (collective: call on all ranks)."""
        seconds = time.perf_counter() - self.since
        total = reduce(self.sums).tolist()
        v = dict(zip(NAMES, total, strict=False))
        shares = total[len(NAMES) :]
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
        examples = max(sum(shares), 1.0)
        if len(self.sources) > 1:
            out |= {f"share/{n}": s / examples for n, s in zip(self.sources, shares, strict=True)}
        return out
