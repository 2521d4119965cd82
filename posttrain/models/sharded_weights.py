"""What DeepSpeed and FSDP2 load of a checkpoint to resume a run, compared by name and shape with the model.

Of an adapter both engines take what their own files have and leave the rest as it is; ZeRO lays flat numbers
over the weights in the order of the model. Only names and shapes are read. Under FSDP2 this was run by
processes without a GPU only. Left out: the files that `from_pretrained` loads (saved_weights.py), which these
engines write besides and do not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from peft import PeftModel
from torch import nn

from posttrain.models.saved_weights import Shapes, refuse_others
from posttrain.rundir.proof import Damaged

MODEL = "*model*.safetensors"
"""Whole weights, or those of an adapter."""
SHAPES = "param_shapes"
"""In DeepSpeed's files: of each group of the optimizer the names and shapes of its weights, in order."""


def refuse_other_zero(engine: Any, folder: Path) -> None:
    """Compares this rank's part of the checkpoint in `folder` with the model of `engine`, DeepSpeed's.

    Raises:
        Damaged: a trained weight is missing, has another shape or another place, or is not the model's.
    """
    latest = folder / "latest"
    if not latest.is_file():
        raise Damaged("latest, which names the folder of DeepSpeed's files, is missing")
    saved = _header(Path(engine._get_ckpt_name(str(folder), latest.read_text().strip())))
    if not engine.zero_optimization():
        _compare(_trained(engine.module), saved["module"], engine.module)
        return
    groups, written = engine._get_zero_param_shapes(), saved[SHAPES]
    wanted = {name: tuple(shape) for group in groups for name, shape in group.items()}
    found = {name: tuple(shape) for group in written for name, shape in group.items()}
    refuse_others(wanted, found, {})
    if [list(group) for group in groups] != [list(group) for group in written]:
        raise Damaged("its files have the weights in another order than the model")


def refuse_other_fsdp(model: nn.Module, folder: Path) -> None:
    """Compares the file that FSDP2 loads from `folder` with `model`, where that is an adapter; a full model
    is loaded whole or not at all.

    Raises:
        Damaged: a trained weight is missing, has another shape, or is not the model's.
    """
    if isinstance(model, PeftModel):
        _compare(_trained(model), _header(folder / f"{FSDP_MODEL_NAME}.bin"), model)


def _trained(model: nn.Module) -> Shapes:
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


def _compare(wanted: Shapes, written: dict[str, torch.Tensor], model: nn.Module) -> None:
    found = {name: tuple(value.shape) for name, value in written.items()}
    refuse_others(wanted, found, {name: tuple(value.shape) for name, value in model.state_dict().items()})


def _header(file: Path) -> dict[str, Any]:
    """The content of `file`; tensors stay on the disk. DeepSpeed's files hold more than tensors: it reads
    them in the same way."""
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)
