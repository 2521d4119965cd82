"""One run of a stage that trains (sft, dpo, rlvr), from a checked recipe to a finished run directory.

The order matters: data first (no GPU is used meanwhile), then the trainer's arguments (they set up ZeRO-3),
then the model. Left out: the command line (`launch.py`), what differs between stages (`sft.py` and others).
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from posttrain.base.files import timestamp
from posttrain.base.process import rank, world_size
from posttrain.base.stop import Stopped, StopRequest
from posttrain.data.collate import Collator, PairCollator
from posttrain.data.manifest import manifest, summary, write_manifest
from posttrain.data.template import Template
from posttrain.errors import RequestError, WorkError
from posttrain.generation.cache_limits import refuse_switch_of_rows
from posttrain.losses.confidence import refuse_backend
from posttrain.models.adapter_targets import refuse_missing_modules
from posttrain.models.adapters import lora_config, refused_by_peft
from posttrain.models.documents import refuse_leaking_documents
from posttrain.models.generation_config import stop_as_trained
from posttrain.models.load import commit_of, load_model
from posttrain.recipe import RlvrRecipe, SftRecipe, TrainRecipe, recipe_hash
from posttrain.recipe.plan import aligned, batch_plan, new_tokens, rhythm, rows_alone
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapters import identity
from posttrain.rundir.directory import RunDir
from posttrain.rundir.proof import damage
from posttrain.rundir.scores import ScoreStore
from posttrain.stages.changes import newest_facts_of, refuse_changed_rows
from posttrain.stages.engine_change import obstacle, refuse_other_engine
from posttrain.stages.inputs import inputs_of, refuse_changed_models
from posttrain.stages.preflight import preflight
from posttrain.stages.prepared import PreparedRun, prepare_run
from posttrain.stages.record import claimed, launch_facts, record_failure
from posttrain.stages.resume import start_proof, take_up
from posttrain.training.arguments import trainer_arguments, trains_on_cpu
from posttrain.training.callbacks import ConsoleCallback, FlowCallback, ScoreCallback, Scorer
from posttrain.training.defaults import refuse_moved_defaults, used_classes
from posttrain.training.engines import engine, refuse_fsdp, told_of_unused
from posttrain.training.guard import StepGuard
from posttrain.training.launcher import (
    mixed_precision,
    refuse_launcher,
    refuse_other_batch,
    refuse_other_world,
    refuse_sharded_family,
    refuse_unsaved_weights,
)
from posttrain.training.optimizers import refuse_optimizer
from posttrain.training.parts import Parts, PromptParts, RowParts
from posttrain.training.peers import watched
from posttrain.training.trainer import RunTrainer

log = logging.getLogger(__name__)
MakeScorer = Callable[[TrainRecipe, RunDir, Template], Scorer | None]
"""Makes the callable that scores each checkpoint; passed in, so that training imports no evaluation."""


@dataclass(frozen=True)
class TrainStage:
    """What distinguishes one training stage from another; each stage module has one."""

    config_class: type[TrainingArguments]
    """TRL's config class."""
    build: Callable[[Any, Any], RunTrainer]
    """(recipe, its `Parts`) -> the trainer."""
    arguments: Callable[[Any], dict[str, Any]] = lambda recipe: {}
    """Recipe -> arguments of that class that only this stage computes."""


def run_training(recipe: TrainRecipe, stage: TrainStage, make_scorer: MakeScorer | None = None) -> RunDir:
    """Train `recipe`; returns its run directory. Raises `RequestError` and `WorkError`."""
    on_cpu = trains_on_cpu()
    # Checked in the launcher's environment: accelerate may silently fall back to another engine later.
    refuse_fsdp(recipe.model, recipe.train, on_cpu)
    refuse_launcher(recipe.train)
    refuse_optimizer(recipe.train)
    refuse_unsaved_weights(recipe.model)
    refuse_moved_defaults(used_classes(stage.config_class.__name__))
    if isinstance(recipe, SftRecipe):
        refuse_backend(recipe.loss, "cpu" if on_cpu else "cuda")
    preflight(recipe, on_cpu=lambda: "torch finds none" if on_cpu else None)
    refuse_sharded_family(recipe.model)
    run = RunDir(os.path.join(recipe.output_dir, recipe.name))
    refuse_other_engine(run, recipe)
    with StopRequest() as stop, claimed(run, recipe, refusals=True):
        try:
            _train(recipe, stage, run, make_scorer, stop)
        except KeyboardInterrupt:
            raise Stopped(f"interrupted; {ckpt.how_to_resume(run.checkpoints)}") from None
        finally:
            stop.ending = True
    return run


