"""Optimizers while a run trains: the engines under which they are exact, the weights that are saved and
measured, and their state as it is loaded.

Left out: names, packages and arguments (recipe/optimizers.py).
"""

from __future__ import annotations

import importlib
import logging
from contextlib import AbstractContextManager
from typing import Any

import torch

from posttrain.base.process import flag
from posttrain.errors import RequestError
from posttrain.recipe.optimizers import LIMIT, LIMITED, USABLE
from posttrain.recipe.schema import Train

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
    engine = next((e for e in ("DeepSpeed", "FSDP") if flag(f"ACCELERATE_USE_{e.upper()}")), None)
    if engine and (why := USABLE[train.optim].whole):
        raise RequestError(
            f"train.optim = {train.optim} cannot be used under {engine}: {why}; use launch/ddp.yaml, or "
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


def loadable(optim: str) -> AbstractContextManager:
    """While it is entered, torch loads the objects that the state of this optimizer holds."""
    places = OBJECTS.get(optim.partition("_")[0], ())
    return torch.serialization.safe_globals(
        [getattr(importlib.import_module(module), name) for module, name in places]
    )
