"""`RunTrainer`: what posttrain adds to any of TRL's trainers, as a mixin in front of it.

Rows come in the mixture's order; checkpoints are written under a temporary name and renamed; every log line
goes to metrics.jsonl; every optimizer step passes the guard; Ctrl-C and SIGTERM end with a checkpoint. The
loss is defined by the stage (`sft.py`). Left out: hyperparameter search, hub pushes, `auto_find_batch_size`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from posttrain.base.files import append_jsonl
from posttrain.base.stop import Stopped, leave_signals_to_parent
from posttrain.errors import RequestError
from posttrain.rundir.checkpoints import how_to_resume, last_resumable
from posttrain.training.engines import fsdp_asked, name_own_layers, refuse_pretence
from posttrain.training.guard import Diverged
from posttrain.training.launcher import keep_precision, refuse_deepspeed
from posttrain.training.metrics_log import MetricsLog
from posttrain.training.parts import Parts
from posttrain.training.saving import CheckpointWriter
from posttrain.training.spent import Spent, parameters

log = logging.getLogger(__name__)


class RunTrainer(MetricsLog, CheckpointWriter):
    """Mixin; call `setup_run` right after `__init__`."""

    loss_is_scaled_for_ga = True  # our losses are divided by the count of the whole optimizer step

    def _send_telemetry(self) -> None:
        """TRL would report usage from here; nothing leaves the machine unless the recipe asks for it."""

    def setup_run(self, parts: Parts, rows: Dataset, log_samples: bool = False) -> None:
        """`rows` is the run's whole sequence of examples."""
        self.run, self.stop, self.facts = parts.run, parts.stop, parts.facts
        self.guard = guard = parts.guard
        self.train_dataset = rows
        self.log_samples = log_samples
        self._step_loss = torch.zeros((), dtype=torch.float64, device=self.args.device)
        self._step_ids: list[list[int]] = []
        self._window_losses: list[float] = []
        self.spent = Spent(self.args.device)
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        skips = "skip" in (guard.config.on_nan, guard.config.on_spike)
        if skips and (plugin is not None or self.args.fp16):
            what = (
                "DeepSpeed steps inside backward" if plugin is not None else "the fp16 scaler skips by itself"
            )
            raise RequestError(f"guard.on_nan and guard.on_spike cannot be skip here ({what}); use stop")
        refuse_pretence(self.accelerator)
        if fsdp_asked():
            name_own_layers(self.model)
        if plugin is not None:
            refuse_deepspeed(plugin.deepspeed_config, self.args)

    def create_accelerator_and_postprocess(self) -> None:
        """Sets FSDP2's precision before any model is prepared: a reference is, before the policy."""
        super().create_accelerator_and_postprocess()
        keep_precision(self.accelerator, self.args.bf16)

    # ---- order of rows -------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Positions 0, 1, 2, ... in micro-batches dealt to the ranks in turn: step k has the same rows
        whatever the number of ranks."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            sampler=SequentialSampler(self.train_dataset),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and not self.args.use_cpu,
            drop_last=True,
            worker_init_fn=leave_signals_to_parent,
        )
        return self.accelerator.prepare(loader)

    def dealt(
        self, rows: Sequence[Callable[[], Any]], collate: Callable[[Any], Any] | None = None
    ) -> Iterator[tuple[bool, dict[str, Any]]]:
        """`rows` (each a call that reads one) in micro-batches, dealt to the ranks in turn, ready for the
        model.

        Yields (True, batch), or (False, a batch once more) where a rank has none left: all ranks run the same
        number of forwards, because ZeRO-3 gathers in each. Raises `Stopped` on every rank where one was asked
        to stop.
        """
        micro, world = self.args.per_device_eval_batch_size, self.args.world_size
        starts = range(0, len(rows), micro)
        for turn in range(-(-len(starts) // world)):
            self.check_stop()
            index = turn * world + self.args.process_index
            real = index < len(starts)
            start = starts[index] if real else 0
            batch = (collate or self.data_collator)([read() for read in rows[start : start + micro]])
            yield real, self._prepare_inputs(batch)

    def check_stop(self) -> None:
        """Raises `Stopped` on every rank where one was asked to stop. Collective."""
        if self.on_any_rank(self.stop.requested):
            raise Stopped(f"stopped by a signal; {how_to_resume(self.run.checkpoints)}")

    # ---- one optimizer step --------------------------------------------------------------------------------

    def _prepare_input(self, data):
        """Keeps the floats of a batch as they are.

        Under DeepSpeed the library casts them to the engine's precision; ours are log-probabilities and
        success rates, which bf16 would round by up to a nat.
        """
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.log_samples:
            self._step_ids += inputs["example_ids"].tolist()
        self.spent.add(self.cost(inputs))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss += loss.double()
        return loss

    def cost(self, inputs: Any) -> dict[str, Any]:
        """What training on the micro-batch `inputs` adds to `spent`: keys of `spent.NAMES`, and others.
        Overridden by stages whose batches do not say it."""
        return inputs

    def parameters(self) -> dict[str, int] | None:
        """For run.json: `spent.parameters` of the model, and `reference` where one runs. Before the engine
        shards the model. Extended by stages."""
        return parameters(self.model)

    def check_step(self) -> None:
        """Before the weights change: combines loss and stop requests over the ranks, then lets the step
        proceed, skips it or stops.

        The only place in a step that waits for the device, once for the loss, the requests and the norm.
        """
        asked = torch.full_like(self._step_loss, float(self.stop.requested))  # filled, not copied
        values = self.reduce(torch.stack([self._step_loss, asked]))
        self._step_loss.zero_()
        norm = self._last_norm
        if isinstance(norm, torch.Tensor):
            values = torch.cat([values, norm.detach().to(values).reshape(1)])
        loss, asked, *norms = values.tolist()
        norm = norms[0] if norms else norm
        loss /= self.args.world_size
        if math.isfinite(loss):  # the library leaves others out of the mean, too
            self._window_losses.append(loss)
        decision = self.guard.decide(loss, norm if not self.args.fp16 else None)
        if decision == "stop":
            last = last_resumable(self.run.checkpoints)
            kept = f"{last} is not affected; lower" if last else "There is no checkpoint yet; lower"
            raise Diverged(
                f"stopped before step {self.state.global_step + 1}: {self.guard.reason}. {kept} "
                "train.learning_rate, or set guard.on_nan or guard.on_spike to skip"
            )
        if decision == "skip":
            log.warning("step %d skipped: %s", self.state.global_step + 1, self.guard.reason)
            self.model.zero_grad(set_to_none=True)  # optimizers ignore parameters without a gradient
        if asked:
            self.stop_agreed = True  # `FlowCallback.on_step_end` decides when to stop

    stop_agreed = False
    _last_norm: torch.Tensor | float | None = None

    def _get_grad_norm(self, model, grad_norm=None):
        """As in the library; kept for `check_step`."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()  # collective: under FSDP2 each rank holds a part of it
        self._last_norm = norm
        return norm

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Time in here does not count in tokens per second."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stats["train"].since += time.perf_counter() - begun

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """The model in eval mode and without gradient, and so without recomputed activations."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def floating_point_ops(self, inputs) -> int:
        """Not used here, and transformers would count all parameters on every micro-batch for it."""
        return 0

    def store_flos(self) -> None:
        """Nothing to store, and no collective to wait for."""

    def create_optimizer(self, *args, **kwargs):
        with _as_request("train.optim"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs):
        with _as_request("train.lr_scheduler_type"):
            return super().create_scheduler(*args, **kwargs)

    def write_samples(self) -> None:
        """Writes the row ids of the optimizer step that just ended."""
        if self.log_samples:
            line = {"step": self.state.global_step, "rank": self.args.process_index, "ids": self._step_ids}
            append_jsonl(self.run.path / "samples.jsonl", line)
            self._step_ids = []

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks (a copy)."""
        values = values.clone()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values)
        return values

    def on_any_rank(self, flag: bool) -> bool:
        """Whether `flag` is set on some rank. Collective."""
        return self.reduce(torch.full((), float(flag), device=self.args.device)).item() > 0

    def gather(self, value: Any) -> list[Any]:
        """`value` (anything that can be pickled) of every rank, in rank order. Collective."""
        if self.args.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.args.world_size
        dist.all_gather_object(parts, value)
        return parts


@contextlib.contextmanager
def _as_request(key: str) -> Iterator[None]:
    """Turns what the library refuses (a missing package, settings that do not fit) into a `RequestError`."""
    try:
        yield
    except (ImportError, ValueError, TypeError) as error:
        raise RequestError(f"{key}: {str(error).splitlines()[0]}") from error
