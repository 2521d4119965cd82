"""One run of a stage that samples and judges (pairs, pass_rate): from a checked recipe to a file of rows.

Prompts are taken in chunks. What was sampled of a chunk lies in `rollouts/chunk-000012.jsonl`, what the stage makes of it
in `parts/chunk-000012.jsonl`, each written whole: a killed run goes on with the first chunk that has no part, and
samples no whole chunk twice. Processes take chunks in turn; the first waits for the parts of the others. Left out: vLLM.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from posttrain.base.files import read_jsonl, timestamp, write_json, write_jsonl
from posttrain.base.process import local_rank, rank, world_size
from posttrain.base.progress import ProgressBars
from posttrain.base.stop import Stopped, StopRequest
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import SampleRecipe, recipe_hash
from posttrain.recipe.schema import Loss, Model
from posttrain.rollouts.groups import Prompt, Prompts, judge, sample
from posttrain.rollouts.records import Row, rows_of
from posttrain.rundir.directory import RunDir
from posttrain.stages.train import record_failure

PATIENCE_S = 1800.0
"""Seconds that the main process waits for the next chunk of another one."""


@dataclass
class Sampler:
    """What a stage may need besides the groups of a chunk."""

    recipe: SampleRecipe
    run: RunDir
    tokenizer: Any
    template: Any
    generator: Any
    rewards: Any
    checkpoint: str
    """Where the model that samples came from."""

    def load(self, place: str) -> Any:
        """(generator, tokenizer, template, where it came from) of another model (a teacher), with its own tokenizer, and
        its own template if it has one."""
        from posttrain.data.tokenizers import load_tokenizer
        from posttrain.rundir.checkpoints import resolve

        own = Model(**{k: getattr(self.recipe.model, k) for k in ("dtype", "attention", "trust_remote_code")})
        tokenizer = load_tokenizer(resolve(place)[0], None, own.trust_remote_code)
        template = "tokenizer" if tokenizer.chat_template else self.recipe.data.template
        data = replace(self.recipe.data, template=template)
        return load_generator(replace(self.recipe, model=replace(own, init=place), data=data))


class SamplingStage(Protocol):
    """What is made of the groups; a class a stage. `product` names its files: `<product>.jsonl`, `<product>.json`."""

    product: str

    def part(self, prompts: list[Prompt], rows: list[Row]) -> list[Row]:
        """The rows made of a chunk; `rows` are the completions of its prompts as the rollout files have them."""
        ...

    def finish(self, parts: Iterator[Row]) -> dict[str, Any]:
        """Writes the products from the rows of all chunks, in order; returns the summary. Main process."""
        ...


def run_sampling(recipe: SampleRecipe, stage: Callable[[Sampler], SamplingStage]) -> RunDir:
    """Sample, judge and make the products of `recipe`; returns its run directory. Raises RequestError, WorkError."""
    from posttrain.stages.preflight import preflight

    preflight(recipe)
    run = RunDir(os.path.join(recipe.output_dir, recipe.name))
    main = rank() == 0
    if main:
        _claim(recipe, run)
    try:
        with StopRequest() as stop:
            _run(recipe, run, stage, stop)
    except BaseException as error:
        begun = run.info().get("status") == "running"  # else it was refused before that
        if main and begun:
            record_failure(run, error)
        raise
    finally:
        run.unlock()
    return run


def _claim(recipe: SampleRecipe, run: RunDir) -> None:
    run.lock()
    try:
        if not run.check_same(recipe):
            for stale in run.path.glob("rollouts/chunk-*"):
                stale.unlink()  # of an attempt that had made nothing of it yet
    except BaseException:
        run.unlock()
        raise


def load_generator(recipe: SampleRecipe) -> tuple[Any, Any, Any, str]:
    """(generator, tokenizer, template, where it came from) of the model that `recipe` names."""
    import torch

    from posttrain.data.template import load_text
    from posttrain.generation.local import TransformersGenerator
    from posttrain.models.load import load_model
    from posttrain.rundir.checkpoints import resolve

    init = None if recipe.model.init is None else resolve(recipe.model.init)[0]
    tokenizer, template = load_text(recipe, str(init))
    model = load_model(replace(recipe.model, lora=None), init, tokenizer, recipe.seed)
    device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    generator = TransformersGenerator(model.eval().to(device), tokenizer, template.stops)
    return generator, tokenizer, template, str(init or recipe.model.init or "random weights")


def _run(recipe: SampleRecipe, run: RunDir, stage: Callable, stop: Any) -> None:
    from posttrain.data.prepare import build as prepare
    from posttrain.data.shapes.catalogue import shape_of
    from posttrain.rewards.compose import Composite
    from posttrain.rundir.checkpoints import resolve
    from posttrain.training.hardware import commit, hardware, versions

    main, begun = rank() == 0, time.time()
    generator, tokenizer, template, checkpoint = load_generator(recipe)
    prepared = prepare(recipe.data, Loss(), tokenizer, seed=recipe.seed, is_main=main, shape=shape_of(recipe))
    rewards = Composite(recipe.rewards, recipe.success)
    prompts = Prompts(prepared)
    count = min(len(prompts), recipe.max_prompts or len(prompts))
    chunks = Chunks(run, count, recipe, prepared.mixture.fingerprint)
    if main:
        init = recipe.model.init
        parent = (resolve(init)[1] if init else None) or ({"init": init} if init else None)
        run.start(
            recipe,
            {
                "command": " ".join(sys.argv),
                "versions": versions(),
                "commit": commit(),
                "hardware": hardware(),
                "world_size": world_size(),
                "prompts": count,
                "chunks": len(chunks),
                "chunk_size": chunks.size,
                "parent": parent,
                "data_fingerprint": prepared.mixture.fingerprint,
            },
        )
    made = stage(Sampler(recipe, run, tokenizer, template, generator, rewards, checkpoint))
    stop.can_save = True
    with ProgressBars("chunk") as bars:
        bars.add(recipe.name, len(chunks.mine()))
        for number in chunks.mine():
            _refuse_stop(stop, chunks)
            if not chunks.part(number).exists():
                _chunk(chunks, number, prompts, generator, rewards, recipe, made, tokenizer)
            bars.advance(recipe.name)
    if not main:
        return
    chunks.wait(lambda: _refuse_stop(stop, chunks))
    summary = made.finish(row for n in range(len(chunks)) for row in read_jsonl(chunks.part(n)))
    write_json(run.path / f"{made.product}.json", summary)
    seconds = run.info().get("seconds", 0) + time.time() - begun
    run.update(status="finished", ended=timestamp(), seconds=round(seconds, 1))


def _refuse_stop(stop: Any, chunks: Chunks) -> None:
    if stop.requested:
        done = f"{chunks.done()} of {len(chunks)} chunks sampled"
        raise Stopped(f"stopped with {done}; the same command goes on from there")


def _chunk(chunks, number, prompts, generator, rewards, recipe, made, tokenizer) -> None:
    asked, file = [prompts[i] for i in chunks.prompts(number)], chunks.rollouts(number)
    rows = read_jsonl(file)
    if not rows or _too_many_failed(rows, recipe):  # what was at fault then may be repaired now
        groups = sample(generator, asked, recipe.rollout, recipe.seed)
        judge(groups, rewards, recipe.rollout)
        rows = [
            row
            for group in groups
            for row in rows_of(group, group.prompt.position, tokenizer.decode(group.prompt.ids))
        ]
        write_jsonl(file, rows)
    why = _too_many_failed(rows, recipe)
    if why:
        raise WorkError(f"{why}; see {file}")
    write_jsonl(chunks.part(number), made.part(asked, rows))


def _too_many_failed(rows: list[Row], recipe: SampleRecipe) -> str:
    """A sentence if more checks failed than may; else nothing."""
    failed = [row for row in rows if row["reward"] is None or row["success"] is None]
    if len(failed) <= recipe.rollout.max_failed * len(rows):
        return ""
    parts = failed[0]["components"].values()
    why = next((p["reason"] or p["status"] for p in parts if p["value"] is None), "no verdict")
    most = f"rollout.max_failed = {recipe.rollout.max_failed:g}"
    return f"{len(failed)} of {len(rows)} checks failed ({why}), more than {most}"


class Chunks:
    """The prompts 0 .. count - 1 in chunks of about `rollout.batch_size` completions, dealt to the ranks in turn.

    A run that goes on keeps its chunks, also under another batch size. Raises RequestError where its sources have changed.
    """

    def __init__(self, run: RunDir, count: int, recipe: SampleRecipe, fingerprint: str) -> None:
        self.path, self.count = run.path, count
        info = run.info()
        before = info if info.get("recipe_hash") == recipe_hash(recipe) else {}
        self.size = before.get("chunk_size") or max(
            1, recipe.rollout.batch_size // recipe.rollout.num_generations
        )
        if before.get("data_fingerprint", fingerprint) != fingerprint:
            raise RequestError(
                f"{run.path}: the rows of its sources are not those it began with; choose another name=..., or remove the folder"
            )

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def mine(self) -> range:
        return range(rank(), len(self), world_size())

    def prompts(self, number: int) -> range:
        return range(number * self.size, min(self.count, (number + 1) * self.size))

    def rollouts(self, number: int) -> Path:
        return self.path / "rollouts" / f"chunk-{number:06d}.jsonl"

    def part(self, number: int) -> Path:
        return self.path / "parts" / f"chunk-{number:06d}.jsonl"

    def done(self) -> int:
        return sum(self.part(n).exists() for n in range(len(self)))

    def wait(self, poll: Callable[[], None]) -> None:
        """Until every part is there. Raises WorkError where none has come for `PATIENCE_S`."""
        done, since = -1, time.monotonic()
        while (now := self.done()) < len(self):
            poll()
            if now > done:
                done, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE_S:
                missing = [n for n in range(len(self)) if not self.part(n).exists()]
                raise WorkError(
                    f"no chunk of another process came for {PATIENCE_S / 60:g} minutes; missing are {missing[:8]}"
                )
            time.sleep(0.1)
