"""Optimizers while a run trains: the engines under which they are exact, the weights that are saved and
measured, and their state as it is loaded.

Left out: names, packages and arguments (recipe/optimizers.py).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from posttrain.errors import RequestError
from posttrain.recipe.optimizers import LIMIT, LIMITED, USABLE
from posttrain.recipe.schema import Train
from posttrain.training.engines import engine_asked

log = logging.getLogger(__name__)
OBJECTS = {
    "galore": (("galore_torch.galore_projector", "GaLoreProjector"),),
    "apollo": (
        ("apollo_torch.svd_projector", "GaLoreProjector"),
        ("apollo_torch.random_projector", "GradientProjector"),
    ),
}
"""Family -> classes of which its state holds objects."""


def refuse_optimizer(train: Train) -> None:
    """Raises `RequestError` where the launcher shards the weights and the optimizer needs them whole; warns
    of what is not measured."""
    if (asked := engine_asked()) not in ("single", "ddp") and (why := USABLE[train.optim].whole):
        name = "FSDP" if asked == "fsdp2" else "DeepSpeed"
        raise RequestError(
            f"train.optim = {train.optim} cannot be used under {name}: {why}; use launch/ddp.yaml, or "
            "train.optim = adamw_torch"
        )
    if train.optim in LIMITED:
        log.warning("train.optim = %s: %s", train.optim, LIMIT)


def to_evaluation_point(optimizer: Any) -> None:
    """Has the model hold the weights that are to be saved and measured.

    Schedule-free optimizers (arXiv 2405.15682) take gradients at y and are evaluated at the average x. The
    trainer's next step returns to y, whether the run goes on or is resumed. Others have one point.
    """
    if hasattr(optimizer, "eval"):
        optimizer.eval()


def is_stateless(optim: str, optimizer: Any) -> bool:
    """Whether `optimizer` keeps nothing from step to step: SGD without momentum."""
    return optim == "sgd" and not optimizer.defaults["momentum"]


@contextlib.contextmanager
def loaded_as_saved(optim: str, optimizer: Any) -> Iterator[None]:
    """While it is entered, `optimizer` (None: one of an engine with files of its own) takes up its state as
    it was saved: with the objects that it holds, and in its own types.

    torch rounds state to the type of its weight: beside bf16 weights, the fp32 moments of Adafactor.
    """
    places = OBJECTS.get(optim.partition("_")[0], ())
    found = [getattr(importlib.import_module(module), name) for module, name in places]
    plain = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has it
    with torch.serialization.safe_globals(found), contextlib.ExitStack() as hooks:
        if isinstance(plain, torch.optim.Optimizer):
            saved: dict[int, dict[str, Any]] = {}
            before = plain.register_load_state_dict_pre_hook(lambda _, given: saved.update(given["state"]))
            after = plain.register_load_state_dict_post_hook(lambda it: _unround(it, saved))
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield


def _unround(optimizer: torch.optim.Optimizer, saved: dict[int, dict[str, Any]]) -> None:
    """Puts back what was loaded in another type; `saved` numbers the weights in the order of the groups."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, state in saved.items():
        now = optimizer.state[weights[number]]
        for key, value in state.items():
            if type(value) is torch.Tensor and key != "step" and now[key].dtype != value.dtype:
                now[key] = value.to(now[key].device, copy=True)
