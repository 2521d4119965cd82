"""Sums over preference pairs that become the logged means; as stats.py, for the DPO stage."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from posttrain.losses.preference import Pairs

NAMES = (
    "pairs", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected", "logratio/chosen", "logratio/rejected", "tokens/chosen", "tokens/rejected", "weight", "sft_loss",
)  # fmt: skip
"""TRL's names where TRL logs the same."""


class PairStats:
    """Running sums of one logging window. `sources` are the names whose shares are logged."""

    def __init__(
        self, device: torch.device, sources: list[str], referenced: bool, supervised: bool
    ) -> None:
        """`referenced`, `supervised`: whether there is a reference, and a supervised term, to log."""
        self.device, self.sources = device, sources
        left_out = set() if referenced else {"logratio/chosen", "logratio/rejected"}
        self.hidden = left_out | (set() if supervised else {"weight", "sft_loss"})
        self.reset()

    def reset(self) -> None:
        self.sums = torch.zeros(len(NAMES), dtype=torch.float64, device=self.device)
        self.shares = torch.zeros(len(self.sources) + 1, dtype=torch.float64, device=self.device)
        self.input_tokens = 0
        self.since = time.perf_counter()

    @torch.no_grad()
    def add(
        self,
        pairs: Pairs,
        loss: Tensor,
        rewards: tuple[Tensor, Tensor],
        sft: tuple[Tensor, Tensor],
        batch: dict,
    ) -> None:
        """Add a micro-batch: `loss` [B] of the pairs, `rewards` of both sides [B], `sft` its loss and weight F [B]."""
        chosen, rejected = rewards
        zero = torch.zeros_like(chosen)
        ratios = (zero, zero) if pairs.ref_chosen is None else pairs.ratios
        values = [
            torch.ones_like(chosen), loss, chosen, rejected, chosen - rejected, chosen > rejected, pairs.chosen,
            pairs.rejected, *ratios, pairs.chosen_tokens, pairs.rejected_tokens, sft[1], sft[0],
        ]  # fmt: skip
        self.sums += torch.stack([value.double().sum() for value in values])
        self.input_tokens += batch["num_tokens"]
        source = batch["example_ids"][:, 0].clamp(max=len(self.sources))
        self.shares.index_add_(0, source, self.shares.new_ones(()).expand(len(source)))

    def means(self, reduce) -> dict[str, float]:
        """Logged values of the window; `reduce` sums a tensor over ranks (collective: call on all ranks)."""
        seconds = time.perf_counter() - self.since
        tokens = self.sums.new_full((1,), self.input_tokens)
        total = reduce(torch.cat([self.sums, tokens, self.shares])).tolist()
        pairs = max(total[0], 1.0)
        out = {n: v / pairs for n, v in zip(NAMES, total, strict=False) if n not in self.hidden}
        out["pairs"] = total[0]
        if "weight" in out:
            out["weight_mean"] = out.pop("weight")
        out["tokens_per_second"] = total[len(NAMES)] / max(seconds, 1e-9)
        shares = total[len(NAMES) + 1 : -1]
        if len(self.sources) > 1:
            out |= {f"share/{n}": s / pairs for n, s in zip(self.sources, shares, strict=True)}
        return out