def _train(
    recipe: TrainRecipe, stage: TrainStage, run: RunDir, make_scorer: MakeScorer | None, stop: StopRequest
) -> None:
    batch_plan(recipe.train, world_size())
    ScoreStore(run.path).rows()  # damaged, it would be found out at the first score
    begun = time.monotonic()
    data = prepare_run(recipe)
    refuse_changed_rows(run, data.prepared, recipe_hash(recipe))
    data = replace(data, inputs=inputs_of(recipe))
    if (last := newest_facts_of(run, recipe_hash(recipe))) is not None:  # before a model is loaded
        refuse_changed_models(run.path, last, data.inputs)
    arguments = trainer_arguments(stage.config_class, recipe.train, run, data.steps, stage.arguments(recipe))
    refuse_other_world(arguments)
    refuse_other_batch(arguments)

    def record(error: WorkError) -> None:
        record_failure(run, error, time.monotonic() - begun)

    with watched(stop, lambda: ckpt.how_to_resume(run.checkpoints), record):
        _fit(recipe, stage, run, data, arguments, make_scorer, stop)


def _fit(
    recipe: TrainRecipe,
    stage: TrainStage,
    run: RunDir,
    data: PreparedRun,
    arguments: TrainingArguments,
    make_scorer: MakeScorer | None,
    stop: StopRequest,
) -> None:
    begun = time.monotonic()
    proof = start_proof(run, data.steps)
    parts = _load(recipe, run, data, arguments, stop)
    trainer = _build(recipe, stage, parts)
    if recipe.data.padding_free:  # now that the model is where it is trained
        refuse_leaking_documents(trainer.model, trainer.accelerator.mixed_precision)
    score = make_scorer(recipe, run, data.template) if make_scorer is not None else None
    flow, console, scoring = _add_callbacks(recipe, trainer, data, score)
    last = take_up(trainer, parts, recipe, proof)
    if rank() == 0:  # what is refused, or has a model that cannot be loaded, leaves the directory as it was
        _record_start(recipe, run, data, trainer, last is not None)
    trainer.accelerator.wait_for_everyone()
    try:
        if last is None or last.step < data.steps or _can_catch_up(trainer, flow, last, recipe, data.steps):
            with told_of_unused(trainer.model):
                trainer.train(resume_from_checkpoint=str(last.path) if last else None)
        else:  # already fully trained; it may have been stopped, or have failed, during scoring
            stop.can_save = True
            scoring.catch_up()
    finally:
        console.close()
    done = trainer.state.global_step
    if trainer.stop_agreed and (done < data.steps or flow.lacks_heldout(done, data.steps)):
        raise Stopped(f"stopped after step {done} of {data.steps}; {ckpt.how_to_resume(run.checkpoints)}")
    scoring.conclude()
    if rank() == 0:
        _clear_exchanges(run)
        seconds = run.info().get("seconds", 0) + time.monotonic() - begun
        run.update(status="finished", ended=timestamp(), seconds=round(seconds, 1))


def _can_catch_up(
    trainer: RunTrainer, flow: FlowCallback, last: ckpt.Checkpoint, recipe: TrainRecipe, steps: int
) -> bool:
    """Whether a fully trained run lacks its last held-out pass, and can be taken up once more for it, which
    needs all files of its checkpoint, and the engine that saved them. Collective."""
    if not flow.lacks_heldout(last.step, steps):
        return False
    problem = None
    if rank() == 0:
        other = obstacle(last.path, last.facts(), recipe, trainer.model)
        problem = damage(last.path, "all") or (other and f"it {other}")
    if problem:
        log.warning("the held-out loss of %s is not measured: %s", last.name, problem)
    return not trainer.on_any_rank(problem is not None)


