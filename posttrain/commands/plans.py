"""The arithmetic of a run before it starts: rows where counting is quick, batches, steps.

`posttrain check` and the list of a sweep show it. Left out: rows that are dropped, which only reading tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data import readers
from posttrain.data.opening import compression
from posttrain.data.problems import catalogue
from posttrain.data.remote import is_remote
from posttrain.recipe import Recipe, RlvrRecipe, TrainRecipe
from posttrain.recipe.plan import batch_plan, shape_of, steps_of
from posttrain.recipe.schema import Source

COUNT_LIMIT = 256 * 2**20
"""Bytes up to which the rows of JSONL files are counted; counting more would be slow."""


@dataclass
class Plan:
    """Batch arithmetic of a run. Examples and steps are None where the rows were not counted."""

    ranks: int
    global_batch_size: int
    micro_batch: int
    accumulation: int
    tokens_per_step_at_most: int
    examples_per_epoch: int | None
    steps: int | None
    """Upper bound where `num_train_epochs` is given: rows may still be dropped."""


def examples_of(recipe: Recipe, rows: dict[str, int | None]) -> list[int | None]:
    """Examples of each source in an epoch, at most: rows may still be dropped. None where that is not known:
    the rows were not counted, or one row may give several examples."""
    heldout = recipe.evaluate.heldout if isinstance(recipe, TrainRecipe) else None
    share = heldout.share or 0.0 if heldout is not None and heldout.source is None else 0.0
    several = shape_of(recipe) == "rows" and recipe.data.train_on == "each"
    found: list[int | None] = []
    for source in recipe.data.sources:
        n, cap = rows[source.name], source.max_examples
        if source.weight == 0:
            found.append(0)
        elif several:
            found.append(cap)
        else:
            left = n and n - (max(1, round(share * n)) if share else 0)
            found.append(left if left is None or cap is None else min(left, cap))
    return found


def plan(recipe: TrainRecipe, ranks: int, rows: dict[str, int | None]) -> Plan:
    """The arithmetic of `recipe` on `ranks` ranks. Raises `RequestError` where the batch cannot be split."""
    batch = batch_plan(recipe.train, ranks)
    counts = examples_of(recipe, rows)
    examples = None if None in counts else sum(counts)
    known = recipe.train.max_steps is not None or examples is not None
    steps = steps_of(recipe, examples or 0) if known else None
    longest = recipe.data.max_length
    longest += recipe.rollout.max_new_tokens if isinstance(recipe, RlvrRecipe) else 0
    return Plan(
        ranks,
        batch.global_batch_size,
        batch.micro,
        batch.accumulation,
        batch.global_batch_size * longest,
        examples,
        steps,
    )


def count_rows(source: Source, files: list[dict[str, Any]]) -> int | None:
    """Rows of a source where counting is quick: generators, JSONL and Parquet here; otherwise None."""
    if source.generator is not None:
        return len(catalogue.generate(source.generator, source.options))
    paths = [Path(f["path"]) for f in files]
    quick = {"jsonl", "parquet"}
    if not paths or any(readers.kind_of(p) not in quick for p in paths):
        return None
    if any(is_remote(f["path"]) for f in files):
        return None
    if sum(f["bytes"] for f in files) > COUNT_LIMIT or any(map(compression, paths)):
        return None
    return sum(readers.count(p) for p in paths)
