"""The rows of a run before it starts: prepared in the cache and described, and refused as the run would.

For `posttrain prepare`. Left out: what the launch decides (engine, GPUs, ranks), the lock of a run that is
running, the tokenizer of a reference model, and every word on the terminal (commands/prepared_text.py).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.cache import TooManyDropped, cache_root
from posttrain.data.lengths import lengths_of
from posttrain.data.manifest import described, manifest
from posttrain.data.prepare import Prepared
from posttrain.data.refusals import Unprepared
from posttrain.data.table import Table, complete
from posttrain.errors import PosttrainError, RequestError
from posttrain.recipe import Recipe, TrainRecipe, recipe_hash
from posttrain.recipe.plan import batch_plan, shape_of
from posttrain.recipe.schema import Source
from posttrain.rundir.checkpoints import resolve
from posttrain.rundir.directory import RunDir
from posttrain.rundir.scores import ScoreStore
from posttrain.stages.changes import refuse_changed_prompts, refuse_changed_rows
from posttrain.stages.prepared import prepare_prompts, prepare_run, text_of


@dataclass(frozen=True)
class _Rows:
    """The prepared rows of a run and how many it takes from the start of the mixture."""

    prepared: Prepared
    taken: int
    steps: int | None
    """Optimizer steps; None where nothing is trained."""


def account(recipe: Recipe) -> tuple[dict[str, Any], RequestError | None]:
    """Prepares the rows of a checked recipe: (what they are, why a run would refuse them or None).

    The first is mixture.json with `stage`, `name`, `run`, `resumes` (whether it is a run already), `shape`,
    `max_length`, `max_drop_share`, `steps` (null where nothing is trained), `samples` (completions of a
    prompt where nothing is trained, else null), `rows`, `tokens` and `trained_tokens` of all sources, `cache`
    (the folder of the tables), `heldout_source` (of a source of its own for the held-out rows what the others
    have; else null), and for each source `lengths` as `lengths_of` gives them. Of rows that are refused
    because too many are dropped, or shown too often, it says all the same what they are. A source of which
    nothing is left has no shares, and its `lengths` are null; shares and steps are then those of the others
    without it (`steps` null, and no facts on the mixture, where all are).

    Raises:
        RequestError: a run would refuse before there are rows to describe; of refused rows, all that are.
        WorkError: the disk refuses, or data.prepare_timeout has run out.
    """
    run = RunDir(Path(recipe.output_dir, recipe.name))
    resumes = run.check_same(recipe)
    if isinstance(recipe, TrainRecipe):
        batch_plan(recipe.train, 1)  # what one rank cannot split, no number of them can
        ScoreStore(run.path).rows()
    gone: dict[str, Table] = {}
    try:
        rows: _Rows | None = _rows(recipe)
        refused = _refused_changes(recipe, run, rows.prepared)
    except Unprepared as error:
        raise RequestError(error.everything()) from None
    except RequestError as error:
        refused = error
        try:
            rows, gone = _rows_left(_allowing_more(recipe))
        except Unprepared as other:
            raise RequestError(f"{refused}\n{other.everything()}") from None
        except PosttrainError:
            raise refused from None
    return {"run": str(run.path), "resumes": resumes} | _described(recipe, rows, gone), refused


def _rows(recipe: Recipe) -> _Rows:
    """The rows as the stage prepares them, with its tokenizer and no model. Raises as the stage does."""
    if isinstance(recipe, TrainRecipe):
        data = prepare_run(recipe)
        return _Rows(data.prepared, data.rows, data.steps)
    init = None if recipe.model.init is None else resolve(recipe.model.init)[0]
    tokenizer, _ = text_of(recipe, init)
    return _Rows(*prepare_prompts(recipe, tokenizer), None)


def _allowing_more(recipe: Recipe) -> Recipe:
    """`recipe` with the same tables and mixture, but without limits on dropped rows and repeats."""
    more = copy.deepcopy(recipe)
    more.data.max_drop_share = 1.0
    for source in more.data.sources:
        source.max_repeats = None
    return more


def _rows_left(recipe: Recipe) -> tuple[_Rows | None, dict[str, Table]]:
    """The rows without the sources of which nothing is left, None where all are; and those by name."""
    gone: dict[str, Table] = {}
    while recipe.data.sources:
        try:
            return _rows(recipe), gone
        except TooManyDropped as error:
            gone[error.source] = error.table
            left = [source for source in recipe.data.sources if source.name != error.source]
            if len(left) == len(recipe.data.sources):  # that of the held-out rows
                recipe.evaluate.heldout = None
            recipe.data.sources = left
    return None, gone


def _refused_changes(recipe: Recipe, run: RunDir, prepared: Prepared) -> RequestError | None:
    refuse = refuse_changed_rows if isinstance(recipe, TrainRecipe) else refuse_changed_prompts
    try:
        refuse(run, prepared, recipe_hash(recipe))
    except RequestError as error:
        return error
    return None


def _described(recipe: Recipe, rows: _Rows | None, gone: dict[str, Table]) -> dict[str, Any]:
    facts: dict[str, Any] = {"sources": []}
    if rows is not None:
        facts = manifest(rows.prepared, rows.taken)
        for source, table in zip(facts["sources"], rows.prepared.tables, strict=True):
            source["lengths"] = _lengths(table)
    left = {source["name"]: source for source in facts["sources"]}
    facts["sources"] = [
        left.get(source.name) or _nothing_left(source, gone[source.name])
        for source in recipe.data.sources
        if source.name in left or source.name in gone
    ]
    totals = {
        name: sum(source[of] for source in facts["sources"])
        for name, of in (("rows", "rows_kept"), ("tokens", "tokens"), ("trained_tokens", "trained_tokens"))
    }
    trains = isinstance(recipe, TrainRecipe)
    return {
        "stage": recipe.stage,
        "name": recipe.name,
        "shape": shape_of(recipe),
        "max_length": recipe.data.max_length,
        "max_drop_share": recipe.data.max_drop_share,
        "steps": rows and rows.steps,
        "samples": None if trains else recipe.rollout.num_generations,
        **totals,
        "cache": str(cache_root(recipe.data)),
        "heldout_source": _heldout_source(recipe, rows and rows.prepared, gone),
        **facts,
    }


def _nothing_left(source: Source, table: Table) -> dict[str, Any]:
    return described(source, table) | {"lengths": None}


def _heldout_source(
    recipe: Recipe, prepared: Prepared | None, gone: dict[str, Table]
) -> dict[str, Any] | None:
    heldout = recipe.evaluate.heldout if isinstance(recipe, TrainRecipe) else None
    if heldout is None or heldout.source is None:
        return None
    if heldout.source.name in gone:
        return _nothing_left(heldout.source, gone[heldout.source.name])
    if prepared is None or prepared.heldout_table is None:
        return None
    (part,) = prepared.heldout_table.tables
    return described(heldout.source, part) | {"lengths": _lengths(part)}


def _lengths(table: Table) -> dict[str, Any]:
    """Of all rows of the source, the held-out ones included; of pairs, of each side."""
    return lengths_of(complete(table).lengths)
