"""A text as tokens with the characters of each, by the backend of a fast tokenizer.

Where the decoder is byte-level, the characters follow from the bytes of the tokens, once these are the bytes
of the text; for other tokenizers they are the offsets that the backend says. Left out: which of the tokens
are trained (tokenize.py), special tokens around a text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from posttrain.data.tokenizers import decode, token_bytes
from posttrain.data.tokens import RowError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast


PARALLEL = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens: their ids, the first and one-past-last character of each (int arrays [L]), and the
    text that they decode to."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    decoded: str
    rising: bool = False
    """Whether no token starts before the one ahead of it."""


def encode(text: str, cut: int | None, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """The tokens of `text` without special tokens around it.

    The text is tokenised in two parts, split at `cut`, or in one where the tokenizer would add a space to the
    second part (as that of Llama 2 does). Raises `RowError` where there is no token.
    """
    parts = [text] if not cut else [text[:cut], text[cut:]]
    if (by_bytes := _by_bytes(text, parts, tokenizer)) is not None:
        return by_bytes
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


@contextmanager
def one_core() -> Iterator[None]:
    """Within it this process tokenises on one core. A batch on several would also make the tokenizer warn of
    every fork that follows."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLEL]
        else:
            os.environ[PARALLEL] = before


def _by_bytes(text: str, parts: list[str], tokenizer: PreTrainedTokenizerFast) -> Encoded | None:
    """None where the decoder is not byte-level, or the tokens have other bytes than `text`."""
    table = token_bytes(tokenizer)
    if table is None:
        return None
    backend, parts = _backend(tokenizer), [part for part in parts if part]
    if os.environ.get(PARALLEL) == "false":  # without offsets, which take a fifth of the time
        found = backend.encode_batch_fast(parts, add_special_tokens=False)
    else:
        found = [backend.encode(part, add_special_tokens=False) for part in parts]
    ids = list(chain.from_iterable(each.ids for each in found))
    raw = text.encode()
    if not ids or table.of(ids) != raw:
        return None
    numbers = np.array(ids, dtype=np.int32)
    lengths = table.lengths[numbers]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if len(raw) != len(text):
        if not lengths.all():
            return None
        begins = (np.frombuffer(raw, np.uint8) & 0xC0) != 0x80  # of a character; other bytes continue one
        character = np.cumsum(begins)  # of each byte, from 1
        starts, ends = character[starts] - 1, character[ends - 1]
    return Encoded(numbers, starts, ends, text, rising=True)


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens of `text` without special tokens around it."""
    return _encode(text, tokenizer).ids if text else []


def _encode(text: str, tokenizer: PreTrainedTokenizerFast) -> Encoding:
    return _backend(tokenizer).encode(text, add_special_tokens=False)


def _backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Without what earlier calls of the tokenizer left behind."""
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend
