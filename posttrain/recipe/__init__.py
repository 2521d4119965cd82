"""Recipes: which keys a YAML file may have (`recipes`, `schema`, `sections`), strict loading (`reading`,
`build`, `load`), what resolvers give (`written`), what is no default (`sparse`), the combinations that cannot
work (`rules`), sweeps over keys (`sweep`), the arithmetic of batches and steps (`plan`), and what decides
each setting of the libraries below (`library_fields`).

Left out: checks that need other files, or the registries of tasks and rewards (stages/preflight.py). Imports
`posttrain.errors` and omegaconf; no torch, so that `posttrain check` starts quickly.
"""

from posttrain.recipe.load import as_written, changes, diff, load, load_stage, recipe_hash, to_dict, to_yaml
from posttrain.recipe.recipes import (
    STAGES,
    DpoRecipe,
    PairsRecipe,
    PassRateRecipe,
    Pipeline,
    Recipe,
    RlvrRecipe,
    RolloutRecipe,
    SampleRecipe,
    SftRecipe,
    TrainRecipe,
)
from posttrain.recipe.written import flatten

__all__ = [
    "STAGES",
    "DpoRecipe",
    "PairsRecipe",
    "PassRateRecipe",
    "Pipeline",
    "Recipe",
    "RlvrRecipe",
    "RolloutRecipe",
    "SampleRecipe",
    "SftRecipe",
    "TrainRecipe",
    "as_written",
    "changes",
    "diff",
    "flatten",
    "load",
    "load_stage",
    "recipe_hash",
    "to_dict",
    "to_yaml",
]
