"""Recipes: what may be said (`schema`, `stages`), strict loading (`load`), impossible combinations (`rules`)."""

from posttrain.recipe.load import diff, flatten, load, load_stage, recipe_hash, to_dict, to_yaml
from posttrain.recipe.stages import STAGES, DpoRecipe, Pipeline, Recipe, RlvrRecipe, SftRecipe

__all__ = [
    "STAGES",
    "DpoRecipe",
    "Pipeline",
    "Recipe",
    "RlvrRecipe",
    "SftRecipe",
    "diff",
    "flatten",
    "load",
    "load_stage",
    "recipe_hash",
    "to_dict",
    "to_yaml",
]
