"""One run of a stage that samples and scores (pairs, pass_rate): from a checked recipe to a file of rows.

Prompts are taken in chunks. The completions of a chunk are in `rollouts/chunk-000012.jsonl`, what the stage
makes of them in `parts/chunk-000012.jsonl`, each written in one step: a killed run resumes at the first chunk
without a part and samples no whole chunk twice. Ranks take chunks in turn; rank 0 waits for the parts of the
others. Left out: the files of the chunks (chunks.py), vLLM.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.base.files import timestamp, write_json
from posttrain.base.process import local_rank, rank, world_size
from posttrain.base.progress import ProgressBars
from posttrain.base.stop import Stopped, StopRequest
from posttrain.data.prepare import Prepared
from posttrain.data.rendering import variables
from posttrain.data.template import Template, load_text
from posttrain.data.tokenizers import decode, load_tokenizer
from posttrain.errors import WorkError
from posttrain.generation.base import Generator
from posttrain.generation.local import TransformersGenerator
from posttrain.models.load import load_model
from posttrain.recipe import SampleRecipe, recipe_hash
from posttrain.recipe.schema import Model
from posttrain.recipe.sections import Rollout
from posttrain.rewards.compose import Composite
from posttrain.rollouts.groups import Prompt, Prompts, sample, score, too_many_failed
from posttrain.rollouts.records import Row, rows_of
from posttrain.rundir.adapters import tokenizer_place
from posttrain.rundir.checkpoints import resolve
from posttrain.rundir.directory import RunDir
from posttrain.stages.changes import info_of_same, refuse_changed_prompts
from posttrain.stages.chunks import Chunks
from posttrain.stages.inputs import Inputs, changed_code, inputs_of, note_changed, refuse_changed_models
from posttrain.stages.preflight import preflight
from posttrain.stages.prepared import prepare_prompts
from posttrain.stages.ranks import Ranks
from posttrain.stages.record import claimed, launch_facts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model that samples."""

    generator: Generator
    tokenizer: PreTrainedTokenizerBase
    template: Template
    origin: str
    """Where its weights came from."""


@dataclass(frozen=True)
class Sampler:
    """What a stage may need besides the groups of a chunk."""

    recipe: SampleRecipe
    run: RunDir
    loaded: Loaded
    rewards: Composite

    def load(self, place: str) -> Loaded:
        """Another model (a teacher) with its own tokenizer, and with its own template if it has one."""
        own = self.recipe.model
        start = Model(
            init=place, dtype=own.dtype, attention=own.attention, trust_remote_code=own.trust_remote_code
        )
        tokenizer = load_tokenizer(tokenizer_place(resolve(place)[0]), None, own.trust_remote_code)
        options = self.recipe.data.template_options
        if not tokenizer.chat_template:
            return load_generator(start, self.recipe.data.template, self.recipe.seed, options)
        known = {k: v for k, v in options.items() if k in variables(tokenizer.get_chat_template())}
        if lost := options.keys() - known.keys():
            names = ", ".join(sorted(lost))
            log.warning("data.template_options: the template of %s has no variable %s", place, names)
        return load_generator(start, "tokenizer", self.recipe.seed, known)


class SamplingStage(Protocol):
    """What a stage makes of the groups. `product` names its files: `<product>.jsonl`, `<product>.json`."""

    product: str

    def part(self, prompts: list[Prompt], rows: list[Row]) -> list[Row]:
        """The rows made of a chunk; `rows` are the completions of its prompts as in the rollout files."""
        ...

    def finish(self, parts: Iterator[Row]) -> dict[str, Any]:
        """Writes the products from the rows of all chunks, in order; returns the summary. Main process."""
        ...


def run_sampling(recipe: SampleRecipe, stage: Callable[[Sampler], SamplingStage]) -> RunDir:
    """Sample, score and make the products of `recipe`; returns its run directory.

    Raises `RequestError` and `WorkError`.
    """
    preflight(recipe)
    run = RunDir(os.path.join(recipe.output_dir, recipe.name))
    with StopRequest() as stop, claimed(run, recipe, refusals=False) as resumed:
        if rank() == 0 and not resumed:
            for stale in run.path.glob("rollouts/chunk-*"):
                stale.unlink()  # of an attempt that never finished a chunk
        with Ranks(run) as ranks:
            try:
                _run(recipe, run, stage, ranks)
            except KeyboardInterrupt:  # a signal: a chunk that is cut off is made again, and is the same
                stop.ending = True  # the next signal must not cut off what is recorded now
                raise (ranks.trouble or ranks.look() or Stopped(_done(run))) from None
    return run


def load_generator(start: Model, template: str, seed: int, options: dict[str, Any] | None = None) -> Loaded:
    """The model of the recipe's section `model`, without an adapter to train, ready to sample."""
    init = None if start.init is None else resolve(start.init)[0]
    tokenizer, loaded = load_text(start, template, init and tokenizer_place(init), options)
    model = load_model(replace(start, lora=None), init, tokenizer, seed)
    device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    generator = TransformersGenerator(model.eval().to(device), tokenizer, loaded.stops, loaded.endings)
    return Loaded(generator, tokenizer, loaded, str(init or start.init or "random weights"))


