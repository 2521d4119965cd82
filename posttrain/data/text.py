"""The text side of a recipe: its tokenizer and template, made to fit each other."""

from __future__ import annotations

from typing import Any

from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.recipe import Recipe


def load_text(recipe: Recipe, start: str) -> tuple[Any, Any]:
    """(tokenizer, template), with every token that the recipe or the template needs.

    `start` is the place that `model.init` stands for; its tokenizer is used where the recipe names none.
    `model.revision` is the model's: a tokenizer named apart is taken as it is.
    """
    model = recipe.model
    revision = None if model.tokenizer else model.revision
    tokenizer = load_tokenizer(model.tokenizer or start, revision, model.trust_remote_code)
    template = load_template(recipe.data.template, tokenizer)
    tokens = [*model.add_tokens, *template.missing_tokens(tokenizer)]
    if tokens:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": tokens}, replace_extra_special_tokens=False
        )
    template.apply_to(tokenizer)
    return tokenizer, template
