"""Recipes: what may be said (`schema`, `sections`, `stages`), strict loading (`load`), impossible combinations (`rules`)."""

from posttrain.recipe.load import diff, flatten, load, load_stage, recipe_hash, to_dict, to_yaml
from posttrain.recipe.recipes import (
    STAGES,
    DpoRecipe,
    PairsRecipe,
    PassRateRecipe,
    Pipeline,
    Recipe,
    RlvrRecipe,
    SampleRecipe,
    SftRecipe,
    TrainRecipe,
)

__all__ = [
    "STAGES",
    "DpoRecipe",
    "PairsRecipe",
    "PassRateRecipe",
    "Pipeline",
    "Recipe",
    "RlvrRecipe",
    "SampleRecipe",
    "SftRecipe",
    "TrainRecipe",
    "diff",
    "flatten",
    "load",
    "load_stage",
    "recipe_hash",
    "to_dict",
    "to_yaml",
]
