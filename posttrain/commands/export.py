"""Writes a checkpoint as a plain model that anything can load: adapters merged, safetensors, tokenizer, card."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from posttrain.base.files import write_text
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError, WorkError
from posttrain.models.load import load_scored
from posttrain.report.card import model_card
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.reading import RunData


def export(reference: str, out: Path, dtype: str = "auto") -> Path:
    """Export the checkpoint `reference` to the new folder `out`.

    Raises `RequestError` where `out` exists or `reference` is no model, `WorkError` where the disk refuses; then
    nothing is left behind.
    """
    if out.exists():
        raise RequestError(f"{out} exists already; export writes a new folder")
    path, parent = ckpt.resolve(reference)
    tokenizer = load_tokenizer(path)
    model = load_scored(path, "cpu")
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    elif (Path(path) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(path).merge_and_unload()
    if dtype != "auto":
        model = model.to(getattr(torch, dtype))
    tmp = out.with_name(f".tmp-{out.name}")
    try:
        with ckpt.clean_on_error(tmp, True):
            shutil.rmtree(tmp, ignore_errors=True)
            model.save_pretrained(tmp)
            tokenizer.save_pretrained(tmp)
            if parent is not None:
                card = model_card(RunData.load(Path(parent["run"])), parent["checkpoint"])
                write_text(tmp / "README.md", card)
            tmp.rename(out)
    except (OSError, SafetensorError) as error:  # the latter from a full disk
        reason = getattr(error, "strerror", None) or error
        raise WorkError(f"{out} cannot be written: {reason}. Nothing is left of it") from error
    return out