def _load(
    recipe: TrainRecipe, run: RunDir, data: PreparedRun, arguments: TrainingArguments, stop: StopRequest
) -> Parts:
    """Loads the model; all that the stage builds its trainer from."""
    init, mixed = data.start and str(data.start), mixed_precision(recipe.train)
    model = load_model(recipe.model, init, data.tokenizer, recipe.train.seed, mixed)
    stop_as_trained(model, data.tokenizer, data.template)
    if not rows_alone(recipe):
        refuse_switch_of_rows(model, recipe.data.max_length, new_tokens(recipe))
    if (lora := recipe.model.lora) is not None:
        refuse_missing_modules(model, lora)
    shared: dict[str, Any] = {
        "run": run,
        "tokenizer": data.tokenizer,
        "template": data.template,
        "prepared": data.prepared,
        "rows": data.rows,
        "model": model,
        "start": data.start,
        "adapter": lora and lora_config(lora, commit_of(str(data.start), recipe.model.revision)),
        "arguments": arguments,
        "guard": StepGuard(recipe.guard),
        "stop": stop,
        "facts": {
            "recipe_hash": recipe_hash(recipe),
            "global_batch_size": recipe.train.global_batch_size,
            "examples_per_epoch": len(data.prepared.mixture),
            "max_length": recipe.data.max_length,
            "template": recipe.data.template,
            "data_fingerprint": data.prepared.mixture.fingerprint,
            "parent": data.parent,
            **data.inputs,
        },
    }
    if lora is not None and recipe.model.options:  # of a full model, config.json has them
        shared["facts"]["model_options"] = recipe.model.options
    depends = lora is not None or not isinstance(recipe, SftRecipe)
    if data.start is not None and data.start.is_dir() and depends:
        # of what later steps depend on besides the checkpoint: the adapter's base, the reference; a branch on
        # the hub may move, and the commit that was loaded is in the adapter's config
        shared["facts"]["start"] = identity(data.start, recipe.model.revision, commit_of)
    if isinstance(recipe, RlvrRecipe):
        return PromptParts(**shared)
    collator = Collator(data.tokenizer.pad_token_id, recipe.data.padding_free)
    return RowParts(**shared, collator=PairCollator(collator) if data.shape == "pairs" else collator)


def _build(recipe: TrainRecipe, stage: TrainStage, parts: Parts) -> RunTrainer:
    used = getattr(parts.model.config, "use_cache", None)
    try:
        trainer = stage.build(recipe, parts)
        if used is not None:  # transformers switches it off, and checkpoints would generate without a cache
            parts.model.config.use_cache = used
        return trainer
    except Exception as error:
        if not refused_by_peft(error):
            raise
        key = "model.lora.target_modules" if "Target module" in str(error) else "model.lora"
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise RequestError(f"{key}: {reason}") from error


def _record_start(
    recipe: TrainRecipe, run: RunDir, data: PreparedRun, trainer: RunTrainer, resumed: bool
) -> None:
    """run.json and mixture.json; what a killed run left half-written is removed."""
    run.start(
        recipe,
        launch_facts()
        | {
            "world_size": trainer.args.world_size,
            "engine": engine(trainer.args),
            "steps": data.steps,
            "parameters": (resumed and run.info().get("parameters")) or trainer.parameters(),
            "data_fingerprint": data.prepared.mixture.fingerprint,
            "parent": data.parent,
        },
    )
    account = manifest(data.prepared, data.rows)
    write_manifest(run.mixture, account)
    for line in summary(account):
        log.info(line)
    ckpt.remove_leftovers(run.checkpoints)
    _clear_exchanges(run)


def _add_callbacks(
    recipe: TrainRecipe, trainer: RunTrainer, data: PreparedRun, score: Scorer | None
) -> tuple[FlowCallback, ConsoleCallback, ScoreCallback]:
    """Ours in place of the library's that print."""
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    every = rhythm(recipe)
    save, heldout = recipe.checkpoints.save_steps, recipe.evaluate.heldout
    flow = FlowCallback(
        trainer,
        rhythm=every,
        save_steps=None if save is None else aligned(save, every),
        heldout_steps=heldout.every_steps if heldout and data.prepared.heldout_table is not None else None,
    )
    scoring = ScoreCallback(trainer, recipe.evaluate, recipe.checkpoints, score)
    console = ConsoleCallback(recipe.name)
    for callback in (flow, scoring, console):
        trainer.add_callback(callback)
    return flow, console, scoring


def _clear_exchanges(run: RunDir) -> None:
    """Remove the places where ranks met to score: those of this run, or of a killed one."""
    for place in run.path.glob(".score-*"):
        shutil.rmtree(place) if place.is_dir() else place.unlink()
