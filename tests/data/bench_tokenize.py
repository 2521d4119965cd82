"""Rate of tokenising against the tokenizer alone: `python tests/data/bench_tokenize.py`.

Prints tokens a second of `tokenizer(text)` on rendered rows and of a whole table (read, rendered, tokenised,
proved, written) with one process and with as many as there are cores, and their ratios, for short and long
conversations; and beside it what TRL does for each row with `assistant_only_loss`, `apply_chat_template` with
the mask of the assistant's tokens. The BPE tokenizer is trained on GSM8K, its rules are those of Qwen's.
Left out: decoders that are not byte-level, batches of the tokenizer on several threads.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import trl
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from posttrain.base.process import usable_cores
from posttrain.data.prepare import build
from posttrain.data.template import load_template
from posttrain.recipe.schema import Data, Loss, Source

DATA = Path(os.environ.get("POSTTRAIN_DATA", Path(__file__).resolve().parents[3] / "shared/data"))
ROUNDS = 5
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex("|".join(PIECES)), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


def conversations(rows: list[dict], turns: int, count: int) -> list[list[dict]]:
    made = []
    for i in range(count):
        chosen = [rows[(i * turns + k) % len(rows)] for k in range(turns)]
        made.append(
            [
                {"role": role, "content": row[key]}
                for row in chosen
                for role, key in (("user", "question"), ("assistant", "answer"))
            ]
        )
    return made


def table(path: Path, text_of, processes: int) -> float:
    """Seconds of a table, from the file to the finished folder."""
    with tempfile.TemporaryDirectory() as cache:
        data = Data(
            [Source("rows", path=str(path))],
            template="chatml",
            max_length=1 << 20,
            cache_dir=cache,
            num_proc=processes,
        )
        began = time.perf_counter()
        build(data, Loss(), text_of)
        return time.perf_counter() - began


def masked(made: list[list[dict]], text_of, source: str) -> float:
    """Seconds of the masks of transformers, by a template with `{% generation %}` marks."""
    began = time.perf_counter()
    for each in made:
        text_of.apply_chat_template(
            each, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
        )
    return time.perf_counter() - began


def main() -> None:
    rows = [json.loads(line) for line in (DATA / "gsm8k/train.jsonl").read_text("utf-8").splitlines()]
    text_of = tokenizer([row["question"] + row["answer"] for row in rows])
    template = load_template("chatml", text_of)
    cores = usable_cores()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("tokenizers", "transformers"))
    print(f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, {versions}")
    marks = (Path(trl.__file__).parent / "chat_templates/qwen2_5_training.jinja").read_text("utf-8")
    print("| turns | tokens a row | tokenizer | table | ratio | processes | faster | masks of transformers |")
    print("|---|---|---|---|---|---|---|---|")
    for turns, count in ((1, 12000), (4, 4000), (16, 1000)):
        made = conversations(rows, turns, count)
        texts = [template.render(each) for each in made]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in made))
            found = []
            for _ in range(ROUNDS):  # one after the other, so that a slow moment hits all of them
                began = time.perf_counter()
                tokens = sum(len(text_of(text, add_special_tokens=False)["input_ids"]) for text in texts)
                raw = time.perf_counter() - began
                found.append(
                    (raw, table(path, text_of, 1), table(path, text_of, cores), masked(made, text_of, marks))
                )
        # the best of each: what else runs on a machine only makes it slower
        raw, one, many, theirs = (min(each) for each in zip(*found, strict=True))
        cells = (
            turns,
            f"{tokens / count:.0f}",
            f"{tokens / raw:,.0f}",
            f"{tokens / one:,.0f}",
            f"{raw / one:.2f}",
            cores,
            f"{one / many:.2f}",
            f"{tokens / theirs:,.0f}",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
