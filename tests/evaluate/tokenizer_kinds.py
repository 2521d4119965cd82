"""Four kinds of tokenizers, trained on a few lines, and a model for each."""

from __future__ import annotations

from functools import cache

from posttrain.data.tokenizers import load_tokenizer
from tests.data.tokens import wrap
from tests.tiny import build_model

KINDS = ("bytes", "bpe", "gpt2", "unigram")
TEXTS = [
    "Question: What is half of two?\nA. one\nB. two thirds\nC. none of these\nD. 3.14\nAnswer: A",
    "Answer: B\n\nAnswer: C\n\nAnswer: D\n\n",
    "True, False. All of the above; the first and the second are both right. 10 15 20 -3",
]


@cache
def tokenizer_of(kind: str):
    """bytes; bpe: merges run across anything, `: A` included; gpt2: words with their space; unigram: a space
    before every text, as SentencePiece has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind == "bytes":
        return load_tokenizer("builtin:bytes")
    special = ["<pad>", "<eos>", "<unk>"]
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
        alphabet = sorted({*"".join(TEXTS), *map(chr, range(33, 127)), "é", "▁"})
        trainer = trainers.UnigramTrainer(
            vocab_size=250, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet
        )
    else:
        words = kind == "gpt2"
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=words, use_regex=words)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    trainer.show_progress = False
    backend.train_from_iterator(TEXTS * 20, trainer)
    return wrap(backend, unk_token="<unk>")


@cache
def model_of(kind: str, positions: int = 4096):
    return build_model("llama", len(tokenizer_of(kind)), positions=positions)
