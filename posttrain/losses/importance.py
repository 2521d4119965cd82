r"""Importance weights for completions that another program sampled: rho = policy / sampler, kept in bounds.

With d = log pi(token) - log mu(token), pi the policy as the trainer computes it and mu what vLLM sampled from, both after
temperature, rho is exp(d) a token or exp(sum of d) a completion, and

    token_truncate     min(max(rho, low), high)          token_mask     rho where low <= rho <= high, else 0
    sequence_truncate  the same of a whole completion    sequence_mask  the same of a whole completion

The two programs round differently, so pi and mu differ although the weights are the same; the gradient under mu times rho
is that under pi. Truncated: Ionides 2008; masked: IcePop (arXiv 2510.18855). The names, defaults and numbers are TRL's. With top_p below 1 mu is
renormalised over fewer tokens and rho is biased. Left out: which loss is multiplied by it.
"""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def importance_ratio(
    policy: Tensor,
    sampler: Tensor,
    mask: Tensor,
    mode: str = "sequence_mask",
    high: float | None = 3.0,
    low: float | None = None,
) -> Tensor:
    """Weights of tokens [B, T] (`token_*`) or completions [B, 1] (`sequence_*`), fp32, without gradient.

    `policy`, `sampler` [B, T] are log-probabilities of the sampled tokens, `mask` [B, T] says which are part of a
    completion; others are never read. A token whose `sampler` is NaN (vLLM could not say) counts as d = 0. Masked
    tokens of `token_*` have weight 1, within the bounds.

    Raises:
        ValueError: unknown mode, shapes that differ, low above high.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
    if not policy.shape == sampler.shape == mask.shape or policy.ndim != 2:
        raise ValueError(f"shapes {policy.shape}, {sampler.shape}, {mask.shape}: want [B, T]")
    if low is not None and high is not None and low > high:
        raise ValueError(f"low = {low} is above high = {high}")
    known = mask.bool() & ~sampler.isnan()
    # selected, not multiplied: what stands at masked places may be infinite
    difference = torch.where(known, policy.detach().float() - sampler.float(), 0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(low, high) if (low, high) != (None, None) else ratio
    outside = torch.zeros_like(ratio, dtype=torch.bool)
    if low is not None:
        outside |= ratio < low
    if high is not None:
        outside |= ratio > high
    return ratio.masked_fill(outside, 0.0)