def _done(run: RunDir) -> str:
    done, chunks = len(list(run.path.glob("parts/chunk-*"))), run.info().get("chunks")
    return f"stopped with {done} of {chunks or '?'} chunks sampled; run the same command to resume"


def _run(recipe: SampleRecipe, run: RunDir, stage: Callable[[Sampler], SamplingStage], ranks: Ranks) -> None:
    begun = time.monotonic()
    inputs = _same_inputs(recipe, run)  # on every rank: none may sample while another still compares
    loaded = load_generator(recipe.model, recipe.data.template, recipe.seed, recipe.data.template_options)
    prepared, count = prepare_prompts(recipe, loaded.tokenizer)
    prompts = Prompts(prepared)
    ranks.wait_for_start(recipe_hash(recipe))
    refuse_changed_prompts(run, prepared, recipe_hash(recipe))
    chunks = Chunks(run, count, _chunk_size(recipe, run))
    if rank() == 0:
        _record_start(recipe, run, chunks, prepared, inputs)
    sampler = Sampler(recipe, run, loaded, Composite(recipe.rewards, recipe.success))
    made = stage(sampler)
    with ProgressBars("chunk") as bars:
        bars.add(recipe.name, len(chunks.mine()))
        for number in chunks.mine():
            if chunks.read(chunks.part(number)) is None:
                _chunk(sampler, made, chunks, number, prompts)
            bars.advance(recipe.name)
    if rank() != 0:
        return
    chunks.wait()
    summary = made.finish(chunks.rows())
    write_json(run.path / f"{made.product}.json", summary)
    seconds = (run.info().get("seconds") or 0.0) + time.monotonic() - begun
    run.update(status="finished", ended=timestamp(), seconds=round(seconds, 1))


def _chunk_size(recipe: SampleRecipe, run: RunDir) -> int:
    """Prompts in a chunk. A resumed run keeps its chunks, also under another batch size."""
    asked = recipe.rollout.batch_size // recipe.rollout.num_generations
    return info_of_same(run, recipe_hash(recipe)).get("chunk_size") or max(1, asked)


def _same_inputs(recipe: SampleRecipe, run: RunDir) -> Inputs:
    """The inputs of `recipe`, compared with those of the chunks that `run` has.

    Raises:
        RequestError: another model made them: chunks of several models are no data set.
    """
    inputs = inputs_of(recipe)
    if before := _sampled_by(recipe, run):
        refuse_changed_models(run.path, before, inputs)
    return inputs


def _sampled_by(recipe: SampleRecipe, run: RunDir) -> dict[str, Any]:
    """run.json of the start that made the chunks of `run`; empty where there are none."""
    return info_of_same(run, recipe_hash(recipe)) if any(run.path.glob("*/chunk-*")) else {}


def _record_start(
    recipe: SampleRecipe, run: RunDir, chunks: Chunks, prepared: Prepared, inputs: Inputs
) -> None:
    if before := _sampled_by(recipe, run):
        note_changed(run, changed_code(run.path, before, inputs))
    init = recipe.model.init
    parent = (resolve(init)[1] if init else None) or ({"init": init} if init else None)
    run.start(
        recipe,
        launch_facts()
        | inputs
        | {
            "world_size": world_size(),
            "prompts": chunks.count,
            "chunks": len(chunks),
            "chunk_size": chunks.size,
            "parent": parent,
            "data_fingerprint": prepared.mixture.fingerprint,
            "sources": [
                {"name": name, "fingerprint": table.fingerprint, "rows_read": table.stats["rows_read"]}
                for name, table in zip(prepared.names, prepared.tables, strict=True)
            ],
        },
    )


def _chunk(sampler: Sampler, made: SamplingStage, chunks: Chunks, number: int, prompts: Prompts) -> None:
    """Samples and checks one chunk, unless its rollouts are there, and writes what the stage makes of it."""
    rollout, file = sampler.recipe.rollout, chunks.rollouts(number)
    asked = [prompts[i] for i in chunks.prompts(number)]
    rows = chunks.read(file)
    if not rows or _too_many_failed(rows, rollout):  # what was at fault then may be repaired now
        groups = sample(sampler.loaded.generator, asked, rollout, sampler.recipe.seed)
        score(groups, sampler.rewards, rollout)
        rows = []
        for group in groups:
            text = decode(group.prompt.ids, sampler.loaded.tokenizer)
            rows += rows_of(group, group.prompt.position, text, sampler.loaded.template.calls_end)
        chunks.write(file, rows)
    why = _too_many_failed(rows, rollout)
    if why:
        raise WorkError(f"{why}; see {file}")
    chunks.write(chunks.part(number), made.part(asked, rows))


def _too_many_failed(rows: list[Row], rollout: Rollout) -> str | None:
    """A sentence where more checks failed than `rollout.max_failed` allows."""
    failed = [row for row in rows if row["reward"] is None or row["success"] is None]
    parts = failed[0]["components"].values() if failed else ()
    why = next((p["reason"] or p["status"] for p in parts if p["value"] is None), "no verdict")
    return too_many_failed(len(failed), len(rows), rollout.max_failed, f"failed ({why})")
