"""A text as tokens with the characters of each, by the backend of a fast tokenizer.

Where the decoder is byte-level, the characters follow from the bytes of the tokens, once these are the bytes
of the text; for other tokenizers they are the offsets that the backend says. Left out: which of the tokens
are trained (tokenize.py), special tokens around a text.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from posttrain.data.tokenizers import UNICODE_FORMS, TokenBytes, decode, token_bytes
from posttrain.data.tokens import RowError
from posttrain.errors import PosttrainError, RequestError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")
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


Asking = Generator[tuple[str, int | None], Encoded, T]
"""Work that asks once for the tokens of a text, (text, cut) as in `encode`, or not at all."""


def alone(work: Asking[T], tokenizer: PreTrainedTokenizerFast) -> T:
    """What `work` gives or raises."""
    (made,) = all_at_once([work], tokenizer)
    if isinstance(made, PosttrainError):
        raise made
    return made


def all_at_once(
    works: Sequence[Asking[T]], tokenizer: PreTrainedTokenizerFast
) -> list[T | RowError | RequestError]:
    """What each of `works` gives or raises. All of them come to their texts before one is tokenised, and all
    texts are tokenised before one goes on: what runs many times in a row is in the caches of the processor,
    which for short texts saves a third of the time."""
    made: list[Any] = [_step(work, None) for work in works]
    asked = [k for k, each in enumerate(made) if isinstance(each, tuple)]
    for k, found in zip(asked, encode_all([made[k] for k in asked], tokenizer), strict=True):
        made[k] = found if isinstance(found, RowError) else _step(works[k], found)
    return made


def _step(work: Asking[T], found: Encoded | None) -> T | tuple[str, int | None] | RowError | RequestError:
    """The text that `work` asks for, or what it gives or raises."""
    try:
        return work.send(found)  # type: ignore[arg-type]  # None begins it
    except StopIteration as done:
        return done.value
    except (RowError, RequestError) as error:
        return error


def encode(text: str, cut: int | None, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """The tokens of `text` without special tokens around it.

    The text is tokenised in two parts, split at `cut`, or in one where the tokenizer would add a space to the
    second part (as that of Llama 2 does). Raises `RowError` where there is no token.
    """
    (found,) = encode_all([(text, cut)], tokenizer)
    if isinstance(found, RowError):
        raise found
    return found


def encode_all(
    texts: list[tuple[str, int | None]], tokenizer: PreTrainedTokenizerFast
) -> list[Encoded | RowError]:
    """What `encode` gives or raises for each of `texts`, (text, cut)."""
    table = token_bytes(tokenizer) if texts else None
    found: list[Encoded | RowError | None] = [None] * len(texts)
    # ASCII apart: among a chunk of texts there is nearly always one that would take all the longer way
    groups = ([k for k, (text, _) in enumerate(texts) if text.isascii() == ascii] for ascii in (True, False))
    for some in filter(None, groups if table is not None else ()):
        parts = [_parts(*texts[k]) for k in some]
        ids = _ids_of_all(list(chain.from_iterable(parts)), tokenizer)
        own = [[*islice(ids, len(each))] for each in parts]
        for k, each in zip(some, _by_bytes([texts[k][0] for k in some], own, table), strict=True):
            found[k] = each
    for k, (text, cut) in enumerate(texts):
        if found[k] is None:
            try:
                found[k] = _by_offsets(text, cut, tokenizer)
            except RowError as error:
                found[k] = error
    return found  # type: ignore[return-value]


def _parts(text: str, cut: int | None) -> list[str]:
    return [part for part in (text[: cut or 0], text[cut or 0 :]) if part]


def _by_offsets(text: str, cut: int | None, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    found = [_encode(part, tokenizer) for part in _parts(text, cut)]
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
        whole = _by_offsets(text, None, tokenizer)
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


def _ids_of_all(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
    backend = _backend(tokenizer)
    if os.environ.get(PARALLEL) == "false":  # without offsets, which take a fifth of the time
        with _as_they_are(backend, texts):
            return iter([each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)])
    return iter([backend.encode(text, add_special_tokens=False).ids for text in texts])


@contextmanager
def _as_they_are(backend: Tokenizer, texts: list[str]) -> Iterator[None]:
    """Within it a normaliser that only brings texts into a Unicode form is off if all of `texts` are ASCII,
    which every form leaves as it is: looking for that takes it a tenth of the time of tokenising."""
    normaliser = backend.normalizer
    if type(normaliser).__name__ not in UNICODE_FORMS or not all(map(str.isascii, texts)):
        yield
        return
    backend.normalizer = None
    try:
        yield
    finally:
        backend.normalizer = normaliser


def _by_bytes(texts: list[str], ids: list[list[list[int]]], table: TokenBytes) -> list[Encoded | None]:
    """The tokens of each text, whose ids come in parts; None where they have other bytes than the text. One
    array for all of them, because a call of numpy takes as long as a hundred tokens."""
    counts = [sum(map(len, parts)) for parts in ids]
    numbers = np.fromiter(chain.from_iterable(chain.from_iterable(ids)), np.int32, sum(counts))
    each = [text.encode() for text in texts]
    raw = b"".join(each)
    lengths = table.lengths[numbers]
    ends = np.cumsum(lengths)  # in bytes
    edges = [0, *accumulate(counts)]
    characters = [*map(len, texts)]
    ascii = len(raw) == sum(characters)
    proved = all(counts) and (ascii or lengths.all())
    proved = proved and np.add.reduceat(lengths, edges[:-1]).tolist() == [*map(len, each)]
    if not proved or table.spelt(numbers) != raw:
        if len(texts) == 1:
            return [None]
        return [_by_bytes([text], [parts], table)[0] for text, parts in zip(texts, ids, strict=True)]
    starts = ends - lengths
    if not ascii:
        begins = (np.frombuffer(raw, np.uint8) & 0xC0) != 0x80  # of a character; other bytes continue one
        character = np.cumsum(begins)  # of each byte, from 1
        starts, ends = character[starts] - 1, character[ends - 1]
    shift = np.repeat([0, *accumulate(characters[:-1])], counts)
    starts, ends = starts - shift, ends - shift
    return [
        Encoded(numbers[a:b], starts[a:b], ends[a:b], text, rising=True)
        for text, a, b in zip(texts, edges[:-1], edges[1:], strict=True)
    ]


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
