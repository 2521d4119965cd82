"""One run of one stage, from a checked recipe to a finished run directory; shared by sft, dpo and rlvr.

Order matters: the data first (no GPU is touched while rows are prepared), then the trainer's arguments (which
set up ZeRO-3 before the model is loaded), then the model. Each stage gives a `build` that makes its trainer.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.base.files import timestamp
from posttrain.base.process import rank, world_size
from posttrain.errors import RequestError, WorkError
from posttrain.models.load import lora_config
from posttrain.recipe import TrainRecipe, recipe_hash
from posttrain.recipe.schema import Loss
from posttrain.rundir.directory import RunDir
from posttrain.training.engines import engine
from posttrain.training.parts import StageParts

log = logging.getLogger(__name__)


def run_stage(
    recipe: TrainRecipe, build: Callable, config_class: type, score_factory: Callable | None
) -> RunDir:
    """Train `recipe`; returns its run directory. Raises `RequestError` / `WorkError`.

    `score_factory(recipe, run, template) -> Scorer` makes the callable that scores each checkpoint.
    """
    from posttrain.base.stop import StopRequest
    from posttrain.losses.confidence import refuse_backend
    from posttrain.stages.preflight import preflight
    from posttrain.training import engines
    from posttrain.training.arguments import trains_on_cpu

    on_cpu = trains_on_cpu()
    # Asked of the launcher, not of the trainer: what accelerate has made of it comes too late.
    engines.refuse(recipe, on_cpu)
    if hasattr(recipe, "loss"):
        refuse_backend(recipe.loss, "cpu" if on_cpu else "cuda")
    preflight(recipe)
    run = RunDir(os.path.join(recipe.output_dir, recipe.name))
    main = rank() == 0
    if main:
        run.lock()
        run.check_same(recipe)
    try:
        with StopRequest() as stop:
            _run(recipe, run, build, config_class, score_factory, stop)
    except BaseException as error:
        if main and run.path.is_dir():
            record_failure(run, error)
        raise
    finally:
        run.unlock()
    return run


def record_failure(run: RunDir, error: BaseException) -> None:
    """What run.json says of a run that has ended by `error`."""
    from posttrain.base.stop import Stopped
    from posttrain.training.gates import GateFailed

    if not run.info():
        return  # refused before it began: nothing half-written
    stopped = isinstance(error, Stopped | GateFailed | KeyboardInterrupt)
    try:
        run.update(
            status="stopped" if stopped else "failed",
            ended=timestamp(),
            error=str(error) or type(error).__name__,
        )
    except WorkError:  # a full disk: the failure that led here is the one to report
        log.error("run.json could not be written either")


def _run(recipe, run, build, config_class, score_factory, stop) -> None:
    from posttrain.base.stop import Stopped
    from posttrain.data.collate import Collator, PairCollator
    from posttrain.data.manifest import manifest, summary, write_manifest
    from posttrain.data.prepare import build as prepare
    from posttrain.data.shapes.catalogue import shape_of
    from posttrain.data.template import load_text
    from posttrain.models.load import load_model, refuse_leaking_documents
    from posttrain.recipe.plan import batch_plan, rows_of, steps_of
    from posttrain.rundir import checkpoints as ckpt
    from posttrain.training.arguments import trainer_arguments
    from posttrain.training.callbacks import ConsoleCallback, FlowCallback, ScoreCallback
    from posttrain.training.guard import StepGuard
    from posttrain.training.hardware import commit, hardware, versions

    main = rank() == 0
    batch_plan(recipe.train, world_size())
    init, parent = (None, None) if recipe.model.init is None else ckpt.resolve(recipe.model.init)
    tokenizer, template = load_text(recipe, str(init))
    shape = shape_of(recipe)
    data = recipe.data if shape == "rows" else replace(recipe.data, train_on="last")
    prepared = prepare(
        data,
        getattr(recipe, "loss", Loss()),
        tokenizer,
        recipe.evaluate.heldout,
        seed=recipe.train.seed,
        is_main=main,
        shape=shape,
    )
    max_steps = steps_of(recipe, len(prepared.mixture))
    total = rows_of(recipe, max_steps)
    prepared.mixture.check(total)

    facts = {
        "recipe_hash": recipe_hash(recipe),
        "global_batch_size": recipe.train.global_batch_size,
        "examples_per_epoch": len(prepared.mixture),
        "max_length": recipe.data.max_length,
        "template": recipe.data.template,
        "data_fingerprint": prepared.mixture.fingerprint,
        "parent": parent or ({"init": recipe.model.init} if recipe.model.init else None),
    }
    args = trainer_arguments(recipe, config_class, run, max_steps)
    if args.world_size != world_size():
        raise WorkError(
            f"launched with WORLD_SIZE={world_size()} but accelerate runs {args.world_size} process(es): "
            "check distributed_type in the accelerate config (MULTI_CPU starts one)"
        )
    begun = time.time()
    model = load_model(recipe.model, init, tokenizer, recipe.train.seed)
    if recipe.data.padding_free:
        refuse_leaking_documents(model)
    collator = Collator(tokenizer.pad_token_id, recipe.data.padding_free)
    parts = StageParts(
        run,
        tokenizer,
        prepared,
        PairCollator(collator) if shape == "pairs" else collator,
        model,
        lora_config(recipe),
        StepGuard(recipe.guard),
        stop,
        total,
        args,
        init and Path(init),
        template,
        facts,
    )
    try:
        trainer = build(recipe, parts)
    except ValueError as error:
        if "Target modules" not in str(error):
            raise
        raise RequestError(f"model.lora.target_modules: {error}") from error
    if main:  # only now: a model that cannot be loaded leaves no run behind
        run.start(
            recipe,
            {
                "command": " ".join(sys.argv),
                "versions": versions(),
                "commit": commit(),
                "hardware": hardware(),
                "world_size": args.world_size,
                "engine": engine(args),
                "steps": max_steps,
                "data_fingerprint": facts["data_fingerprint"],
                "parent": facts["parent"],
            },
        )
        account = manifest(prepared, total)
        write_manifest(run.mixture, account)
        for line in summary(account):
            log.info(line)
        ckpt.remove_leftovers(run.checkpoints)
        _clear_meetings(run)
    score = score_factory(recipe, run, template) if score_factory is not None else None
    console, scoring = ConsoleCallback(recipe.name), ScoreCallback(trainer, recipe, score)
    _replace_callbacks(
        trainer, FlowCallback(trainer, recipe, parts.heldout_rows() is not None), scoring, console
    )
    trainer.accelerator.wait_for_everyone()
    last = ckpt.last_resumable(run.checkpoints)
    if last is not None:
        log.info("resuming from %s", last.path)
        parts.guard.load(last.facts().get("guard", {}))
        trainer.resume_from(last.facts())
    try:
        stop.can_save = True
        if last is None or last.step < max_steps:
            trainer.train(resume_from_checkpoint=str(last.path) if last else None)
        elif score is not None:
            score(last.path, last.step)
            scoring.judge(last.name)
    finally:
        console.close()
    if trainer.stop_agreed and trainer.state.global_step < max_steps:
        raise Stopped(
            f"stopped after step {trainer.state.global_step} of {max_steps}; the same command goes on from there"
        )
    if main:
        _clear_meetings(run)
        seconds = run.info().get("seconds", 0) + time.time() - begun
        run.update(status="finished", ended=timestamp(), seconds=round(seconds, 1))


def _clear_meetings(run: RunDir) -> None:
    """Remove the places where ranks met to score: those of this run, or of a killed one."""
    for place in run.path.glob(".score-*"):
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def _replace_callbacks(trainer: Any, *ours: Any) -> None:
    from transformers import PrinterCallback, ProgressCallback

    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    for callback in ours:
        trainer.add_callback(callback)
