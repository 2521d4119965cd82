"""Watches every optimizer step for NaN, infinity and loss spikes, before the weights change.

The decision depends on the loss averaged over ranks and on the gradient norm, so that all ranks make the same
one. A skipped step leaves weights and optimizer state unchanged (its gradients are dropped); the
learning-rate schedule advances.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any, Literal

from posttrain.errors import WorkError
from posttrain.recipe.sections import Guard

Decision = Literal["go", "skip", "stop"]


class StepGuard:
    """State machine of the guard; pure, no torch. `state()`/`load()` let a resumed run decide as the
    uninterrupted one."""

    def __init__(self, config: Guard) -> None:
        self.config = config
        self.recent: deque[float] = deque(maxlen=config.window)
        self.skipped = 0
        self.reason = ""

    def decide(self, loss: float, grad_norm: float | None) -> Decision:
        """What to do with a step of global `loss` and gradient norm (None where unknown)."""
        bad = not math.isfinite(loss) or (grad_norm is not None and not math.isfinite(grad_norm))
        action: str = "ignore"
        if bad:
            norm = "" if grad_norm is None else f", gradient norm {grad_norm:g}"
            self.reason, action = f"loss {loss:g}{norm}", self.config.on_nan
        elif self.config.on_spike != "ignore" and len(self.recent) == self.config.window:
            usual = statistics.median(self.recent)
            if 0 < self.config.spike_factor * usual < loss:
                times = f"{loss / usual:.1f} times the median of the last {self.config.window} steps"
                self.reason = f"loss {loss:g} is {times}"
                action = self.config.on_spike
        if action == "ignore":
            self.recent.append(loss)
            return "go"
        if action == "skip":
            self.skipped += 1
            if self.skipped > self.config.max_skips:
                self.reason += f"; {self.skipped} steps skipped, guard.max_skips is {self.config.max_skips}"
                return "stop"
            return "skip"
        return "stop"

    def state(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        self.recent.extend(state.get("recent", ()))
        self.skipped = state.get("skipped", 0)


class Diverged(WorkError):
    """The guard stopped the run."""
