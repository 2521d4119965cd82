"""What a stage needs before its model is loaded: rows as tokens, the tokenizer, steps.

Left out: the model (`train.py`), the rows themselves (`data/prepare.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.base.process import rank
from posttrain.data.prepare import Prepared
from posttrain.data.prepare import build as prepare
from posttrain.data.template import Template, load_text
from posttrain.recipe import Recipe, SampleRecipe, SftRecipe, TrainRecipe
from posttrain.recipe.plan import rows_needed, shape_of, steps_of
from posttrain.recipe.schema import Loss
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapters import tokenizer_place


@dataclass(frozen=True)
class PreparedRun:
    """The rows of a run and the text side of its model."""

    start: Path | None
    parent: dict[str, Any] | None
    tokenizer: PreTrainedTokenizerBase
    template: Template
    shape: str
    prepared: Prepared
    steps: int
    rows: int
    inputs: dict[str, Any] = field(default_factory=dict)
    """See `inputs.inputs_of`."""


def text_of(recipe: Recipe, init: str | None) -> tuple[PreTrainedTokenizerBase, Template]:
    """(tokenizer, template) of a recipe; `init`: the folder or hub id that `model.init` stands for."""
    return load_text(
        recipe.model, recipe.data.template, init and tokenizer_place(init), recipe.data.template_options
    )


def prepare_run(recipe: TrainRecipe) -> PreparedRun:
    """Tokenised rows and the number of steps. Raises `RequestError` where the mixture cannot feed them."""
    init, parent = (None, None) if recipe.model.init is None else ckpt.resolve(recipe.model.init)
    tokenizer, template = text_of(recipe, init)
    shape = shape_of(recipe)
    # prompts have no turn that is trained; their tables have always been cached under this value
    data = replace(recipe.data, train_on="last") if shape == "prompts" else recipe.data
    prepared = prepare(
        data,
        recipe.loss if isinstance(recipe, SftRecipe) else Loss(),
        tokenizer,
        recipe.evaluate.heldout,
        seed=recipe.train.seed,
        is_main=rank() == 0,
        shape=shape,
    )
    steps = steps_of(recipe, len(prepared.mixture))
    rows = rows_needed(recipe, steps)
    prepared.mixture.check(rows)
    parent = parent or ({"init": recipe.model.init} if recipe.model.init else None)
    return PreparedRun(init and Path(init), parent, tokenizer, template, shape, prepared, steps, rows)


def prepare_prompts(recipe: SampleRecipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Prepared, int]:
    """The prompts of a stage that samples, and how many of them it takes from the start of the mixture.

    Raises `RequestError` as `build` in data/prepare.py.
    """
    prepared = prepare(
        recipe.data, Loss(), tokenizer, seed=recipe.seed, is_main=rank() == 0, shape=shape_of(recipe)
    )
    epoch = len(prepared.mixture)
    return prepared, min(epoch, recipe.max_prompts or epoch)
