r"""Advantages of a group of n completions of one prompt: how much better each one is than its group.

With rewards r, successes s in {0, 1}, c = sum s, p = c/n and rho = 1 - C(n-c, k)/C(n, k), the probability
that one of k completions drawn without replacement succeeds:

    mean            r - mean r                                Dr. GRPO, arXiv 2503.20783
    mean_std        (r - mean r) / (std r + 1e-4)             GRPO, arXiv 2402.03300 eq. 3 (std over n - 1)
    leave_one_out   r_i - mean of the others                  RLOO, arXiv 2402.14740
    pkpo            k C(n-c, k-1) / C(n-1, k-1) * s           n times that of PKPO, arXiv 2505.15201, its
                                                              leave-one-out form
    pass_at_k       (1-rho)/sigma, (1 - rho - C(n-c-1, k-1)/C(n-1, k-1))/sigma,  sigma = sqrt(rho (1-rho))
                                                              Pass@k Training, arXiv 2508.10751
    confidence      F(N, p)/p * (s - p),  F = N (1-p)^(N-1) p / (1 - (1-p)^N)
                                                              plug-in form of arXiv 2502.07154
    maxrl           (s - p)/p                                 `confidence` with N = 1

The first three use rewards, the others successes. A completion whose check failed is not part of its group: n
counts the others, and its own advantage is 0. Groups without variance give 0 (but `pkpo` with k = 1 gives
1 where all are right). Computed on whole groups, before truncated completions are masked.

Scale: the policy losses take the mean of A grad log pi over completions. For `leave_one_out` its expectation
is grad E[r], for `mean` (n-1)/n of that, for `pkpo` grad pass@k; so with these `policy.beta` weighs the KL
divergence against the reward, or against pass@k. The paper's form of PKPO is unbiased in the sum over the n
completions, hence the factor n. The others are rescaled within each group, and beta is relative to that
scale. Left out: which tokens of a completion get its advantage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

SPREAD = 1e-4
"""Added to the standard deviation, as in TRL."""
READ_REWARDS = ("mean", "mean_std", "leave_one_out")
"""Advantages of rewards; the others are of successes."""


def advantages(
    name: str, rewards: torch.Tensor, successes: torch.Tensor, valid: torch.Tensor, k: int = 1
) -> torch.Tensor:
    """Advantages [G, n] fp64 from `rewards` [G, n] and `successes` [G, n] (0/1); 0 where not `valid` [G, n].

    `k` is the k of pass@k (`pkpo`, `pass_at_k`) or the N of `confidence`; the others do not use it. Rewards
    and successes that are not valid may be anything, NaN included.

    Raises:
        KeyError: unknown name (a recipe's is checked when it is loaded).
        ValueError: shapes differ, k < 1.
    """
    if not rewards.shape == successes.shape == valid.shape or rewards.ndim != 2:
        raise ValueError(
            f"shapes {rewards.shape}, {successes.shape}, {valid.shape}: expected the same [G, n] for all"
        )
    if k < 1:
        raise ValueError(f"k = {k} must be at least 1")
    valid = valid.bool()
    r = torch.where(valid, rewards.double(), 0.0)
    s = torch.where(valid, successes.double(), 0.0)
    n = valid.sum(1, keepdim=True).double()
    found = ADVANTAGES[name](r if name in READ_REWARDS else s, valid.double(), n, k)
    return torch.where(valid & found.isfinite(), found, 0.0)


def _mean(r: torch.Tensor, valid: torch.Tensor, n: torch.Tensor, k: int) -> torch.Tensor:
    return r - r.sum(1, keepdim=True) / n


def _mean_std(r: torch.Tensor, valid: torch.Tensor, n: torch.Tensor, k: int) -> torch.Tensor:
    centred = _mean(r, valid, n, k) * valid
    std = (centred.square().sum(1, keepdim=True) / (n - 1)).sqrt()
    return centred / (std + SPREAD)


def _leave_one_out(r: torch.Tensor, valid: torch.Tensor, n: torch.Tensor, k: int) -> torch.Tensor:
    return r - (r.sum(1, keepdim=True) - r) / (n - 1)


def _pkpo(s: torch.Tensor, valid: torch.Tensor, n: torch.Tensor, k: int) -> torch.Tensor:
    c = s.sum(1, keepdim=True)
    return s * k * _ratio(n - c, n - 1, k - 1)


def _pass_at_k(s: torch.Tensor, valid: torch.Tensor, n: torch.Tensor, k: int) -> torch.Tensor:
    c = s.sum(1, keepdim=True)
    failing = _ratio(n - c, n, k)  # 1 - rho
    sigma = (failing * (1 - failing)).sqrt()
    wrong = failing - _ratio(n - c - 1, n - 1, k - 1)
    return torch.where(sigma > 0, torch.where(s > 0, failing, wrong) / sigma, 0.0)


def _confidence(s: torch.Tensor, valid: torch.Tensor, n: torch.Tensor, k: int) -> torch.Tensor:
    """F/p = N q^(N-1) / (1 - q^N) with q = 1 - p = (n-c)/n; expm1 because q^N may be near 1."""
    p = s.sum(1, keepdim=True) / n
    log_q = torch.log1p(-p)
    weight = k * torch.exp((k - 1) * log_q) / -torch.expm1(k * log_q)
    return torch.where(p > 0, weight * (s - p), 0.0)


def _maxrl(s: torch.Tensor, valid: torch.Tensor, n: torch.Tensor, k: int) -> torch.Tensor:
    p = s.sum(1, keepdim=True) / n
    return torch.where(p > 0, (s - p) / p, 0.0)


def _ratio(a: torch.Tensor, b: torch.Tensor, k: int) -> torch.Tensor:
    """C(a, k) / C(b, k) for integers a <= b: the product of (a - i)/(b - i); 0 if a < k, NaN if b < k."""
    found = torch.ones_like(a)
    for i in range(k):
        found = torch.where(a > i, found * (a - i) / (b - i), 0.0)
    return torch.where(b >= k, found, torch.nan)


ADVANTAGES: dict[str, Callable[..., torch.Tensor]] = {
    "mean": _mean,
    "mean_std": _mean_std,
    "leave_one_out": _leave_one_out,
    "pkpo": _pkpo,
    "pass_at_k": _pass_at_k,
    "confidence": _confidence,
    "maxrl": _maxrl,
}
"""Recipe name -> function. A new advantage is a function and a line here."""
