"""What `model.lora` names of a model: modules, patterns of modules, parameters. peft adapts those that
it finds and says nothing of the others.

Left out: which of them LoRA can adapt (peft, when it attaches the adapter).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D

from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.schema import Lora


def refuse_missing_modules(model: nn.Module, lora: Lora) -> None:
    """Raises `RequestError` for a name or pattern in `lora` that nothing in `model` has, and for olora on a
    Conv1D."""
    modules = {name: module for name, module in model.named_modules() if name}
    options = lora.options
    targets = [name for name in lora.target_modules if name != "all-linear"]
    _found("target_modules", targets, modules, _ends)
    _found("modules_to_save", lora.modules_to_save, modules, _ends)
    for key in ("rank_pattern", "alpha_pattern"):
        _found(f"options.{key}", options.get(key) or {}, modules, _matches)
    excluded = options.get("exclude_modules") or []
    if isinstance(excluded, str):
        _found("options.exclude_modules", [excluded], modules, re.fullmatch)
    else:
        _found("options.exclude_modules", excluded, modules, _ends)
    tokens = options.get("trainable_token_indices")
    _found("options.trainable_token_indices", tokens if isinstance(tokens, dict) else [], modules, _ends)
    parameters = [name for name, _ in model.named_parameters()]
    _found(
        "options.target_parameters", options.get("target_parameters") or [], parameters, _ends, "parameter"
    )
    if options.get("init_lora_weights") == "olora":
        _refuse_transposed(modules, lora.target_modules)


def _ends(wanted: str, name: str) -> bool:
    return f".{name}".endswith(f".{wanted}")


def _matches(pattern: str, name: str) -> bool:
    """As peft's `get_pattern_key`."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _found(
    key: str,
    wanted: Iterable[str],
    names: Iterable[str],
    fits: Callable[[str, str], object],
    what: str = "module",
) -> None:
    for each in wanted:
        try:
            if any(fits(each, name) for name in names):
                continue
        except re.error as error:
            raise RequestError(f"model.lora.{key}: {each!r} is not a regular expression: {error}") from None
        near = did_you_mean(each, {name.rpartition(".")[2] for name in names})
        raise RequestError(f"model.lora.{key}: the model has no {what} {each!r}{near}")


def _refuse_transposed(modules: dict[str, nn.Module], targets: list[str]) -> None:
    """peft's olora takes a part out of the weight as if it were a linear layer's; that of a Conv1D is its
    transpose."""
    for name, module in modules.items():
        if isinstance(module, Conv1D) and any(t == "all-linear" or _ends(t, name) for t in targets):
            raise RequestError(
                f"model.lora.options.init_lora_weights = olora does not work for {name}, a Conv1D, whose "
                "weight is transposed; use pissa or true"
            )
