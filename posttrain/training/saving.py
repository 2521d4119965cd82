"""`CheckpointWriter`, a mixin of `RunTrainer`: writes checkpoints completely or not at all, on every rank;
reads them.

The format on disk is described in rundir/checkpoints.py. Left out: sharded weights; under ZeRO-3 they are
gathered, so that `from_pretrained` loads what was saved.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors import SafetensorError
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from posttrain.base.disk import no_space, why_unwritten
from posttrain.errors import WorkError
from posttrain.models.generation_config import with_generation_config
from posttrain.models.saved_weights import refuse_other_weights, second_names, take_up_weights
from posttrain.models.sharded_weights import MODEL, refuse_other_fsdp, refuse_other_zero
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.proof import Damaged
from posttrain.training.engines import engine
from posttrain.training.optimizers import is_stateless, loaded_as_saved, to_evaluation_point

log = logging.getLogger(__name__)
WRITING = (OSError, RuntimeError, SafetensorError, WorkError)
"""What is raised where a file cannot be written."""


class CheckpointWriter:
    """Needs from the trainer: run, facts, guard, window, spent, reduce, gather, epoch, untimed."""

    def _save_checkpoint(self, model, trial=None, resumable: bool = True) -> None:
        """Write `checkpoints/step-N` (collective). A failure on any rank removes it and fails all ranks."""
        step = self.state.global_step
        final = self.run.checkpoints / ckpt.name_of(step)
        # of what rank 0 sees: a network file system may show each rank something else
        if self.gather(ckpt.is_complete(final))[0]:
            return
        with self.untimed():
            self._write_whole(final, resumable)

    def _write_whole(self, final: Path, resumable: bool) -> None:
        main = self.is_world_process_zero()
        tmp = final.with_name(f".tmp-{final.name}")
        if main:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        to_evaluation_point(self.optimizer)
        facts = self.checkpoint_facts(resumable)  # collective
        # ranks meet in between: one that failed would leave the others waiting in what they save together
        self._together(final, tmp, lambda: self._write_weights(tmp))
        self._together(final, tmp, lambda: self._write_state(tmp, resumable))
        self._together(final, tmp, lambda: ckpt.finish(tmp, final, facts) if main else None)

    def _together(self, final: Path, tmp: Path, write: Callable[[], None]) -> None:
        """`write()` on every rank, or `tmp` is removed and every rank raises the `WorkError` of the first
        that failed."""
        error: Exception | None = None
        main = self.is_world_process_zero()
        try:
            with ckpt.clean_on_error(tmp, main):
                write()
        except Exception as caught:  # of a full disk, libraries raise OSError, RuntimeError or their own
            error = caught
        found = self.gather(error and why_unwritten(error))
        number = next((rank for rank, reason in enumerate(found) if reason is not None), None)
        if number is None:
            return
        if main:
            shutil.rmtree(tmp, ignore_errors=True)
        if error is not None and not (isinstance(error, WRITING) or no_space(error)):
            raise error
        where = f"rank {number}: " if len(found) > 1 else ""
        resume = ckpt.how_to_resume(self.run.checkpoints)
        raise WorkError(f"{final} could not be written: {where}{found[number]}; {resume}") from error

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """As in the library, but what DeepSpeed will load is compared with the model first: of an adapter it
        takes what it finds."""
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        place = Path(resume_from_checkpoint)
        if self.is_world_process_zero() and not any(place.glob(MODEL)):  # an earlier version sealed such
            log.warning(
                "%s holds the parts of each rank and no whole weights: it is resumed, but cannot be scored, "
                "exported or started from. DeepSpeed's zero_to_fp32.py makes whole weights of it",
                place,
            )
        with _readable(place):
            refuse_other_zero(self.model_wrapped, place)
            adapter = isinstance(self.model, PeftModel)  # its files lack the frozen weights
            deepspeed_load_checkpoint(self.model_wrapped, str(place), load_module_strict=not adapter)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """As in the library, which leaves weights that it does not find as they are: those of the start
        model. Under FSDP2 `model` is the sharded one, whose own file is read, whole or not at all."""
        with _readable(resume_from_checkpoint):
            if self.is_fsdp_enabled:
                refuse_other_fsdp(model, Path(resume_from_checkpoint))
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                take_up_weights(self.model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with _readable(checkpoint):
            fsdp = checkpoint is not None and self.is_fsdp_enabled
            if fsdp and is_stateless(self.args.optim, self.optimizer):
                # torch looks for a device in the state, and fails where there is none
                saved = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
                self.lr_scheduler.load_state_dict(saved)
                return
            sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
            with loaded_as_saved(self.args.optim, None if sharded else self.optimizer):
                super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Adds the generation config, which peft leaves out and transformers may refuse to write.

        The second name of a tied weight is dropped from a gathered state dict, where it may be a copy: a
        checkpoint of any engine has the weight once.
        """
        if state_dict is not None and not isinstance(self.model, PeftModel):
            second = second_names(self.model)
            state_dict = {name: value for name, value in state_dict.items() if name not in second}
        folder = Path(output_dir or self.args.output_dir) if self.args.should_save else None
        with with_generation_config(self.model, folder):
            super()._save(output_dir, state_dict)

    def _write_weights(self, folder: Path) -> None:
        """Raises `WorkError` unless the files written to `folder` are those of the whole model.

        The library writes none, with a warning, where the engine's weights cannot be gathered.
        """
        self.save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            try:
                refuse_other_weights(self.model, folder)
            except Damaged as problem:
                raise WorkError(str(problem)) from None

    def _write_state(self, folder: Path, resumable: bool) -> None:
        if resumable:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def checkpoint_facts(self, resumable: bool) -> dict[str, Any]:
        """checkpoint.json, without what `ckpt.finish` adds. Collective."""
        return {
            "format": 1,
            "step": self.state.global_step,
            "examples": self.state.global_step * self.facts["global_batch_size"],
            "epoch": self.epoch(),
            "resumable": resumable,
            "guard": self.guard.state(),
            "window": self.window(),
            "spent": self.spent.save(self.state.global_step, self.reduce),
            "saved": time.time(),
            "engine": engine(self.args),
            "world_size": self.args.world_size,
            **self.facts,
        }


@contextlib.contextmanager
def _readable(checkpoint: str | Path | None) -> Iterator[None]:
    """Turns errors from loading a checkpoint into a sentence that names it and what to do.

    Files whose hashes were compared are not damaged, whatever fails: another version of a library may read
    them otherwise. A lost rank may fail a load, too; `peers.watched` finds that out by the error's cause.
    """
    try:
        yield
    except (torch.OutOfMemoryError, dist.DistError):
        raise
    except Damaged as problem:
        raise WorkError(f"{checkpoint} cannot be resumed: {problem}. {_remedy(checkpoint)}") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise WorkError(f"{checkpoint} cannot be resumed: {reason}. {_remedy(checkpoint)}") from error


def _remedy(checkpoint: str | Path | None) -> str:
    folder = Path(checkpoint or "")
    if isinstance(ckpt.Checkpoint(folder, 0).facts().get("files"), dict):
        return (
            "Its files are as they were written: resume with the versions of the libraries that wrote them, "
            f"or begin a new run from its weights alone: name=... model.init={folder}"
        )
    return (
        "An earlier version saved it without hashes of its files, and one may be damaged: restore it, or "
        "move the folder to another place to resume from the checkpoint before it"
    )
