"""From which checkpoint a run that trains goes on: the newest one whose files are as they were written.

Left out: the proof of a checkpoint (`rundir/proof.py`), rows that changed (`changes.py`), another engine
(`engine_change.py`).
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from posttrain.base.process import rank
from posttrain.errors import RequestError
from posttrain.models.saved_config import other_config
from posttrain.recipe import TrainRecipe
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.directory import RunDir
from posttrain.stages import engine_change
from posttrain.stages.changes import refuse_other_rows
from posttrain.stages.inputs import changed_code, note_changed, refuse_changed_models
from posttrain.training.parts import Parts
from posttrain.training.trainer import RunTrainer

log = logging.getLogger(__name__)
Sound = tuple[ckpt.Checkpoint | None, dict[str, str]]
"""See `ckpt.newest_sound`."""


def start_proof(run: RunDir, steps: int) -> Future[Sound] | None:
    """Reads the checkpoints of `run` in a thread, while the model is loaded; main process only."""
    if rank() != 0:
        return None
    pool = ThreadPoolExecutor(1)
    found = pool.submit(_newest_sound, run, steps)
    pool.shutdown(wait=False)
    return found


def _newest_sound(run: RunDir, steps: int) -> Sound:
    """As `ckpt.newest_sound`, but what cannot be read is damaged: no rank may wait for an exception."""
    try:
        return ckpt.newest_sound(run.checkpoints, steps)
    except OSError as error:
        return None, {run.checkpoints.name: f"cannot be read ({error.strerror or error})"}


def take_up(
    trainer: RunTrainer, parts: Parts, recipe: TrainRecipe, proof: Future[Sound] | None
) -> ckpt.Checkpoint | None:
    """The checkpoint to resume from, its state handed to guard and trainer; None for a fresh start.

    Collective. Damaged checkpoints after it are set aside.

    Raises:
        RequestError: it belongs to another recipe, another model, other rows or another engine, or all that
            are there are damaged.
    """
    changed = []
    last, damaged = trainer.gather(proof and proof.result())[0]
    if last is None and damaged.keys() - {ckpt.name_of(0)}:  # the start model itself can be saved again
        problems = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
        raise RequestError(
            f"no checkpoint of {parts.run.path} can be resumed: {problems}. Restore the files, or remove the "
            "folder to start over"
        )
    if last is not None:
        facts = last.facts()
        if facts.get("recipe_hash") != parts.facts["recipe_hash"]:
            raise RequestError(
                f"{last.path} is a checkpoint of another recipe; remove it to resume from the one before, or "
                "choose another name=..."
            )
        start = parts.facts.get("start")
        if facts.get("start", start) != start:  # an earlier version did not say it
            raise RequestError(
                f"{parts.start} is no longer the model that {parts.run.path} started from, which its adapter "
                "or its reference needs; restore it, or start again with another name=..."
            )
        if differs := other_config(trainer.model, last.path):
            alone = f"name=... model.init={last.path}" + ("" if parts.start else " model.from_config=null")
            raise RequestError(
                f"{last.path} was trained with another config.json than {parts.start or 'model.from_config'} "
                f"now gives: {differs}. Put the config back, or begin a new run from the checkpoint: {alone}"
            )
        refuse_other_rows(last, parts.prepared)
        refuse_changed_models(last.path, facts, parts.facts)
        engine_change.refuse(last.path, facts, recipe, trainer.args.max_steps, trainer.model)
        log.info("resuming from %s", last.path)
        changed = changed_code(last.path, facts, parts.facts)
        parts.guard.load(facts.get("guard", {}))
        trainer.resume_from(facts)
    trainer.accelerator.wait_for_everyone()  # until every rank has read what is renamed now
    for name, problem in damaged.items() if rank() == 0 else ():
        there = ckpt.set_aside(parts.run.checkpoints, name)
        goes_on = "starting over" if last is None else f"resuming from {last.name}"
        log.warning("%s is damaged: %s. It is now %s; %s", name, problem, there, goes_on)
    if rank() == 0:
        parts.run.rewind_metrics(None if last is None else last.step)
        note_changed(parts.run, changed)
    trainer.accelerator.wait_for_everyone()
    return last
