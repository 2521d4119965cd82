r"""Importance weights for completions sampled by another program: rho = policy / sampler, kept in bounds.

With d = log pi(token) - log mu(token), pi the policy as the trainer computes it and mu the distribution that
vLLM sampled from, both after temperature, rho is exp(d) for a token or exp(sum of d) for a completion, and

    token_truncate     min(max(rho, low), high)        token_mask     rho if low <= rho <= high, else 0
    sequence_truncate  the same for a completion       sequence_mask  the same for a completion

The two programs round differently, so pi and mu differ although the weights are the same; multiplied by rho,
the gradient under mu is that under pi. Truncation: Ionides 2008; masking: IcePop (arXiv 2510.18855). Names,
defaults and values are TRL's. With top_p below 1, mu is renormalised over fewer tokens and rho is biased.
Left out: the loss that is multiplied by rho.
"""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def known(sampler: Tensor, mask: Tensor) -> Tensor:
    """Whether d is known, bool [B, T]: inside the mask, unless `sampler` is NaN."""
    return mask.bool() & ~sampler.isnan()


def log_ratio(policy: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
    """d = log policy - log sampler, fp32 [B, T], without gradient; 0 outside the mask and where `sampler` is
    NaN."""
    # selected, not multiplied, because masked values may be infinite
    return torch.where(known(sampler, mask), policy.detach().float() - sampler.float(), 0.0)


def importance_ratio(
    policy: Tensor,
    sampler: Tensor,
    mask: Tensor,
    mode: str = "sequence_mask",
    high: float | None = 3.0,
    low: float | None = None,
) -> Tensor:
    """Weights of tokens [B, T] (`token_*`) or completions [B, 1] (`sequence_*`), fp32, without gradient.

    `policy`, `sampler` [B, T] are log-probabilities of the sampled tokens; `mask` [B, T] is true for tokens
    of a completion, and values elsewhere may be anything. A token whose `sampler` is NaN (vLLM gave no
    number) has d = 0. Tokens outside the mask have weight 1 in `token_*`, clipped to the bounds.

    Raises:
        ValueError: unknown mode, different shapes, or low above high.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    if not policy.shape == sampler.shape == mask.shape or policy.ndim != 2:
        raise ValueError(
            f"shapes {policy.shape}, {sampler.shape}, {mask.shape}: expected the same [B, T] for all"
        )
    if low is not None and high is not None and low > high:
        raise ValueError(f"low = {low} is above high = {high}")
    difference = log_ratio(policy, sampler, mask)
    if mode.startswith("sequence"):
        difference = difference.sum(1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(low, high) if (low, high) != (None, None) else ratio
    return ratio.masked_fill(beyond(ratio, high, low), 0.0)


def beyond(ratio: Tensor, high: float | None, low: float | None) -> Tensor:
    """Whether each ratio, before the bounds, is beyond them; bool of the same shape."""
    outside = torch.zeros_like(ratio, dtype=torch.bool)
    if low is not None:
        outside |= ratio < low
    if high is not None:
        outside |= ratio > high
    return outside
