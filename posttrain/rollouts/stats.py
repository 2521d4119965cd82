"""What an RLVR run logs of its rollouts: means over the batches of a logging window; as stats.py, for the RLVR stage.

Every rank has seen all groups, so nothing is summed over ranks here. Left out: what the loss logs of itself (TRL).
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np

from posttrain.rewards.compose import summary
from posttrain.rollouts.batch import Judged
from posttrain.rollouts.draw import Drawn


def batch_metrics(drawn: Drawn, about: Judged) -> dict[str, float]:
    """One batch in numbers. Rewards, lengths and shares of groups are of everything sampled, also of what dynamic sampling
    set aside; `groups/zero_variance` is of what is trained on."""
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
        "groups/zero_variance": float((about.advantages == 0).all(1).double().mean()),
        "groups/sampled": float(len(sampled)),
        "groups/unfilled": float(drawn.unfilled),
        "checks_failed": sum(g.failed for g in graded) / len(graded),
        "completions/mean_length": float(np.mean(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/truncated": sum(c.finish == "length" for c in completions) / len(completions),
        "advantage_abs": float(about.advantages[about.trained].abs().mean()) if about.trained.any() else 0.0,
    }
    return found | {f"seconds/{what}": value for what, value in drawn.seconds.items()}


class RolloutStats:
    """Means over a window; `add` after each batch, `means` when a line is logged."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)
        self.tokens = 0
        self.since = time.perf_counter()

    def reset(self) -> None:
        self.values.clear()
        if self.tokens:  # else the time goes on until a batch falls into a window
            self.tokens, self.since = 0, time.perf_counter()

    def add(self, drawn: Drawn, about: Judged) -> None:
        for name, value in batch_metrics(drawn, about).items():
            self.values[name].append(value)
        self.tokens += sum(len(c.token_ids) for g in (*drawn.groups, *drawn.aside) for c in g.completions)

    def means(self) -> dict[str, float]:
        """Empty where no batch fell into the window. `tokens_per_second`: sampled tokens of all ranks, training included."""
        if not self.tokens:
            return {}
        seconds = max(time.perf_counter() - self.since, 1e-9)
        found = {name: float(np.mean(values)) for name, values in self.values.items()}
        if "completions/max_length" in found:
            found["completions/max_length"] = max(self.values["completions/max_length"])
        return found | {"tokens_per_second": self.tokens / seconds}


def mean_of_window(values: list[float]) -> float | None:
    """The mean of what is a number; None where nothing is."""
    real = [v for v in values if v == v]
    return float(np.mean(real)) if real else None
