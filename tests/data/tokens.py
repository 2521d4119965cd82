"""Tokenizers, conversations, a source and checks that the tests of this room share."""

from __future__ import annotations

import numpy as np

from posttrain.data.cache import prepare_sources
from posttrain.data.table import Table
from posttrain.data.tokenize import tokenize_example
from posttrain.data.tokenizers import load_tokenizer
from posttrain.data.tokens import TokenRow
from posttrain.recipe.schema import Data, Loss, Source
from posttrain.types import Example

STYLES = ["chatml", "llama3", "tulu", "plain"]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 😀"},
    {"role": "assistant", "content": "Hé 😀"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": ""},
]
MARKED = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 😀<|im_end|>\n"
        "<|im_start|>assistant\n[Hé 😀<|im_end|>]\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n[<|im_end|>]\n"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi 😀<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[Hé 😀<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[<|eot_id|>]"
    ),
    "tulu": (
        "<|system|>\nBe brief.\n<|user|>\nHi 😀\n<|assistant|>\n[Hé 😀<eos>]\n"
        "<|user|>\nBye\n<|assistant|>\n[<eos>]"
    ),
    "plain": "Be brief.Hi 😀[Hé 😀<eos>]Bye[<eos>]",
}


HERMES = """\
{%- if tools %}{{- '<tools>' + (tools | tojson) + '</tools>' }}{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.reasoning_content %}{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}
    {{- m.content }}
    {%- for call in m.tool_calls or [] %}
        {{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}
{%- endif %}"""
"""A template that renders tools, calls and reasoning."""


def byte_tokenizer():
    tokenizer = load_tokenizer("builtin:bytes")
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_tokens(headers, special_tokens=True)
    return tokenizer


def wrap(backend, **special):
    from transformers import PreTrainedTokenizerFast

    special = {"eos_token": "<eos>", "pad_token": "<pad>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def bpe_tokenizer(trim_offsets=None):
    """A BPE without word borders, so that its merges run across anything, `t\\nH` included."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if trim_offsets is not None:
        backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    texts = ["assistant\nHello there", "user\nHi", "\n\n\n\n", " = 0408", "12*34=0408", "é😀 é😀"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts * 20, trainer)
    return wrap(backend, extra_special_tokens=["<|im_start|>", "<|im_end|>"])


BYTES = byte_tokenizer()
BPE = bpe_tokenizer()


def row_of(example, template="chatml", tokenizer=BYTES, loss=None, **data) -> TokenRow:
    if isinstance(example, list):
        example = Example(messages=example, where="here:1")
    data = Data(sources=[], template=template, **data)
    return tokenize_example(example, tokenizer, data, loss or Loss())


def pair(prompt, completion, **more) -> Example:
    return Example(prompt=prompt, completion=completion, where="here:1", **more)


def ids_of(text, tokenizer=BYTES) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def by_hand(marked: str, tokenizer=BYTES, marks: str = "[]") -> tuple[list[int], list[int]]:
    """Ids and labels of a text in which `marks`, two characters, enclose what is trained."""
    ids, labels = [], []
    for index, part in enumerate(marked.replace(marks[1], marks[0]).split(marks[0])):
        some = ids_of(part, tokenizer)
        ids += some
        labels += some if index % 2 else [-100] * len(some)
    return ids, labels


def check(row: TokenRow, marked: str, tokenizer=BYTES, marks: str = "[]") -> None:
    ids, labels = by_hand(marked, tokenizer, marks)
    assert row.input_ids.tolist() == ids
    assert row.labels.tolist() == labels
    assert {a.dtype for a in (row.input_ids, row.labels, row.segment_ids)} == {np.dtype(np.int32)}
    assert ((row.segment_ids > 0) <= (row.labels >= 0)).all()


def trained(row: TokenRow, tokenizer=BYTES) -> str:
    return tokenizer.decode(row.labels[row.labels >= 0].tolist())


def prepare_source(source: Source, data: Data, loss: Loss, tokenizer, progress=None) -> Table:
    """The table of one source of rows."""
    return prepare_sources([source], data, loss, tokenizer, progress=progress)[0]
