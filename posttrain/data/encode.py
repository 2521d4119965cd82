"""A text as tokens with the characters of each, by the backend of a fast tokenizer.

`tokenizer(text)` gives the same tokens, and half of its time goes into what is not needed here. Left out:
which of the tokens are trained (tokenize.py), special tokens around a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from posttrain.data.tokenizers import decode
from posttrain.data.tokens import RowError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens: their ids, the first and one-past-last character of each (int arrays [L]), and the
    text that they decode to."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    decoded: str


def encode(text: str, cut: int | None, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """The tokens of `text` without special tokens around it.

    The text is tokenised in two parts, split at `cut`, or in one where the tokenizer would add a space to the
    second part (as that of Llama 2 does). Raises `RowError` where there is no token.
    """
    parts = [text] if not cut else [text[:cut], text[cut:]]
    found = [_encode(part, tokenizer) for part in parts if part]
    ids = list(chain.from_iterable(each.ids for each in found))
    if not ids:
        raise RowError("empty", "the text has no token")
    flat = chain.from_iterable(chain.from_iterable(each.offsets for each in found))
    offsets = np.fromiter(flat, np.int64, 2 * len(ids)).reshape(-1, 2)
    starts, ends = offsets[:, 0], offsets[:, 1]
    # where offsets are trimmed, a token of spaces has no width and belongs before its position
    starts = starts - ((starts == ends) & (ends > 0))
    if len(found) == 2:
        second = len(found[0].ids)
        starts[second:] += cut
        ends[second:] += cut
    decoded = decode(ids, tokenizer)
    if cut and decoded != text:
        whole = encode(text, None, tokenizer)
        if whole.decoded != decoded:
            return whole
    return Encoded(np.array(ids, dtype=np.int32), starts, ends, decoded)


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens of `text` without special tokens around it."""
    return _encode(text, tokenizer).ids if text else []


def _encode(text: str, tokenizer: PreTrainedTokenizerFast) -> Encoding:
    backend = tokenizer.backend_tokenizer
    # what earlier calls of the tokenizer left behind
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend.encode(text, add_special_tokens=False)
