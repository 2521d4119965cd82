"""The weights of a checkpoint and the model that they belong to: taken up whole, or compared by name and
shape.

On disk weights may have other names than in the model: transformers keeps the published ones, where an expert
is a tensor of its own. So a checkpoint is read by the code that loads models, never by `load_state_dict`
alone. Left out: the files of engines that shard weights (sharded_weights.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from posttrain.base.whole_weights import REPORTED, differing
from posttrain.rundir.proof import Damaged

ADAPTER_FILES, MODEL_FILES = "adapter_model*.safetensors", "model*.safetensors"
Shapes = dict[str, tuple[int, ...]]


def take_up_weights(model: nn.Module, folder: str | Path) -> None:
    """Gives `model`, whole on this device, the weights of the checkpoint in `folder`: those of its adapter
    where it has one.

    Raises:
        Damaged: the files lack a weight of the model, have it in another shape, or have others.
    """
    if isinstance(model, PeftModel):
        refuse_other_weights(model, Path(folder))  # peft reports no missing bias
        result = model.load_adapter(str(folder), model.active_adapters[0], is_trainable=True)
        found = {"missing_keys": result.missing_keys, "unexpected_keys": result.unexpected_keys}
        _refuse(found | {"mismatched_keys": []})  # peft raises for another shape
        return
    types = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    try:
        saved, found = type(model).from_pretrained(
            folder,
            dtype=types.pop() if len(types) == 1 else torch.float32,  # wide enough to round nothing
            attn_implementation=model.config._attn_implementation,
            **REPORTED,
        )
    except RuntimeError:  # an expert is missing: which, the message does not say
        refuse_other_weights(model, Path(folder))
        raise
    _refuse(found)
    loaded = saved.state_dict()
    for name, first in second_names(model).items():  # of two values the model would take the last
        if not torch.equal(loaded[name], loaded[first]):
            raise Damaged(f"its files have two values of {first} and {name}, which are one weight")
    model.load_state_dict(loaded)


def _refuse(found: dict[str, Any]) -> None:
    if problem := differing(found, unused=True):
        raise Damaged(problem)


def refuse_other_weights(model: nn.Module, folder: Path) -> None:
    """Compares names and shapes of the weights written to `folder` with those of `model`, which may be
    sharded. Not collective: no weight is read.

    Raises:
        Damaged: a weight is missing, has another shape, or does not belong to the model.
    """
    wanted, free = _wanted(model)
    refuse_others(
        wanted, _written(folder, ADAPTER_FILES if isinstance(model, PeftModel) else MODEL_FILES), free
    )


def refuse_others(wanted: Shapes, written: Shapes, free: Shapes) -> None:
    """Raises `Damaged` unless `written` has every weight of `wanted` in its shape, and besides only those of
    `free`, in theirs."""
    known = free | wanted
    _refuse(
        {
            "missing_keys": wanted.keys() - written.keys(),
            "mismatched_keys": [
                (name, shape, known[name])
                for name, shape in written.items()
                if known.get(name, shape) != shape
            ],
            "unexpected_keys": written.keys() - known.keys(),
        }
    )


def _wanted(model: nn.Module) -> tuple[Shapes, Shapes]:
    """What the files of `model` must have, and what they may have besides."""
    state, second = _named(model)
    if isinstance(model, PeftModel):
        name = model.active_adapters[0]
        plain = get_peft_model_state_dict(model, state | second, name, save_embedding_layers=False)
        # peft adds a frozen head or embedding below an adapter
        return _shapes(plain), _shapes(state | second)
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        second |= {name: state.pop(name)} if name in state else {}
    whole = revert_weight_conversion(model, state)
    return _shapes(whole), _shapes(second)


def second_names(model: nn.Module) -> dict[str, str]:
    """Of weights of `model` that have several names, as a tied head: each but the one that they are saved
    under -> that one."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    values = model.state_dict(keep_vars=True)  # the parameters themselves: these know their whole shape
    seen: dict[int, str] = {}
    found = {}
    for name in sorted(values, key=lambda name: name in tied):
        if (first := seen.setdefault(id(values[name]), name)) != name:
            found[name] = first
    return found


def _named(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of `model`, without their content, and those of `second_names`."""
    state, second = {}, {}
    others = second_names(model)
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            continue
        shape = getattr(value, "ds_shape", value.shape)  # under ZeRO-3 `shape` is that of nothing
        (second if name in others else state)[name] = torch.empty(shape, dtype=value.dtype, device="meta")
    return state, second


def _shapes(state: dict[str, torch.Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def _written(folder: Path, pattern: str) -> Shapes:
    """Name -> shape of the weights in `folder`; of the files only the headers are read.

    Raises:
        Damaged: there are none, or one cannot be opened.
    """
    found: Shapes = {}
    for file in sorted(folder.glob(pattern)):
        try:
            with safe_open(file, "pt") as weights:
                names = weights.keys()
                found |= {name: tuple(weights.get_slice(name).get_shape()) for name in names}
        except (OSError, SafetensorError) as error:
            raise Damaged(f"{file.name} cannot be opened ({error})") from None
    if not found:
        raise Damaged(f"no weights were written (there is no {pattern.replace('*', '')})")
    return found
