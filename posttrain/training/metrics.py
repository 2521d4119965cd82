"""Sums over micro-batches that become logged means: kept on the device, reduced across ranks once per log
line.

`LossStats` for supervised fine-tuning, `PairStats` and `ReplyStats` for preference stages. The sums of a
window are saved with a checkpoint (`state`), so that a resumed run logs what an uninterrupted one does. Left
out: anything that would need the logits; the fused head returns what is summed here.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from posttrain.losses.preference import PairLogProbs
from posttrain.models.head import FusedOutput

LOSS_NAMES = (
    "trained_tokens",
    "nll",
    "entropy",
    "correct",
    "weight",
    "weight_low",
    "segment_logp",
    "skipped",
    "segments",
    "aux_loss",
    "balanced",
)


class Window:
    """Running sums `names` of one logging window. `sources` are the names whose shares are logged."""

    names: tuple[str, ...]
    """The first counts rows, or tokens, and is logged as it is."""

    def __init__(self, device: torch.device, sources: list[str]) -> None:
        self.device, self.sources = device, sources
        self.reset()

    def reset(self) -> None:
        # fp64: a window may hold more tokens than fp32 counts exactly.
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        # The last slot takes what is in no source: the held-out loss may come from a data set of its own.
        self.shares = torch.zeros(len(self.sources) + 1, dtype=torch.float64, device=self.device)
        self.input_tokens = 0
        self.since = time.perf_counter()

    def state(self, reduce) -> dict[str, dict[str, float]]:
        """The sums of all ranks, for a checkpoint; not those of the speed. `reduce` as in `means`."""
        sums, shares = (reduce(values).tolist() for values in (self.sums, self.shares))
        return {
            "sums": dict(zip(self.names, sums, strict=True)),
            "sources": dict(zip(self.sources, shares, strict=False)),
        }

    def load(self, state: dict[str, dict[str, Any]]) -> None:
        """Goes on with the sums of `state`; to be called on one rank alone."""
        for found, names, values in (
            (state.get("sums", {}), self.names, self.sums),
            (state.get("sources", {}), self.sources, self.shares),
        ):
            for i, name in enumerate(names):
                values[i] += _float(found.get(name, 0.0))

    def _add(self, values: list[Tensor], batch: dict) -> None:
        """`values`: of each name one number, summed over rows."""
        self.sums += torch.stack([value.double() for value in values])
        self.input_tokens += batch["num_tokens"]
        source = batch["example_ids"][:, 0].clamp(max=len(self.sources))
        self.shares.index_add_(0, source, self.shares.new_ones(()).expand(len(source)))

    def _totals(self, reduce) -> tuple[dict[str, float], dict[str, float]]:
        """The sums by name, and what is logged of every kind of row."""
        seconds = time.perf_counter() - self.since
        tokens = self.sums.new_full((1,), self.input_tokens)
        total = reduce(torch.cat([self.sums, tokens, self.shares])).tolist()
        found = dict(zip(self.names, total, strict=False))
        about = {self.names[0]: total[0], "tokens_per_second": total[len(self.names)] / max(seconds, 1e-9)}
        if len(self.sources) > 1:
            shares = total[len(self.names) + 1 : -1]
            rows = max(sum(shares), 1.0)
            about |= {f"share/{n}": s / rows for n, s in zip(self.sources, shares, strict=True)}
        return found, about


def _float(value: Any) -> float:
    """A number of checkpoint.json, where NaN and infinity are null."""
    return math.nan if value is None else float(value)


class LossStats(Window):
    """Of supervised fine-tuning."""

    names = LOSS_NAMES

    def __init__(self, device: torch.device, sources: list[str], skipping: bool = False) -> None:
        """`skipping`: whether the loss leaves out rows of small weight, so that their share is logged."""
        super().__init__(device, sources)
        self.skipping = skipping

    @torch.no_grad()
    def add(self, out: FusedOutput, batch: dict[str, torch.Tensor]) -> None:
        """Add one micro-batch: `out` of the fused forward, `batch` from the collator.

        Nothing is copied to the device and nothing waits for it: this runs in every micro-batch.
        """
        weight = out.coef
        values = [
            out.label_mask.sum(),
            -out.log_probs.sum(),
            out.entropy.sum(),
            out.is_top1.sum(),
            weight.sum(),
            (weight < 0.1).sum(),
            out.segment_log_probs.sum(),
            out.skipped,
            weight.new_full((), weight.numel(), dtype=torch.float64),
            weight.new_zeros(()) if out.aux_loss is None else out.aux_loss,
            weight.new_full((), out.aux_loss is not None),
        ]
        self._add(values, batch)

    def means(self, reduce) -> dict[str, float]:
        """Logged values of the window; `reduce` sums a tensor over ranks (collective: call on all ranks)."""
        v, about = self._totals(reduce)
        tokens, segments = max(v["trained_tokens"], 1.0), max(v["segments"], 1.0)
        out = {
            "nll": v["nll"] / tokens,
            "entropy": v["entropy"] / tokens,
            "token_accuracy": v["correct"] / tokens,
        }
        if v["segments"]:
            out |= {
                "weight_mean": v["weight"] / segments,
                "weight_below_0.1": v["weight_low"] / segments,
                "segment_logp": v["segment_logp"] / segments,
            }
        if self.skipping:
            out["skipped_rows"] = v["skipped"] / tokens
        if v["balanced"]:
            out["aux_loss"] = v["aux_loss"] / v["balanced"]  # a mean over micro-batches
        return out | about


PAIR_NAMES = (
    "pairs",
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logratio/chosen",
    "logratio/rejected",
    "tokens/chosen",
    "tokens/rejected",
    "weight",
    "sft_loss",
)
SIDES = ("chosen", "rejected")
PER_SIDE = ("count", "rewards", "logps", "logratio", "tokens")
REPLY_NAMES = ("completions", "loss", "kl", *(f"{n}/{side}" for side in SIDES for n in PER_SIDE))


class PairStats(Window):
    """Of pairs."""

    names = PAIR_NAMES

    def __init__(self, device: torch.device, sources: list[str], referenced: bool, supervised: bool) -> None:
        """`referenced`, `supervised`: whether there is a reference, and a supervised term, to log."""
        super().__init__(device, sources)
        left_out = set() if referenced else {"logratio/chosen", "logratio/rejected"}
        self.hidden = left_out | (set() if supervised else {"weight", "sft_loss"})

    @torch.no_grad()
    def add(
        self,
        pairs: PairLogProbs,
        loss: Tensor,
        rewards: tuple[Tensor, Tensor],
        sft: tuple[Tensor, Tensor],
        batch: dict,
    ) -> None:
        """Add a micro-batch: `loss` [B] of the pairs, `rewards` of both sides [B], `sft` loss and weight F
        [B]."""
        chosen, rejected = rewards
        zero = torch.zeros_like(chosen)
        ratios = (zero, zero) if pairs.ref_chosen is None else pairs.ratios
        values = [
            torch.ones_like(chosen),
            loss,
            chosen,
            rejected,
            chosen - rejected,
            chosen > rejected,
            pairs.chosen,
            pairs.rejected,
            *ratios,
            pairs.chosen_tokens,
            pairs.rejected_tokens,
            sft[1],
            sft[0],
        ]
        self._add([value.double().sum() for value in values], batch)

    def means(self, reduce) -> dict[str, float]:
        """Logged values of the window; `reduce` sums a tensor over ranks (collective: call on all ranks)."""
        sums, about = self._totals(reduce)
        pairs = max(sums["pairs"], 1.0)
        out = {n: v / pairs for n, v in sums.items() if n not in self.hidden}
        if "weight" in out:
            out["weight_mean"] = out.pop("weight")
        return out | about


class ReplyStats(Window):
    """For single replies; `chosen` are the desirable ones. A side missing from the window is not logged."""

    names = REPLY_NAMES

    @torch.no_grad()
    def add(
        self, loss: Tensor, log_probs: Tensor, ratios: Tensor, rewards: Tensor, kl: Tensor, batch: dict
    ) -> None:
        """Add a micro-batch: `loss`, `log_probs`, `ratios` to the reference, `rewards` [B]; `kl` of the
        step."""
        values = [torch.ones_like(loss), loss, kl.expand(len(loss))]
        desirable = batch["desirable"]
        for side in (desirable, ~desirable):
            of_side = (torch.ones_like(loss), rewards, log_probs, ratios, batch["reply_tokens"])
            values += [value * side for value in of_side]
        self._add([value.double().sum() for value in values], batch)

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
