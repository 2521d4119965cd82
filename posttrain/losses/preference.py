r"""Preference losses: one value a pair, from the log-probabilities of its two completions.

For a pair of completions of one prompt, c chosen and r rejected, with log-probabilities summed over tokens,

    x_c = log pi(c) - log ref(c),  x_r likewise,  |.| the number of tokens
    h = beta (x_c - x_r),  s = log sigmoid

    dpo        -s(h)                                                  arXiv 2305.18290 eq. 7
    dpo_norm   -s(beta (x_c/|c| - x_r/|r|))                           Tulu 3, arXiv 2411.15124 eq. 6
    ipo        (x_c/|c| - x_r/|r| - 1/(2 beta))^2                     arXiv 2310.12036 eq. 17; by length, as
                                                                      in the authors' experiments
    cdpo       -(1-e) s(h) - e s(-h)                                  Mitchell 2023; e: share of wrong labels
    robust     (-(1-e) s(h) + e s(-h)) / (1 - 2e)                     rDPO, arXiv 2403.00409 eq. 11
    wpo        w(c) w(r) (-s(h)),  w = exp(mean log pi), no gradient  arXiv 2406.11827 eq. 1
    simpo      -s(beta (log pi(c)/|c| - log pi(r)/|r|) - gamma)       arXiv 2405.14734 eq. 6
    orpo       -log pi(c)/|c| - beta s(o(c) - o(r))                   arXiv 2403.07691 eq. 6
               o = l - log(1 - exp l),  l = mean log pi
    kto        lambda_D (1 - sigmoid(beta (x - z)))  for a good completion,
               lambda_U (1 - sigmoid(beta (z - x)))  for a bad one    arXiv 2402.01306 eq. 8

Pure functions of fp32 tensors; the options are the recipe's `preference` section, whose beta must be set
(`with_beta`). Left out: how log-probabilities and the z of KTO are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.recipe.sections import Preference
from posttrain_kernels.family import value_and_weight

NO_REFERENCE = ("simpo", "orpo")
"""Losses without a reference model."""
PER_TOKEN = ("dpo_norm", "ipo")
"""Losses that divide the log-ratios by length."""
BETA = {"dpo_norm": 5.0, "simpo": 2.0}
"""Default beta of a loss (Tulu 3, table 20; SimPO, table 8); 0.1 for the others, as in the DPO paper."""


@dataclass(frozen=True)
class PairLogProbs:
    """Log-probabilities [B] of completions, summed over tokens, and their token counts [B]."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """log pi - log ref of chosen and rejected [B]. Raises ValueError if there is no reference."""
        if self.ref_chosen is None or self.ref_rejected is None:
            raise ValueError("this loss needs the reference's log-probabilities")
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    def means(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """`chosen`, `rejected` [B] divided by their number of tokens (at least 1)."""
        return chosen / self.chosen_tokens.clamp_min(1), rejected / self.rejected_tokens.clamp_min(1)


def _dpo(pairs: PairLogProbs, o: Preference) -> Tensor:
    chosen, rejected = pairs.ratios
    return -F.logsigmoid(o.beta * (chosen - rejected))


def _dpo_norm(pairs: PairLogProbs, o: Preference) -> Tensor:
    chosen, rejected = pairs.means(*pairs.ratios)
    return -F.logsigmoid(o.beta * (chosen - rejected))


def _ipo(pairs: PairLogProbs, o: Preference) -> Tensor:
    chosen, rejected = pairs.means(*pairs.ratios)
    return (chosen - rejected - 1 / (2 * o.beta)).square()


def _smoothed(pairs: PairLogProbs, o: Preference) -> tuple[Tensor, Tensor]:
    """Losses of the label and of its opposite, each weighted with the probability that it is right."""
    chosen, rejected = pairs.ratios
    h = o.beta * (chosen - rejected)
    return -(1 - o.label_smoothing) * F.logsigmoid(h), -o.label_smoothing * F.logsigmoid(-h)


def _cdpo(pairs: PairLogProbs, o: Preference) -> Tensor:
    label, opposite = _smoothed(pairs, o)
    return label + opposite


def _robust(pairs: PairLogProbs, o: Preference) -> Tensor:
    label, opposite = _smoothed(pairs, o)
    return (label - opposite) / (1 - 2 * o.label_smoothing)


def _wpo(pairs: PairLogProbs, o: Preference) -> Tensor:
    chosen, rejected = pairs.means(pairs.chosen, pairs.rejected)
    return (chosen + rejected).detach().exp() * _dpo(pairs, o)


def _simpo(pairs: PairLogProbs, o: Preference) -> Tensor:
    chosen, rejected = pairs.means(pairs.chosen, pairs.rejected)
    return -F.logsigmoid(o.beta * (chosen - rejected) - o.gamma)


def _orpo(pairs: PairLogProbs, o: Preference) -> Tensor:
    chosen, rejected = pairs.means(pairs.chosen, pairs.rejected)
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - o.beta * F.logsigmoid(odds)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp x) for x <= 0, in the form that is accurate on each side of -log 2; finite at x = 0."""
    x = x.clamp_max(-torch.finfo(x.dtype).tiny)
    near = x > -0.6931471805599453
    # each branch gets only arguments at which it is accurate, so that neither puts a NaN into the gradient
    close = torch.log(-torch.expm1(torch.where(near, x, -0.5)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


def kto(
    log_probs: Tensor, ref_log_probs: Tensor, desirable: Tensor, z: Tensor | float, o: Preference
) -> Tensor:
    """The KTO loss of each completion [B]. `desirable` [B] is the label; `z` >= 0 the detached KL estimate.

    `log_probs`, `ref_log_probs` [B] are summed over tokens. In the paper z is the batch mean of log pi - log
    ref for prompts paired with the replies to other prompts.
    """
    h = o.beta * (log_probs - ref_log_probs - z)
    return torch.where(
        desirable.bool(),
        o.desirable_weight * _failing(h),
        o.undesirable_weight * _failing(-h),
    )


def _failing(h: Tensor) -> Tensor:
    """1 - sigmoid(h), its value and its gradient to fp32 precision in both tails.

    The difference is 0 in fp32 from h = 17 on, and the gradient of a sigmoid, s (1 - s), where s rounds to 1.
    """
    return F.logsigmoid(-h).exp()


def implicit_rewards(name: str, pairs: PairLogProbs, o: Preference) -> tuple[Tensor, Tensor]:
    """Implicit rewards of chosen and rejected [B] under loss `name`, detached; it increases their margin."""
    if name in NO_REFERENCE:
        both = pairs.means(pairs.chosen, pairs.rejected)
    else:
        both = pairs.means(*pairs.ratios) if name in PER_TOKEN else pairs.ratios
    return o.beta * both[0].detach(), o.beta * both[1].detach()


def supervised(pairs: PairLogProbs, n: float = 1.0) -> tuple[Tensor, Tensor]:
    """L_N(log pi(c)) / |c| [B], the confidence-limited loss of the chosen side, and its weight F [B].

    N = 1 is the mean cross-entropy a token, which RPO adds (arXiv 2404.19733 eq. 1).
    """
    value, weight = value_and_weight(pairs.chosen, n)
    # the value of L_N with the gradient -F, which the family has in closed form
    loss = value - weight * (pairs.chosen - pairs.chosen.detach())
    return loss / pairs.chosen_tokens.clamp_min(1), weight


LOSSES: dict[str, Callable[[PairLogProbs, Preference], Tensor]] = {
    "dpo": _dpo,
    "dpo_norm": _dpo_norm,
    "ipo": _ipo,
    "cdpo": _cdpo,
    "robust": _robust,
    "wpo": _wpo,
    "simpo": _simpo,
    "orpo": _orpo,
}
"""Recipe name -> loss of each pair [B]. A new paired loss is a function and a line here; KTO has no pairs."""


def with_beta(given: Preference) -> Preference:
    """`given` with the default beta of its loss if it has none."""
    return replace(given, beta=BETA.get(given.loss, 0.1)) if given.beta is None else given
