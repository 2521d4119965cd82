"""The rules of `model.attention`: its names, the types of weights that flash attention takes, and the package
that attention kernels of the hub need.

Left out: what `auto` picks (models/load.py).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems, shown
from posttrain.recipe.recipes import Recipe, TrainRecipe

IMPLEMENTATIONS = (
    "auto",
    "sdpa",
    "eager",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
)
PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    "flash_attention_4": ("flash_attn", "flash-attn-4"),
}
"""Implementation -> the module that it needs, and the package that has it."""
HUB = re.compile(r"[^/:\s]+/[^/:\s]+(?:@[^/:\s]+)?(?::[^/:\s]+)?")
"""A kernel of the hub, as transformers reads it: owner/name, then @revision, then :function."""


def attention(recipe: Recipe, problems: Problems) -> None:
    at, chosen = "model.attention", recipe.model.attention
    if HUB.fullmatch(chosen):
        _kernels_package(at, chosen, problems)
    elif chosen not in IMPLEMENTATIONS:
        near = did_you_mean(chosen, IMPLEMENTATIONS)
        problems.add(at, f"{at} = {shown(chosen)}{near}, or a kernel of the hub (kernels-community/...)")
        return
    _half_precision(at, recipe, problems)


def lacking(chosen: str) -> str:
    """A sentence about the package that `model.attention = chosen` needs and this machine lacks; else empty.
    With the package `kernels` transformers gets flash attention from the hub."""
    if chosen not in PACKAGES:
        return ""
    module, package = PACKAGES[chosen]
    kernels = importlib.util.find_spec("kernels")
    if kernels is not None and kernels.origin:
        return ""
    found = importlib.metadata.packages_distributions().get(module, [])  # two of them have one module
    if package in {name.replace("_", "-").lower() for name in found}:
        return ""
    return (
        f"model.attention = {chosen} needs the package {package}, which is not installed; see "
        "posttrain/models/README.md, or use model.attention: sdpa"
    )


def _kernels_package(at: str, chosen: str, problems: Problems) -> None:
    spec = importlib.util.find_spec("kernels")
    if spec is not None and spec.origin is None:  # a folder of that name, such as that of this project
        folder = next(iter(spec.submodule_search_locations or ()), "a folder")
        problems.add(
            at,
            f"{at} = {chosen} needs the package `kernels`, which is not installed: {folder} only has its "
            "name; pip install kernels, or use another model.attention",
        )


def _half_precision(at: str, recipe: Recipe, problems: Problems) -> None:
    """Flash attention takes half precision only: from the weights, or from mixed precision."""
    m = recipe.model
    wide = m.dtype in ("auto", "float32") and m.quantization is None  # quantised weights compute in bfloat16
    if "flash" not in m.attention or not wide:
        return
    if not isinstance(recipe, TrainRecipe):
        remedy = "set model.dtype: bfloat16"
    elif recipe.train.bf16 or recipe.train.fp16:
        return
    else:
        remedy = "set train.bf16: true"
    problems.add(
        at,
        f"{at} = {m.attention} takes bfloat16 and float16 only, and model.dtype = {m.dtype} computes in "
        f"float32; {remedy}, or model.attention: sdpa",
    )
