"""Sums over preference pairs, or over single labelled replies, that become the logged means; as stats.py.

Names are TRL's where TRL logs the same.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from posttrain.losses.preference import Pairs

PAIR_NAMES = (
    "pairs", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected", "logratio/chosen", "logratio/rejected", "tokens/chosen", "tokens/rejected", "weight", "sft_loss",
)  # fmt: skip
SIDES = ("chosen", "rejected")
PER_SIDE = ("count", "rewards", "logps", "logratio", "tokens")
REPLY_NAMES = ("completions", "loss", "kl", *(f"{n}/{side}" for side in SIDES for n in PER_SIDE))


class Window:
    """Running sums `names` of one logging window. `sources` are the names whose shares are logged."""

    names: tuple[str, ...]

    def __init__(self, device: torch.device, sources: list[str]) -> None:
        self.device, self.sources = device, sources
        self.reset()

    def reset(self) -> None:
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self.shares = torch.zeros(len(self.sources) + 1, dtype=torch.float64, device=self.device)
        self.input_tokens = 0
        self.since = time.perf_counter()

    def _add(self, values: list[Tensor], batch: dict) -> None:
        """`values`: of each name, one number a row [B]."""
        self.sums += torch.stack([value.double().sum() for value in values])
        self.input_tokens += batch["num_tokens"]
        source = batch["example_ids"][:, 0].clamp(max=len(self.sources))
        self.shares.index_add_(0, source, self.shares.new_ones(()).expand(len(source)))

    def _totals(self, reduce) -> tuple[dict[str, float], dict[str, float]]:
        """The sums by name, and what is logged of every kind of row. The first name counts rows."""
        seconds = time.perf_counter() - self.since
        tokens = self.sums.new_full((1,), self.input_tokens)
        total = reduce(torch.cat([self.sums, tokens, self.shares])).tolist()
        found = dict(zip(self.names, total, strict=False))
        about = {
            self.names[0]: total[0],
            "tokens_per_second": total[len(self.names)] / max(seconds, 1e-9),
        }
        if len(self.sources) > 1:
            shares = total[len(self.names) + 1 : -1]
            rows = max(total[0], 1.0)
            about |= {f"share/{n}": s / rows for n, s in zip(self.sources, shares, strict=True)}
        return found, about


class PairStats(Window):
    """Of pairs."""

    names = PAIR_NAMES

    def __init__(
        self, device: torch.device, sources: list[str], referenced: bool, supervised: bool
    ) -> None:
        """`referenced`, `supervised`: whether there is a reference, and a supervised term, to log."""
        super().__init__(device, sources)
        left_out = set() if referenced else {"logratio/chosen", "logratio/rejected"}
        self.hidden = left_out | (set() if supervised else {"weight", "sft_loss"})

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
        self._add(values, batch)

    def means(self, reduce) -> dict[str, float]:
        """Logged values of the window; `reduce` sums a tensor over ranks (collective: call on all ranks)."""
        sums, about = self._totals(reduce)
        pairs = max(sums["pairs"], 1.0)
        out = {n: v / pairs for n, v in sums.items() if n not in self.hidden}
        if "weight" in out:
            out["weight_mean"] = out.pop("weight")
        return out | about


class ReplyStats(Window):
    """Of single replies: `chosen` are the desirable ones. A side that the window does not hold is not logged."""

    names = REPLY_NAMES

    @torch.no_grad()
    def add(
        self,
        loss: Tensor,
        log_probs: Tensor,
        ratios: Tensor,
        rewards: Tensor,
        kl: Tensor,
        batch: dict,
    ) -> None:
        """Add a micro-batch: `loss`, `log_probs`, `ratios` to the reference, `rewards` [B]; `kl` of its step."""
        values = [torch.ones_like(loss), loss, kl.expand(len(loss))]
        desirable = batch["desirable"]
        for side in (desirable, ~desirable):
            of_side = (torch.ones_like(loss), rewards, log_probs, ratios, batch["reply_tokens"])
            values += [value * side for value in of_side]
        self._add(values, batch)

    def means(self, reduce) -> dict[str, float]:
        """As `PairStats.means`."""
        sums, about = self._totals(reduce)
        rows = max(sums["completions"], 1.0)
        out = {"loss": sums["loss"] / rows, "kl": sums["kl"] / rows}
        for side in SIDES:
            count = out[f"count/{side}"] = sums[f"count/{side}"]
            if count:
                out |= {f"{n}/{side}": sums[f"{n}/{side}"] / count for n in PER_SIDE[1:]}
        if all(f"rewards/{side}" in out for side in SIDES):
            out["rewards/margins"] = out["rewards/chosen"] - out["rewards/rejected"]
        return out | about
