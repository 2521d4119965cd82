"""`posttrain export`: a checkpoint as a plain model that anything can load.

Adapters are merged; weights are safetensors, with tokenizer, generation config and model card. What was
written is loaded again and compared (`models/exporting.py`); posttrain/rundir/README.md lists what travels.
Left out: other formats, uploads, models with code of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.base.disk import why_unwritten
from posttrain.base.files import write_text
from posttrain.base.new_folder import new_folder
from posttrain.base.stop import StopRequest
from posttrain.commands.arguments import CHECKPOINT
from posttrain.errors import RequestError, WorkError
from posttrain.report.card import model_card
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapter_fit import refuse_unfit
from posttrain.rundir.adapters import tokenizer_place
from posttrain.rundir.reading import RunData

if TYPE_CHECKING:
    from posttrain.models.exporting import Proof


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
    out = Path(options.out).expanduser()
    try:
        with StopRequest():  # SIGTERM, too, interrupts and so leaves nothing behind
            proof = export(options.checkpoint, out, options.dtype)
    except KeyboardInterrupt:
        raise WorkError(
            f"interrupted; nothing of {out} is left behind, and the same command starts over"
        ) from None
    print(f"exported: {out} (largest difference of a logit {proof.difference:.1e}, bound {proof.bound:.1e})")


def export(reference: str, out: Path, dtype: str = "auto") -> Proof:
    """Exports the checkpoint `reference` to the new folder `out`.

    Returns:
        How far the logits of what was written, loaded by stock transformers, are from the checkpoint's.

    Raises:
        RequestError: `out` exists or is inside checkpoints, or `reference` is not a model.
        WorkError: the file system refuses, another process made `out`, or the export is not the checkpoint;
            nothing is left behind.
    """
    from safetensors import SafetensorError

    from posttrain.data.tokenizers import load_tokenizer
    from posttrain.models.exporting import write_plain

    if out.exists():
        raise RequestError(f"{out} exists already; export writes to a new folder")
    path, parent = ckpt.resolve(reference)
    _refuse_inside(out, Path(path))
    refuse_unfit(path, quantized=False)
    tokenizer = load_tokenizer(tokenizer_place(path))
    try:
        with new_folder(out) as folder:
            proof = write_plain(path, folder, tokenizer, dtype)
            if parent is not None:
                card = model_card(RunData.load(Path(parent["run"])), parent["checkpoint"])
                write_text(folder / "README.md", card)
    except (OSError, SafetensorError) as error:  # the latter from a full disk
        reason = why_unwritten(error)
        raise WorkError(f"{out} cannot be written: {reason}. Nothing of it is left behind") from error
    return proof


def _refuse_inside(out: Path, source: Path) -> None:
    """Raises `RequestError` where `out` would be among the files of a model or the checkpoints of a run."""
    for above in out.resolve().parents:
        run = above.name == "checkpoints" and (above.parent / "run.json").is_file()
        if run or (above / "COMPLETE").is_file() or (source.is_dir() and above == source.resolve()):
            what = "the checkpoints of a run" if run else "a model"
            raise RequestError(f"{out} is inside {above}, the folder of {what}; export to another place")
