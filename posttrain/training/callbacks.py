"""When a run saves, measures the held-out loss, scores, checks gates, rotates checkpoints and shows progress.

Scoring is a callable passed in (`Scorer`), so that training never imports evaluation. A failed evaluation is
recorded and does not end the run; only a gate with `action: stop` does. A run whose checkpoints could none be
scored has failed, once it has trained to its end.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from posttrain.base.files import read_jsonl
from posttrain.base.progress import ProgressBars
from posttrain.base.stop import Stopped
from posttrain.errors import PosttrainError, WorkError
from posttrain.recipe.schema import Checkpoints, Evaluate
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.scores import CannotTell, ScoreStore, first_line
from posttrain.training.gates import enforce
from posttrain.training.trainer import RunTrainer

log = logging.getLogger(__name__)

SHOWN = {"weight_mean": "F", "reward": "reward", "rewards/accuracies": "accuracy"}
"""Shown in progress lines next to loss and speed, if logged."""
Scorer = Callable[[Path, int], None]
"""`score(checkpoint folder, step)`: called on all ranks once a checkpoint is complete; returns when all are
done."""


class NotScored(WorkError):
    """The run has trained to its end, but there is a task that no checkpoint was scored on."""


class FlowCallback(TrainerCallback):
    """Decides when to save, to measure the held-out loss, to guard and to stop."""

    def __init__(
        self, trainer: RunTrainer, *, rhythm: int, save_steps: int | None, heldout_steps: int | None
    ) -> None:
        """`rhythm`: steps per batch of rollouts (`recipe.plan.rhythm`); `save_steps` is a multiple of it.
        None: never."""
        self.trainer, self.rhythm = trainer, rhythm
        self.save_steps, self.every = save_steps, heldout_steps

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.stop.can_save = True  # until here, a signal ends a run that is resumed as it was
        state.logging_steps = args.logging_steps  # not those of the checkpoint: they may change
        self.trainer.stats["train"].since = time.perf_counter()  # loading is not training time
        if self.lacks_heldout(state.global_step, state.max_steps):
            self.trainer.evaluate()
            if self.trainer.stop_agreed:  # before another step is trained, which would leave it behind
                raise Stopped(f"stopped; {ckpt.how_to_resume(self.trainer.run.checkpoints)}")

    def lacks_heldout(self, step: int, steps: int) -> bool:
        """Whether the held-out loss after `step` of `steps` is due and not in metrics.jsonl: its pass was
        abandoned when the run was asked to stop. Collective."""
        if self.every is None or step == 0 or (step % self.every and step < steps):
            return False
        return not self.trainer.on_any_rank(self.trainer.is_world_process_zero() and self._has_heldout(step))

    def _has_heldout(self, step: int) -> bool:
        """Whether metrics.jsonl has the line, or has damaged lines, which have been said."""
        try:
            rows = read_jsonl(self.trainer.run.metrics)
        except WorkError:
            return True
        mine = [r for r in rows if isinstance(r, dict) and r.get("split") == "heldout"]
        return any(row.get("step") == step for row in mine)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.check_step()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.write_samples()
        step, save = state.global_step, self.save_steps
        # Between two batches of rollouts only: a checkpoint holds none.
        whole = step % self.rhythm == 0
        last = step >= state.max_steps or (self.trainer.stop_agreed and whole)
        control.should_save = last or (save is not None and step % save == 0)
        end = step >= state.max_steps
        # The last window may be partial. One of a run that is stopped goes on when it is resumed.
        control.should_log = control.should_log or (end and args.logging_strategy != "no")
        control.should_evaluate = self.every is not None and (step % self.every == 0 or end)
        control.should_training_stop = control.should_training_stop or last
        return control


class ScoreCallback(TrainerCallback):
    """Scores each checkpoint as it is saved, checks the gates, then rotates."""

    def __init__(
        self, trainer: RunTrainer, evaluate: Evaluate, checkpoints: Checkpoints, score: Scorer | None
    ) -> None:
        self.trainer, self.evaluate, self.checkpoints, self.score = trainer, evaluate, checkpoints, score
        self.passed = ""
        self.abandoned = False
        """Whether a checkpoint was not scored, or not to the end, because a rank was asked to stop."""

    def on_train_begin(self, args, state, control, **kwargs):
        with self.trainer.untimed():
            self._begin(state)
        if self.trainer.on_any_rank(self.trainer.stop.requested):  # before a step is trained for nothing
            raise Stopped(f"stopped; {ckpt.how_to_resume(self.trainer.run.checkpoints)}")

    def _begin(self, state) -> None:
        if state.global_step == 0 and self.score is not None and self.evaluate.at_start:
            self.trainer._save_checkpoint(self.trainer.model_wrapped, resumable=False)
        self.catch_up()

    def on_save(self, args, state, control, **kwargs):
        with self.trainer.untimed():
            name = ckpt.name_of(state.global_step)
            self._score(self.trainer.run.checkpoints / name, state.global_step)
            self._check_and_rotate(name)
            self._end_if_asked(state)

    def catch_up(self) -> None:
        """What a kill or a failure left undone: scores the checkpoints that lack a score, checks the gates,
        rotates. Collective: of file systems that show each rank something else, one rank decides."""
        main = self.trainer.is_world_process_zero()
        whole = self.trainer.gather(ckpt.all_complete(self.trainer.run.checkpoints) if main else None)[0]
        for checkpoint in whole:
            self._score(checkpoint.path, checkpoint.step)
            if self.score is not None and self.trainer.on_any_rank(self.abandoned):
                break  # together: a rank that goes on to the next one would wait for the others
        self._end_if_asked(self.trainer.state)
        self._check_and_rotate(whole[-1].name if whole else None)

    def conclude(self) -> None:
        """Warns, at the end of a run, of checkpoints that were not scored. Collective.

        Raises:
            NotScored: there is a task that none was scored on; on every rank.
        """
        why = self.trainer.gather(self._conclusion() if self.trainer.is_world_process_zero() else "")[0]
        if why:
            raise NotScored(why)

    def _conclusion(self) -> str:
        """Why the run has failed although it has trained to its end, or empty."""
        store = ScoreStore(self.trainer.run.path)
        try:
            measured = {row["task"] for row in store.rows()}
        except WorkError as error:
            return str(error)
        tasks = {task.name for task in self.evaluate.tasks}
        kept = {c.name for c in ckpt.all_complete(self.trainer.run.checkpoints)}
        failed = [u for u in store.failures() if u.task in tasks and u.checkpoint in kept]
        never = [u for u in failed if u.task not in measured]
        if not never:
            for u in failed:
                log.warning("%s; run the same command to try again", u)
            return ""
        last = never[-1]
        more = f"; {len(never) - 1} more failed" if len(never) > 1 else ""
        return (
            f"trained to the end; scoring of {last.checkpoint} on {last.task} failed: {last.reason}{more}. "
            "Run the same command to try again"
        )

    def _end_if_asked(self, state) -> None:
        """Collective. Raises `Stopped` on every rank where one was asked to stop while checkpoints were
        scored; those without a score are scored when the run is resumed."""
        if self.score is None:
            return
        trainer, step = self.trainer, state.global_step
        abandoned = trainer.on_any_rank(self.abandoned)
        if abandoned or (trainer.on_any_rank(trainer.stop.requested) and step < state.max_steps):
            what = f" after step {step} of {state.max_steps}" if step else " while checkpoints were scored"
            raise Stopped(f"stopped{what}; {ckpt.how_to_resume(trainer.run.checkpoints)}")

    def _score(self, path: Path, step: int) -> None:
        """Collective. Not begun where a rank was asked to stop: launchers and schedulers wait for seconds,
        and the run scores the checkpoint when it is resumed."""
        if self.score is None:
            return
        if self.trainer.on_any_rank(self.trainer.stop.requested):
            self.abandoned = True
            return
        try:
            self.score(path, step)
        except Stopped:
            self.abandoned = True
        except CannotTell:
            raise
        except Exception as error:  # a failed evaluation does not end training
            unknown = not isinstance(error, PosttrainError)
            log.error("scoring %s failed: %s", path.name, first_line(error), exc_info=unknown)
            if self.trainer.is_world_process_zero():
                failures = {task.name: first_line(error) for task in self.evaluate.tasks}
                with contextlib.suppress(WorkError):  # a full disk: what failed is logged
                    ScoreStore(self.trainer.run.path).record_failures(path.name, failures)

    def _check_and_rotate(self, newest: str | None) -> None:
        self.check_gates(newest)
        if self.trainer.is_world_process_zero():
            self.rotate()
        self.trainer.accelerator.wait_for_everyone()

    def check_gates(self, newest: str | None) -> None:
        """Compares the scores with the gates, `newest` being the last checkpoint; called on all ranks.

        Raises:
            GateFailed: the run must stop; on every rank.
        """
        main = self.trainer.is_world_process_zero()
        self.passed = enforce(self.trainer.run.path, self.evaluate.gates, newest, main)

    def rotate(self) -> None:
        """Deletes checkpoints by the rule; none where the best is not known, because scores.jsonl is
        damaged."""
        rule, run = self.checkpoints, self.trainer.run
        keep = {self.passed}  # with gates, one that passed is always kept
        if rule.keep_best is not None:
            by = rule.keep_best
            there = {c.name for c in ckpt.all_complete(run.checkpoints)}
            try:
                keep |= {ckpt.best(run.path, by.task, by.metric, by.greater_is_better, there) or ""}
            except WorkError as error:
                log.error("no checkpoint is deleted: %s", error)
                return
        ckpt.rotate(run.checkpoints, rule.keep_last, keep)


class ConsoleCallback(TrainerCallback):
    """A progress bar on a terminal, one short line for each log otherwise. Main process only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bars: ProgressBars | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bars = ProgressBars("step", main=state.is_world_process_zero, line_seconds=None)
        self.bars.add(self.name, state.max_steps, state.global_step)
        self.bars.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.bars.update(self.name, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bars is None or not logs or "loss" not in logs:
            return
        parts = [f"loss {logs['loss']:.4g}"]
        for key, name in SHOWN.items():
            if key in logs:
                parts.append(f"{name} {logs[key]:.3f}")
        if "tokens_per_second" in logs:
            parts.append(f"{logs['tokens_per_second']:,.0f} tok/s")
        self.bars.update(self.name, state.global_step, note="  ".join(parts), print_line=True)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Stop drawing."""
        if self.bars is not None:
            self.bars.close()
