"""Chooses one of a few launch configurations by timing each once on this GPU, and remembers the choice.

The list is short and fixed, with a few launches each. The choice is kept in the process and in one JSON file
per GPU model in the cache folder (`environment`), so that a later process takes the same configuration and
gives the same bits. The log reports what was chosen and how long the first call took. Without tuning
(POSTTRAIN_KERNELS_AUTOTUNE=0, Triton's interpreter, a stream that is being captured into a graph) the first
of the list is taken. Every shape runs with every configuration; only speed depends on the choice.

Left out: agreement between ranks, each of which tunes for its own GPU.
"""

import json
import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from . import environment

logger = logging.getLogger("posttrain_kernels")
_chosen: dict[tuple[str, str], "Config"] = {}
REPEATS = 5


class Config(NamedTuple):
    block: int  # elements of a tile
    warps: int


def choose(
    name: str, key: str, candidates: Sequence[Config], launch: Callable[[Config], None], device: torch.device
) -> Config:
    """The fastest of `candidates` for `launch`, which must be safe to repeat. `name` is that of the kernel,
    `key` what the choice depends on (shape, dtype). The first candidate is the default."""
    if (name, key) in _chosen:
        return _chosen[name, key]
    if len(candidates) == 1 or device.type != "cuda" or not environment.autotuned():
        return candidates[0]
    if torch.cuda.is_current_stream_capturing():
        return candidates[0]
    file = cache_file(device)
    config = _remembered(file, name, key, candidates)
    if config is None:
        begun = time.perf_counter()
        config = min(candidates, key=lambda c: _milliseconds(launch, c))
        _remember(file, name, key, config)
        logger.info(
            "%s (%s): tile %d, %d warps, the fastest of %d tried in %.1f s, including compilation",
            name,
            key,
            *config,
            len(candidates),
            time.perf_counter() - begun,
        )
    _chosen[name, key] = config
    return config


def cache_file(device: torch.device) -> Path:
    """One file per GPU model and Triton version: a choice is valid only there."""
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name(device)).strip("-")
    return environment.cache_folder() / f"{gpu}-triton-{triton.__version__}.json"


def _milliseconds(launch: Callable[[Config], None], config: Config) -> float:
    launch(config)  # compiles
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        launch(config)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _remembered(file: Path, name: str, key: str, candidates: Sequence[Config]) -> Config | None:
    try:
        config = Config(*json.loads(file.read_text())[name][key])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return config if config in candidates else None


def _remember(file: Path, name: str, key: str, config: Config) -> None:
    """Write the choice, if possible: without it the next process only tunes again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(file.read_text())
        except (OSError, ValueError):
            known = {}
        known.setdefault(name, {})[key] = list(config)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=1) + "\n")
        temporary.replace(file)
    except OSError as error:
        logger.info("the tuned configuration was not saved: %s", error)
