"""Tokens with their characters: from bytes where the decoder is byte-level, as the backend says offsets."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from posttrain.data import encode as module
from posttrain.data.encode import encode, encode_all, one_core
from posttrain.data.tokenizers import add_tokens, load_tokenizer, token_bytes
from posttrain.data.tokens import RowError

TEXTS = ["The cat sat, the dog ran: 12 + 12 = 24.", "naïve café, 日本 日本 👍👍 the end\n\n  the"]


def bpe(normalizer=None):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<eos>", "<|x|>"], show_progress=False
    )
    backend.train_from_iterator(TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


BPE, BYTES = bpe(), load_tokenizer("builtin:bytes")
ALPHABET = st.sampled_from(
    [*"the cat12 \n", "é", "日本", "👍", "<|x|>", "<eos>", "e\u0301", "\u200d", "\x00"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ALPHABET, min_size=1, max_size=12).map("".join), st.integers(0, 12), st.booleans())
def test_characters_are_the_offsets_of_the_backend(text, cut, batch):
    for tokenizer in (BPE, BYTES):
        cut = min(cut, len(text))
        with one_core() if batch else pytest.MonkeyPatch.context() as patch:
            if not batch:
                patch.delenv(module.PARALLEL, raising=False)
            found = encode(text, cut, tokenizer)
        backend = tokenizer.backend_tokenizer
        ids, starts, ends = [], [], []
        for part, shift in ((text[:cut], 0), (text[cut:], cut)):
            each = backend.encode(part, add_special_tokens=False)
            ids += each.ids
            starts += [a + shift for a, _ in each.offsets]
            ends += [b + shift for _, b in each.offsets]
        assert found.ids.tolist() == ids and found.ids.dtype == np.int32
        assert (found.starts.tolist(), found.ends.tolist()) == (starts, ends)
        assert found.decoded == text and found.rising


def test_characters_of_several_bytes():
    # 日 is three bytes, here three tokens, each of which is at its one character
    found = encode("a日b", None, BYTES)
    assert found.ids.tolist() == [97, 0xE6, 0x97, 0xA5, 98]
    assert found.starts.tolist() == [0, 1, 1, 1, 2]
    assert found.ends.tolist() == [1, 2, 2, 2, 3]


def test_a_text_that_is_normalised_has_the_offsets_of_the_backend():
    found = encode("e\u0301x", None, bpe(normalizers.NFC()))
    assert (found.decoded, found.rising) == ("éx", False)
    assert found.ends[-1] == 3


def test_added_tokens_with_bytes_of_their_own():
    tokenizer = load_tokenizer("builtin:bytes")
    add_tokens(tokenizer, ["<réponse>"])
    found = encode("é<réponse>é", None, tokenizer)
    assert found.starts.tolist() == [0, 0, 1, 10, 10] and found.rising


@pytest.mark.parametrize("before", [None, "true", "false"])
def test_one_core_leaves_the_variable_as_it_was(before, monkeypatch):
    monkeypatch.delenv(module.PARALLEL, raising=False)
    if before is not None:
        monkeypatch.setenv(module.PARALLEL, before)
    with pytest.raises(KeyError), one_core():
        assert os.environ[module.PARALLEL] == "false"
        raise KeyError
    assert os.environ.get(module.PARALLEL) == before


def test_a_text_that_is_normalised_is_still_split():
    tokenizer = bpe(normalizers.NFC())
    whole, split = encode("e\u0301 the", None, tokenizer), encode("e\u0301 the", 5, tokenizer)
    of = tokenizer.backend_tokenizer.encode
    assert whole.ids.tolist() == of("e\u0301 the", add_special_tokens=False).ids
    parts = [of(part, add_special_tokens=False).ids for part in ("e\u0301 th", "e")]
    assert split.ids.tolist() == parts[0] + parts[1] != whole.ids.tolist()
    assert (split.starts[-1], split.ends[-1]) == (5, 6)


def test_a_token_of_spaces_without_width_belongs_before_its_place():
    tokenizer = bpe(normalizers.NFC())
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    found = encode("e\u0301 \n", None, tokenizer)
    trimmed = tokenizer.backend_tokenizer.encode("e\u0301 \n", add_special_tokens=False).offsets
    assert any(a == b for a, b in trimmed)
    assert found.starts.tolist() == [a - (a == b) for a, b in trimmed]


def test_what_an_earlier_call_left_behind_cuts_nothing():
    tokenizer = bpe()
    ids = encode("the cat sat", None, tokenizer).ids.tolist()
    tokenizer("the cat sat", truncation=True, max_length=1, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation is not None
    assert encode("the cat sat", None, tokenizer).ids.tolist() == ids
    assert len(ids) > 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(ALPHABET, max_size=6).map("".join), st.integers(0, 9)), max_size=5))
def test_many_texts_are_as_each_by_itself(texts):
    """Also beside one whose tokens have other bytes, and beside one without any token."""
    for tokenizer in (BPE, BYTES, bpe(normalizers.NFC())):
        cut = [(text, min(at, len(text))) for text, at in texts]
        for each, found in zip(cut, encode_all(cut, tokenizer), strict=True):
            if not each[0]:
                assert isinstance(found, RowError) and found.reason == "empty"
                continue
            alone = encode(*each, tokenizer)
            for name in ("ids", "starts", "ends"):
                assert getattr(found, name).tolist() == getattr(alone, name).tolist()
            assert (found.decoded, found.rising) == (alone.decoded, alone.rising)


@given(st.lists(st.integers(0, 255), max_size=9))
def test_bytes_of_ids(ids):
    table = token_bytes(BYTES)
    assert table.of(ids) == bytes(ids) == table.spelt(np.array(ids, np.int32))
    assert table.of([*ids, 10**6]) == bytes(ids)  # a model may have more ids than its tokenizer


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ALPHABET, max_size=9).map("".join), min_size=1, max_size=5), st.booleans())
def test_texts_that_a_unicode_form_leaves_as_they_are(texts, ascii):
    """The normaliser is off for a batch of ASCII, and only for one."""
    texts = [text for text in texts if text and (text.isascii() or not ascii)]
    for form in ("NFC", "NFKC", "NFD", "NFKD"):
        tokenizer = bpe(getattr(normalizers, form)())
        tokenizer.add_tokens([AddedToken("the c", normalized=True), AddedToken("\u00e9", normalized=True)])
        backend = tokenizer.backend_tokenizer
        expected = [backend.encode(text, add_special_tokens=False).ids for text in texts]
        with one_core():
            assert [*module._ids_of_all(texts, tokenizer)] == expected
        assert type(backend.normalizer).__name__ == form


def test_texts_that_are_not_ascii_leave_the_others_theirs(monkeypatch):
    """A normaliser stays on only for the texts that may need it, and all come back in their order."""
    asked, original = [], module._ids_of_all

    def noted(texts, tokenizer):
        asked.append(texts)
        return original(texts, tokenizer)

    monkeypatch.setattr(module, "_ids_of_all", noted)
    texts = [("the cat", 3), ("caf\u00e9", None), ("the dog", None)]
    found = encode_all(texts, bpe(normalizers.NFC()))
    assert asked == [["the", " cat", "the dog"], ["caf\u00e9"]]
    assert [each.decoded for each in found] == [text for text, _ in texts]


def test_a_normaliser_that_changes_ascii_stays_on():
    tokenizer = bpe(normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]))
    with one_core():
        (found,) = module._ids_of_all(["THE CAT"], tokenizer)
    assert tokenizer.decode(found) == "the cat"
