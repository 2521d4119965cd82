"""How far the sampler was from the policy, completion by completion: what is logged and what stops a run.

With d = log pi(token) - log mu(token) (`losses/importance.py`), pi the policy as the trainer computes it and
mu the distribution that was sampled from, d is 0 but for rounding as long as the sampler has the policy's
weights. Each rank compares its own micro-batches; gathered, the comparison is of the batch and the same on
all ranks. Left out: the importance weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.losses.importance import beyond, importance_ratio, known, log_ratio
from posttrain.recipe.sections import TrainRollout

FIELDS = ("row", "known", "total", "largest", "ratio", "weights", "beyond", "weight")
"""Columns of `compared`, for each completion: its place in the batch; the number of tokens whose d is known,
the sum of |d| and the largest |d| over them; the sum of its ratios before the bounds, their number (1 for
`sequence_*`, else one a token), how many of them are beyond the bounds, and the largest weight after them."""


def compared(
    policy: Tensor,
    sampler: Tensor,
    mask: Tensor,
    rows: Tensor,
    weights: Tensor | None,
    mode: str,
    high: float | None,
    low: float | None,
) -> list[list[float]]:
    """`FIELDS` of each completion of a micro-batch whose mask is not empty.

    `policy`, `sampler`, `mask` [B, T]: see `importance_ratio`. `rows` [B]: places in the batch. `weights`
    [B, T] or [B, 1]: what the correction `mode` made of the ratios with the bounds `high` and `low`; None if
    it is `none`.
    """
    apart = log_ratio(policy, sampler, mask).abs().double()
    counted = mask.bool()
    if mode.startswith("sequence"):
        counted = counted.any(1, keepdim=True)
    unbounded = importance_ratio(
        policy, sampler, mask, "token_mask" if mode == "none" else mode, high=None, low=None
    )
    weights = unbounded if weights is None else weights
    columns = (
        rows,
        known(sampler, mask).sum(1),
        apart.sum(1),
        apart.amax(1),
        (unbounded.double() * counted).sum(1),
        counted.sum(1),
        # not where the weight differs: a ratio that underflows to 0 is below a bound and masked to the same 0
        (beyond(unbounded, high, low) & counted).sum(1),
        (weights * counted).amax(1),
    )
    found = torch.stack([column.double() for column in columns], 1)
    return found[mask.any(1)].tolist()


@dataclass(frozen=True)
class Mismatch:
    """The comparison of a batch: the rows of `compared` from all ranks, in any order."""

    found: Tensor  # [completions compared, len(FIELDS)] fp64
    rollout: TrainRollout

    @classmethod
    def of(cls, parts: Iterable[Sequence[Sequence[float]]], rollout: TrainRollout) -> Mismatch:
        """From what each rank compared."""
        rows = [row for part in parts for row in part]
        return cls(torch.tensor(rows, dtype=torch.double).reshape(-1, len(FIELDS)), rollout)

    def _column(self, name: str) -> Tensor:
        return self.found[:, FIELDS.index(name)]

    @property
    def mean(self) -> float:
        """The mean |d|, in nats per token; NaN where no d is known."""
        tokens = float(self._column("known").sum())
        return float(self._column("total").sum()) / tokens if tokens else math.nan

    @property
    def largest(self) -> float:
        """The largest |d| of a token."""
        return float(self._column("largest").max()) if len(self.found) else 0.0

    def kept(self, size: int) -> Tensor:
        """Whether each of the `size` completions of the batch has a weight above 0; [size] bool."""
        kept = torch.zeros(size, dtype=torch.bool)
        kept[self._column("row").long()] = self._column("weight") > 0
        return kept

    def differences(self) -> dict[int, float | None]:
        """Index of a compared completion -> its mean |d|, None where no d is known."""
        columns = (self._column(name).tolist() for name in ("row", "known", "total"))
        return {int(row): total / n if n else None for row, n, total in zip(*columns, strict=True)}

    def metrics(self) -> dict[str, float]:
        """What is logged; empty where there was nothing to compare, without d where none is known."""
        if not len(self.found):
            return {}
        count, correction = float(self._column("weights").sum()), self.rollout.vllm.correction
        found = {"sampler/ratio_mean": float(self._column("ratio").sum()) / count}
        if not math.isnan(self.mean):
            found |= {"sampler/logp_diff_mean": self.mean, "sampler/logp_diff_max": self.largest}
        if correction != "none":
            share = float(self._column("beyond").sum()) / count
            found["sampler/masked" if correction.endswith("mask") else "sampler/truncated"] = share
        return found

    def refusal(self) -> str | None:
        """Why nothing may be trained on this batch; None where it may."""
        vllm = self.rollout.vllm
        if not len(self.found):
            return None
        bound = vllm.max_logp_diff
        if bound is not None and math.isnan(self.mean):
            return (
                "vLLM gave no log-probability of any trained token, so that it cannot be compared with the "
                "policy; rollout.vllm.max_logp_diff: null trains without"
            )
        # the sampler's are renormalised over a set of tokens whose probability is at least top_p
        if bound is not None and self.mean > bound - math.log(self.rollout.top_p):
            return (
                f"the sampler is not the policy: |log policy - log sampler| is {self.mean:.3g} nats per "
                f"token on average and {self.largest:.3g} at most, above rollout.vllm.max_logp_diff = "
                f"{bound:g}; restart the vLLM server with the policy's model, dtype and "
                "--logprobs-mode processed_logprobs"
            )
        if not bool((self._column("weight") > 0).any()):
            return (
                f"rollout.vllm.correction = {vllm.correction} leaves nothing to train: the importance "
                f"weights of all {len(self.found)} completions are 0 (|log policy - log sampler| is "
                f"{self.mean:.3g} nats per token on average); set it to token_truncate, or restart the vLLM "
                "server with the policy's model"
            )
        return None
