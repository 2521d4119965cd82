"""What every library raises where a disk is full; `/dev/full` is one."""

from __future__ import annotations

import errno
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from posttrain.base.disk import no_space, why_unwritten
from posttrain.base.exit_codes import exit_code_of

FULL = "/dev/full"


def _open():
    return open(FULL, "wb", buffering=0)


def _text() -> None:
    with open(FULL, "w") as file:
        json.dump(list(range(10_000)), file)


WRITERS = {
    "text": _text,
    "torch": lambda: torch.save({"x": torch.zeros(1000)}, FULL),
    "numpy": lambda: np.savez(_open(), x=np.zeros(1000)),
    # a name would be removed after the failure
    "parquet": lambda: pq.write_table(pa.table({"x": list(range(1000))}), pa.OSFile(FULL, "wb")),
    "tokenizer": lambda: Tokenizer(models.BPE()).save(FULL),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_called_one(kind, capsys):
    with pytest.raises(Exception) as caught:
        WRITERS[kind]()
    assert why_unwritten(caught.value) == "the disk is full"
    assert exit_code_of(WRITERS[kind]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the disk is full") and "make room and run the same command again" in said


def test_safetensors(tmp_path):
    """It writes a temporary file first, so its words stand for it."""
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert no_space(RuntimeError(text)) == "the disk is full"
    with pytest.raises(Exception) as caught:
        save_file({"x": torch.zeros(10)}, tmp_path / "none" / "x.safetensors")
    assert no_space(caught.value) is None


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EDQUOT, "the disk quota is used up"), (errno.EFBIG, "ulimit -f")]
)
def test_quotas_and_limits(number, words):
    assert words in no_space(OSError(number, "x"))
    assert words in no_space(RuntimeError(f"io (os error {number})"))
    assert no_space(OSError(errno.EACCES, "x")) is None


def test_the_cause_counts():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("could not be saved")
    except RuntimeError as error:
        assert no_space(error) == "the disk is full"


def test_out_of_memory_is_a_sentence(capsys):
    def work() -> None:
        raise MemoryError

    assert exit_code_of(work) == 1
    assert capsys.readouterr().err == "error: out of memory\n"
