"""Whether a checkpoint can be resumed under this launch: its engine and number of processes compared with
those that saved it.

Each engine has files of its own for the optimizer, and ZeRO has one of them a rank; what an engine does not
find it leaves out without an error. One process and DDP have the same file, whatever the number of ranks.
Left out: converting the state of one engine into that of another.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import CONFIG_NAME

from posttrain.base.process import world_size
from posttrain.errors import RequestError
from posttrain.models.dropout import NOISE
from posttrain.recipe import SftRecipe, TrainRecipe, recipe_hash
from posttrain.rundir import adapters
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.directory import RunDir
from posttrain.rundir.start_config import start_config
from posttrain.training.engines import engine_asked
from posttrain.training.launcher import hub_config

log = logging.getLogger(__name__)
PLAIN = ("single", "ddp")
"""Engines that write the same files."""
UNUSED = ("summary", "classifier")
"""Of names of dropout in a config: those of heads that no causal language model has."""


class OtherLaunch(RequestError):
    """The engine or the number of processes is another than the run's; nothing is written."""


@dataclass(frozen=True)
class Launch:
    """An engine as `training.engines.engine` names it, or two where files do not tell them apart, and the
    number of its processes."""

    engine: str
    processes: int

    def __str__(self) -> str:
        if self.engine == "single":
            return "one process"
        name = re.sub(r"zero(\d)", r"ZeRO-\1", self.engine)
        name = name if "ZeRO" in name else name.upper()
        return f"{name} on {self.processes} process{'' if self.processes == 1 else 'es'}"


def refuse_other_engine(run: RunDir, recipe: TrainRecipe) -> None:
    """Raises `RequestError` where the newest checkpoint of `run` cannot be resumed under this launch. Reads
    only; a run that has trained to its end passes."""
    wanted = recipe_hash(recipe)
    for facts in ckpt.newest_facts(run.checkpoints):
        if facts.get("resumable") and facts.get("recipe_hash") == wanted:
            path = run.checkpoints / ckpt.name_of(facts["step"])
            before, now = saved_under(path, facts), launched()
            if before is None:
                return  # its files are read first: it may be damaged
            if "engine" not in facts:
                log.info("%s does not say under which engine it was saved; by its files, %s", path, before)
            refuse(path, facts, recipe, run.info().get("steps"))
            if before != now:
                log.info("%s was saved under %s, this launch is %s", path, before, now)
            return


def refuse(
    path: Path, facts: dict[str, Any], recipe: TrainRecipe, steps: int | None, model: nn.Module | None = None
) -> None:
    """Raises `OtherLaunch` where the checkpoint in `path` is not the last of `steps` (None: unknown) and
    training cannot go on from it under this launch. `model`: see `obstacle`."""
    if (steps is None or facts["step"] < steps) and (problem := obstacle(path, facts, recipe, model)):
        raise OtherLaunch(
            f"{path} {problem}. Resume with the launch config and the number of processes that saved it; or "
            f"begin a new run from its weights alone: name=... model.init={path}"
        )


def launched() -> Launch:
    """This launch."""
    return Launch(engine_asked(), world_size())


def obstacle(
    path: Path, facts: dict[str, Any], recipe: TrainRecipe, model: nn.Module | None = None
) -> str | None:
    """Why training cannot go on from the checkpoint in `path` under this launch, behind its name; None where
    it can. `model`: the one that is trained; before it is loaded its config is asked, which may not be
    there."""
    before, now = saved_under(path, facts), launched()
    if before is None:
        return (
            "does not say under which engine it was saved, neither by its files nor in run.json, and cannot "
            f"be resumed under {now}"
        )
    if same_files(before, now) and before.processes == now.processes:
        return None
    what = f"was saved under {before} and cannot be resumed under {now}"
    if not same_files(before, now):
        return f"{what}: the state of the optimizer cannot be taken over"
    if noise := _noise(path, recipe, model):
        return f"{what}: {noise} draws from a random state of each process"
    return None


def same_files(before: Launch, now: Launch) -> bool:
    """Whether the engine of `now` takes up the whole optimizer that `before` has saved."""
    if before.engine in PLAIN:
        return now.engine in PLAIN
    return now.engine in before.engine.split(" or ") and before.processes == now.processes


def saved_under(path: Path, facts: dict[str, Any]) -> Launch | None:
    """What saved the checkpoint in `path`, by its `facts`, its files or the run.json of its run; None where
    none of them says it."""
    if "engine" in facts and "world_size" in facts:
        return Launch(facts["engine"], facts["world_size"])
    engine = _by_files(path)
    if engine is not None:
        return Launch(engine, max(1, len(list(path.glob("rng_state_*.pth")))))
    info = RunDir(path.parent.parent).info()
    if "engine" in info and "world_size" in info:
        return Launch(info["engine"], info["world_size"])
    return None


def _by_files(path: Path) -> str | None:
    """The engine of a checkpoint of an earlier version, which did not say it."""
    if any(path.glob("global_step*/*zero_pp_rank_*_optim_states.pt")):
        parts = any(path.glob("global_step*/*zero_pp_rank_*_model_states.pt"))
        return "zero3" if parts else "zero1 or zero2"
    if any(path.glob("global_step*/mp_rank_*_model_states.pt")):
        return "zero0"
    if (path / "optimizer.bin").is_file():
        return "fsdp2"
    if (path / "optimizer.pt").is_file():
        return "ddp" if any(path.glob("rng_state_*.pth")) else "single"
    return None


def _noise(path: Path, recipe: TrainRecipe, model: nn.Module | None) -> str | None:
    """What of `recipe` draws random numbers in a step; the other stages train without, see
    models/dropout.py."""
    if not isinstance(recipe, SftRecipe):
        return None
    if recipe.model.lora is not None and recipe.model.lora.dropout:
        return "model.lora.dropout"
    if recipe.train.extra.get("neftune_noise_alpha"):
        return "train.extra.neftune_noise_alpha"
    for name, value in _in_model(model) if model is not None else _in_config(path, recipe):
        if isinstance(value, float) and value and any(word in name for word in NOISE):
            return f"{name} of the model"
    return None


def _in_model(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of what the modules of `model` have, that of a dropout under the module's own name."""
    for place, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield f"{place} (dropout)", module.p
        else:
            yield from vars(module).items()


def _in_config(path: Path, recipe: TrainRecipe) -> Iterator[tuple[str, Any]]:
    """As `_in_model`, of the config of the model that is trained, as far as it can be read; a default of the
    library may not be in it."""
    model, place = recipe.model, None
    with contextlib.suppress(RequestError):  # whoever loads the model says why
        if (path / CONFIG_NAME).is_file():  # not in a checkpoint of an adapter
            place = path
        elif model.from_config is None:
            place = adapters.chain(ckpt.resolve(str(model.init))[0])[-1]
        values = start_config(model, place, hub_config)
        yield from ((name, value) for name, value in values.items() if not name.startswith(UNUSED))
