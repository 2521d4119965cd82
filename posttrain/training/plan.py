"""Batch and step arithmetic. Imports no torch: `posttrain check` uses it too."""

from __future__ import annotations

import math
from dataclasses import dataclass

from posttrain.errors import RequestError
from posttrain.recipe.schema import Train


@dataclass(frozen=True)
class BatchPlan:
    """global_batch_size = micro * ranks * accumulation."""

    micro: int
    ranks: int
    accumulation: int
    global_batch_size: int


def batch_plan(train: Train, ranks: int) -> BatchPlan:
    """Accumulation from global batch, micro-batch and ranks. Raises `RequestError` where it is not whole."""
    step = train.per_device_train_batch_size * ranks
    if train.global_batch_size % step:
        raise RequestError(
            f"train.global_batch_size = {train.global_batch_size} cannot be split over {ranks} rank(s) with "
            f"train.per_device_train_batch_size = {train.per_device_train_batch_size}: "
            f"it must be a multiple of {step}"
        )
    return BatchPlan(
        train.per_device_train_batch_size,
        ranks,
        train.global_batch_size // step,
        train.global_batch_size,
    )


def steps_of(train: Train, examples_per_epoch: int) -> int:
    """Optimizer steps of a run: `max_steps`, or the epochs in whole batches, rounded up."""
    if train.max_steps is not None:
        return train.max_steps
    exact = train.num_train_epochs * examples_per_epoch / train.global_batch_size
    return max(1, math.ceil(round(exact, 6)))
