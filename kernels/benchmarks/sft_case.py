"""What `sft_step.py` trains: a Llama made from its config, a vocabulary of numbers, rows of equal length.

Everything is generated, so the benchmark needs no download. All tokens of a row are trained and no row needs
padding, so both trainers do the same arithmetic on the same tokens.

Left out: packing, masked prompts, adapters.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Case:
    """A model and a micro-batch; one micro-batch makes one optimizer step."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    length: int  # tokens per row
    rows: int  # rows per step
    tied: bool = False
    dtype: str = "float32"  # of the weights
    bf16: bool = False  # autocast

    @property
    def tokens(self) -> int:
        return self.length * self.rows


CASES = {
    # The shape of Llama-3.2-1B.
    "llama-1b": Case("llama-1b", 2048, 8192, 16, 32, 8, 128_256, 2048, 4, True, "bfloat16", True),
    "small": Case("small", 256, 704, 4, 4, 4, 32_000, 256, 8),
    "toy": Case("toy", 32, 64, 2, 4, 4, 500, 32, 4),
}


def write_case(case: Case, steps: int, folder: Path, n: float) -> Path:
    """Tokenizer, rows and recipe of a run of `steps` steps in `folder`; returns the recipe."""
    _tokenizer(case.vocab).save_pretrained(folder / "tokenizer")
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(steps * case.rows):
            # One token less, since the end token is added.
            words = [str(draw.randrange(case.vocab - 3)) for _ in range(case.length - 1)]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(_recipe(case, steps, folder, n)))
    return path


def _recipe(case: Case, steps: int, folder: Path, n: float) -> dict:
    name = "cross_entropy" if n == 1 else "confidence_limited"
    return {
        "stage": "sft",
        "name": "benchmark",
        "output_dir": str(folder / "runs"),
        "model": {
            "from_config": {
                "model_type": "llama",
                "options": {
                    "hidden_size": case.hidden,
                    "intermediate_size": case.intermediate,
                    "num_hidden_layers": case.layers,
                    "num_attention_heads": case.heads,
                    "num_key_value_heads": case.kv_heads,
                    "max_position_embeddings": case.length,
                    "tie_word_embeddings": case.tied,
                },
            },
            "tokenizer": str(folder / "tokenizer"),
            "dtype": case.dtype,
        },
        "data": {
            "template": "plain",
            "train_on": "all",
            "max_length": case.length,
            "overlong": "error",
            "shuffle": False,
            "cache_dir": str(folder / "cache"),
            "sources": [{"name": "rows", "path": str(folder / "rows.jsonl"), "format": "text"}],
        },
        "loss": {"name": name, **({} if n == 1 else {"n": n}), "segment": "completion"},
        "train": {
            "learning_rate": 1e-4,
            "global_batch_size": case.rows,
            "per_device_train_batch_size": case.rows,
            "max_steps": steps,
            "bf16": case.bf16,
            "report_to": [],
        },
    }


def _tokenizer(vocab: int):
    """One token per number."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    words = {token: index for index, token in enumerate(special)}
    words |= {str(index): len(special) + index for index in range(vocab - len(special))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def describe(case: Case) -> dict:
    return asdict(case) | {"tokens": case.tokens}
