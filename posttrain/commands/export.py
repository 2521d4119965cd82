"""`posttrain export`: a checkpoint as a plain model that anything can load.

Adapters are merged; weights are safetensors, with tokenizer and model card. Left out: other formats, uploads.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from posttrain.base.files import write_text
from posttrain.commands.arguments import CHECKPOINT
from posttrain.errors import RequestError, WorkError
from posttrain.report.card import model_card
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapters import tokenizer_place
from posttrain.rundir.reading import RunData


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.add_argument("out", help="a folder that does not exist yet")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights (default: auto, as in the checkpoint)",
    )


def run(options: argparse.Namespace) -> None:
    print(f"exported: {export(options.checkpoint, Path(options.out), options.dtype)}")


def export(reference: str, out: Path, dtype: str = "auto") -> Path:
    """Exports the checkpoint `reference` to the new folder `out`; returns `out`.

    Raises:
        RequestError: `out` exists, or `reference` is not a model.
        WorkError: the file system refuses; nothing is left behind.
    """
    from safetensors import SafetensorError

    from posttrain.data.tokenizers import load_tokenizer

    if out.exists():
        raise RequestError(f"{out} exists already; export writes to a new folder")
    path, parent = ckpt.resolve(reference)
    tokenizer = load_tokenizer(tokenizer_place(path))
    model = _merged(path, dtype)
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
        raise WorkError(f"{out} cannot be written: {reason}. Nothing of it is left behind") from error
    return out


def _merged(path: str, dtype: str) -> Any:
    """The model at `path` without adapters, its weights in `dtype`."""
    import torch

    from posttrain.models.load import load_scored

    model = load_scored(path, "cpu")
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    elif (Path(path) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(path).merge_and_unload()
    return model if dtype == "auto" else model.to(getattr(torch, dtype))
