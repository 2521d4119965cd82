"""Metrics of an RLVR run's rollouts: means over the batches of a logging window; and too many failed checks.

Every rank has all groups, so nothing is summed over ranks. Left out: how far the sampler is from the policy
(`mismatch.py`); metrics of the loss (TRL's) and of the other stages (training/metrics.py).
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.rewards.compose import summary
from posttrain.rollouts.batch import BatchAdvantages
from posttrain.rollouts.draw import Drawn
from posttrain.rollouts.groups import too_many_failed

log = logging.getLogger(__name__)
WARN_ABOVE = 0.01
"""A share of failed checks above this is logged as a warning."""
LARGEST = ("completions/max_length", "sampler/logp_diff_max")
"""Metrics of which a window has the maximum."""


def batch_metrics(drawn: Drawn, scored: BatchAdvantages) -> dict[str, float]:
    """The metrics of one batch.

    Rewards, lengths and shares of groups include groups set aside by dynamic sampling; `groups/zero_variance`
    and `advantage_abs` are of the groups trained on.
    """
    sampled = [*drawn.groups, *drawn.aside]
    graded = [g for group in sampled for g in group.graded]
    completions = [c for group in sampled for c in group.completions]
    lengths = [len(c.token_ids) for c in completions]
    known = [group.successes for group in sampled if group.successes]
    spread = [np.std(v) for group in sampled if (v := [g.value for g in group.graded if g.value is not None])]
    found = summary(graded) | {
        "reward_std": float(np.mean(spread)) if spread else 0.0,
        "groups/all_right": sum(all(s) for s in known) / len(sampled),
        "groups/all_wrong": sum(not any(s) for s in known) / len(sampled),
        "groups/zero_variance": float((scored.advantages == 0).all(1).double().mean()),
        "groups/sampled": float(len(sampled)),
        "groups/unfilled": float(drawn.unfilled),
        "checks_failed": sum(g.failed for g in graded) / len(graded),
        "completions/mean_length": float(np.mean(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/truncated": sum(c.finish == "length" for c in completions) / len(completions),
        "advantage_abs": float(scored.advantages[scored.trained].abs().mean())
        if scored.trained.any()
        else 0.0,
    }
    return found | {f"seconds/{what}": value for what, value in drawn.seconds.items()}


def why_stopped(drawn: Drawn, step: int, most: float) -> str | None:
    """Why the run stops, where a share above `most` of the checks failed; a smaller one is logged as a
    warning."""
    graded = [g for group in (*drawn.groups, *drawn.aside) for g in group.graded]
    failed = [g for g in graded if g.failed]
    share = len(failed) / len(graded)
    if share <= min(WARN_ABOVE, most):
        return None
    reasons = Counter(
        f"{label}: {v.status}" + (f" ({v.reason})" if v.reason else "")
        for g in failed
        for label, v in g.components.items()
        if v.value is None
    )
    what = f"failed ({share:.0%}), most often {reasons.most_common(1)[0][0]}"
    stop = too_many_failed(len(failed), len(graded), most, what)
    if stop is None:
        log.warning("step %d: %d of %d checks %s; they are left out", step, len(failed), len(graded), what)
    return stop


class RolloutStats:
    """Means over a logging window: `add` after each batch, `means` when a line is logged, then `reset`.

    `sources` are the names whose shares are logged where there are several: `share/<source>` of the prompts
    that were drawn, groups set aside included, which follows the mixture; and `trained_share/<source>` of the
    groups with a gradient, in which a trained completion has an advantage other than 0. The second leaves the
    mixture where a source is easier or harder than the others: without `rollout.refill` its groups without
    variance take part in the batch but teach nothing, with it groups of other sources replace them.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self.sources = sources
        self.values: dict[str, list[float]] = defaultdict(list)
        self.drawn: Counter[str] = Counter()
        self.teaching: Counter[str] = Counter()
        self.tokens = 0
        self.since = time.perf_counter()

    def reset(self) -> None:
        self.values.clear()
        self.drawn.clear()
        self.teaching.clear()
        if self.tokens:  # else the window is extended until it contains a batch
            self.tokens, self.since = 0, time.perf_counter()

    def add(self, drawn: Drawn, scored: BatchAdvantages, more: Mapping[str, float] | None = None) -> None:
        """`more`: further metrics of the batch."""
        for name, value in (batch_metrics(drawn, scored) | dict(more or {})).items():
            self.values[name].append(value)
        self.drawn.update(group.prompt.source for group in (*drawn.groups, *drawn.aside))
        gradient = (scored.trained & (scored.advantages != 0)).any(1).tolist()
        self.teaching.update(g.prompt.source for g, any_ in zip(drawn.groups, gradient, strict=True) if any_)
        self.tokens += sum(len(c.token_ids) for g in (*drawn.groups, *drawn.aside) for c in g.completions)

    def means(self) -> dict[str, float]:
        """Empty without a batch in the window. `tokens_per_second`: sampled tokens of all ranks over the time
        of the window, optimizer steps included.
        """
        if not self.values:
            return {}
        seconds = max(time.perf_counter() - self.since, 1e-9)
        found = {name: float(np.mean(values)) for name, values in self.values.items()}
        found |= {name: max(self.values[name]) for name in LARGEST if name in found}
        if len(self.sources) > 1:
            found |= self._shares("share", self.drawn) | self._shares("trained_share", self.teaching)
        return found | ({"tokens_per_second": self.tokens / seconds} if self.tokens else {})

    def state(self) -> dict[str, dict[str, Any]]:
        """The window, for a checkpoint; not its speed."""
        return {
            "values": {name: list(values) for name, values in self.values.items()},
            "drawn": dict(self.drawn),
            "teaching": dict(self.teaching),
        }

    def load(self, state: dict[str, dict[str, Any]]) -> None:
        """Goes on with the window of `state`."""
        for name, values in state.get("values", {}).items():
            self.values[name] += [np.nan if value is None else value for value in values]
        self.drawn.update(state.get("drawn", {}))
        self.teaching.update(state.get("teaching", {}))

    def _shares(self, name: str, counts: Counter[str]) -> dict[str, float]:
        """Empty where nothing was counted."""
        total = counts.total()
        return {f"{name}/{source}": counts[source] / total for source in self.sources if total}


def mean_of_window(values: list[float]) -> float | None:
    """The mean without NaN; None if there is no other value."""
    real = [v for v in values if v == v]
    return float(np.mean(real)) if real else None
