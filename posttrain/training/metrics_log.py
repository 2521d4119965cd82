"""`MetricsLog`, a mixin of `RunTrainer`: the lines of metrics.jsonl, their windows, and held-out passes.

A window, what is measured between two lines, is saved in checkpoint.json and goes on when a run is resumed,
so that the file reads like that of an uninterrupted run. Left out: what a stage measures (metrics.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

from transformers import Trainer

from posttrain.base.files import append_jsonl
from posttrain.base.stop import Stopped
from posttrain.training.hardware import memory_mib
from posttrain.training.optimizers import to_evaluation_point


class MetricsLog:
    """Needs from the trainer: run, facts, guard, spent, reduce, untimed, inference, _window_losses."""

    heldout_metrics: Callable[[], dict[str, float]]
    """Means over the held-out rows; collective. Defined by stages that have such rows."""
    stats: dict[str, Any]
    """The windows of what is logged, by "train" and "heldout"; set by the stage."""

    def extra_metrics(self, mode: str) -> dict[str, float]:
        """What the stage adds to a log line. Collective. Overridden by stages."""
        return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the stage's means, writes metrics.jsonl, then lets the integrations log."""
        if "loss" in logs:
            # not the library's, which knows only the steps since this process began
            losses, self._window_losses = self._window_losses, []
            logs = {**logs, "loss": fmean(losses) if losses else math.nan}
            logs = {**logs, **self.extra_metrics("train"), **self.spent.total(self.reduce)}
            logs |= memory_mib(self.args.device)
            if self.guard.skipped:
                logs["skipped_steps"] = self.guard.skipped
            self._write_metrics("train", logs)
        elif any(key.startswith("eval_") for key in logs):
            self._write_metrics("heldout", {k.removeprefix("eval_"): v for k, v in logs.items()})
        # skips TRL's own `log`, which averages metrics that this trainer does not collect
        self._base_log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """The stage's held-out metrics, over all held-out rows and ranks, logged as `<prefix>_<name>`."""
        with self.untimed(), self.inference():
            to_evaluation_point(self.optimizer)
            self.stats["heldout"].reset()
            try:
                metrics = self.heldout_metrics()
            except Stopped:  # measured when the run is resumed
                self.stop_agreed = True
                self.control.should_save = self.control.should_training_stop = True
                return {}
        return self.log_heldout(metrics, metric_key_prefix)

    def log_heldout(self, metrics: dict[str, float], prefix: str) -> dict[str, float]:
        """Logs the means of a held-out pass as `<prefix>_<name>`, without the shares of sources; returns
        them."""
        logged = {f"{prefix}_{k}": v for k, v in metrics.items() if not k.startswith("share/")}
        self.log(logged)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def _base_log(self, logs: dict[str, float], start_time: float | None) -> None:
        Trainer.log(self, logs, start_time)

    def _write_metrics(self, split: str, values: dict[str, float]) -> None:
        if not self.is_world_process_zero():
            return
        row = {"step": self.state.global_step, "split": split, "time": round(time.time(), 3)}
        row |= {k: _json_number(v) for k, v in values.items() if isinstance(v, int | float)}
        row["epoch"] = self.epoch()
        append_jsonl(self.run.metrics, row)

    def window(self) -> dict[str, Any]:
        """What was measured since the last log line, for checkpoint.json. Collective. Overridden by stages
        whose windows are not sums over ranks."""
        return {"losses": self._window_losses, "stats": self.stats["train"].state(self.reduce)}

    def load_window(self, window: dict[str, Any]) -> None:
        """Goes on with `window`, so that the next line is that of an uninterrupted run. Overridden as
        `window`."""
        self._window_losses = list(window["losses"])
        if self.is_world_process_zero():
            self.stats["train"].load(window["stats"])

    def resume_from(self, facts: dict[str, Any]) -> None:
        """Restores what the trainer keeps in checkpoint.json. Extended by stages."""
        if "window" in facts:  # an earlier version did not save it
            self.load_window(facts["window"])
        self.spent.load(facts, self.is_world_process_zero())

    def epoch(self) -> float:
        """Passes over the mixture so far."""
        seen = self.state.global_step * self.facts["global_batch_size"]
        return seen / max(self.facts["examples_per_epoch"], 1)


def _json_number(value: float) -> float | str:
    """NaN and infinity are not JSON; they are kept as text."""
    return value if math.isfinite(value) else str(value)
