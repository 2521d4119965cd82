"""A million rows, a gigabyte: prepared in less memory, all processes together, and taken up after a kill.

Takes minutes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import ROOT

ROWS, BYTES = 1_000_000, 1000
LIMIT_MIB = 1e9 / 2**20
EVERY = 0.2
"""Seconds between two looks at the memory."""
RECIPE = """
stage: sft
name: million
output_dir: {out}
model:
  tokenizer: {tokenizer}
  from_config: {{model_type: llama, options: {{hidden_size: 64, max_position_embeddings: 2048}}}}
data:
  template: chatml
  cache_dir: {out}/cache
  sources: [{{name: million, path: {rows}}}]
train: {{learning_rate: 1.0e-3, global_batch_size: 8, max_steps: 10}}
"""


@pytest.fixture(scope="module")
def million(tmp_path_factory) -> Path:
    """Rows of some 1,000 bytes, of 5,000 words, no two alike."""
    folder = tmp_path_factory.mktemp("million")
    dice = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(dice.choices(letters, k=dice.randint(2, 9))) for _ in range(5000)]
    texts = [" ".join(dice.choices(words, k=70)) for _ in range(4000)]
    with open(folder / "rows.jsonl", "w") as file:
        for i in range(ROWS):
            row = {"prompt": f"{i} {texts[i % 3989]}", "completion": f"{texts[i % 4000]} {i}"}
            file.write(json.dumps(row) + "\n")
    assert (folder / "rows.jsonl").stat().st_size > 0.8 * ROWS * BYTES
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, special_tokens=special)
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    text = RECIPE.format(out=folder, tokenizer=folder / "tokenizer", rows=folder / "rows.jsonl")
    (folder / "million.yaml").write_text(text)
    return folder


@dataclass
class Peaks:
    """MiB at most: of one process, and of all together, where what they share counts once (PSS)."""

    largest: float = 0.0
    together: float = 0.0

    def take(self, processes: list[psutil.Process]) -> None:
        together = 0.0
        for each in processes:
            try:
                self.largest = max(self.largest, each.memory_info().rss / 2**20)
                lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
            except (psutil.Error, OSError):  # it has ended
                continue
            together += sum(int(line.split()[1]) / 2**10 for line in lines if line.startswith("Pss:"))
        self.together = max(self.together, together)


def prepare(folder: Path, peaks: Peaks, until=lambda: False) -> tuple[int, float, str]:
    """(exit code, seconds, what it said); killed once `until()`."""
    began = time.monotonic()
    with open(folder / "said.txt", "w") as said:
        process = psutil.Popen(
            [sys.executable, "-m", "posttrain.cli", "prepare", str(folder / "million.yaml")],
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            with suppress(psutil.Error):  # it ended meanwhile
                peaks.take([process, *process.children(recursive=True)])
            if until():
                process.kill()
            time.sleep(EVERY)
        process.wait()
    return process.returncode, time.monotonic() - began, (folder / "said.txt").read_text()


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_a_million_rows(million):
    def some() -> bool:
        parts = list((million / "cache/tables").glob(".partial-*/progress.json"))
        try:
            return bool(parts) and json.loads(parts[0].read_text())["state"]["read"] > ROWS // 4
        except (OSError, ValueError):
            return False

    peaks = Peaks()
    code, first_s, said = prepare(million, peaks, some)
    assert code == -9, said[-2000:]
    (part,) = (million / "cache/tables").glob(".partial-*")
    kept = json.loads((part / "progress.json").read_text())["state"]["read"]
    code, second_s, said = prepare(million, peaks)
    assert code == 0, said[-2000:]
    (table,) = (f for f in (million / "cache/tables").iterdir() if f.is_dir())
    facts = json.loads((table / "table.json").read_text())
    assert facts["rows_read"] == facts["rows_kept"] == ROWS
    print(
        f"{ROWS:,} rows, {facts['tokens']:,} tokens; killed after {kept:,}, {first_s:.0f} s; the rest in "
        f"{second_s:.0f} s ({(ROWS - kept) / second_s:,.0f} rows/s, start and counting included); at most "
        f"{peaks.together:.0f} MiB together, {peaks.largest:.0f} MiB the largest process"
    )
    assert max(peaks.largest, peaks.together) < LIMIT_MIB
    assert second_s < first_s * (ROWS - kept) / kept * 1.5 + 30, "what was kept is not made again"
