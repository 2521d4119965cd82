"""Built-in tokenizers lose nothing and survive saving; names that mean nothing are refused."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from posttrain.data.tokenizers import _byte_letters, load_tokenizer
from posttrain.errors import RequestError

BYTES = load_tokenizer("builtin:bytes")
DIGITS = load_tokenizer("builtin:digits")


@given(st.text())
def test_bytes_lose_nothing(text):
    ids = BYTES(text)["input_ids"]
    assert BYTES.decode(ids) == text
    if "<" not in text:  # no special token can be in it
        assert bytes(ids) == text.encode()


def test_bytes_know_their_special_tokens():
    assert BYTES("<|im_start|>a<|im_end|>").input_ids == [258, 97, 259]
    assert (BYTES.pad_token_id, BYTES.eos_token_id, len(BYTES)) == (257, 256, 260)
    assert (BYTES.unk_token, BYTES.bos_token) == (None, None)
    assert BYTES("é😀 ", return_offsets_mapping=True).offset_mapping == [*[(0, 1)] * 2, *[(1, 2)] * 4, (2, 3)]


@given(st.text("0123456789+-*/=() .,"))
def test_digits_lose_nothing(text):
    ids = DIGITS(text)["input_ids"]
    assert len(ids) == len(text) and DIGITS.decode(ids) == text


def test_digits_know_their_special_tokens():
    assert (DIGITS.pad_token_id, DIGITS.eos_token_id, DIGITS.unk_token_id) == (0, 1, 2)
    assert len(DIGITS) == 3 + 20
    assert DIGITS("1x\n<eos>").tokens() == ["1", "<unk>", "<unk>", "<eos>"]


@pytest.mark.parametrize("tokenizer", [BYTES, DIGITS], ids=["bytes", "digits"])
def test_saved_and_loaded(tmp_path, tokenizer):
    text = "12*34=0408<eos>"
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab() and again.is_fast
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == text
    assert (again.pad_token, again.eos_token) == ("<pad>", "<eos>")


def test_a_missing_padding_token_is_said(tmp_path, caplog):
    tokenizer = load_tokenizer("builtin:bytes")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load_tokenizer(str(tmp_path)).pad_token == "<eos>"
    assert "has no padding token; '<eos>' is used for padding" in caplog.text


def test_a_missing_end_token_is_refused(tmp_path):
    tokenizer = load_tokenizer("builtin:bytes")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="has no end token"):
        load_tokenizer(str(tmp_path))


def test_names_that_mean_nothing(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    for name, message in [
        ("builtin:byte", r"unknown tokenizer 'builtin:byte' \(did you mean 'builtin:bytes'\?\)"),
        (str(tmp_path / "nope"), r"no such folder: .*nope.*; name a folder, a hub id, builtin:digits"),
        ("./nope", r"no such folder: './nope'"),
        ("", r"no such folder: ''"),
        (str(tmp_path / "broken" / "tokenizer.json"), r"no such folder"),
        (str(tmp_path / "broken"), r"tokenizer .*broken: "),
        ("a/b/c/d", r"tokenizer a/b/c/d: "),
    ]:
        with pytest.raises(RequestError, match=message):
            load_tokenizer(name)


def test_a_tokenizer_that_its_models_config_changes(tmp_path):
    """Beside a qwen2 config transformers splits 650 into digits, whatever tokenizer.json says."""
    vocab = _byte_letters() | {"65": 256, "650": 257, "<eos>": 258}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("6", "5"), ("65", "0")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("650")["input_ids"] == [257]
    AutoConfig.for_model("qwen2").save_pretrained(tmp_path)
    if AutoTokenizer.from_pretrained(tmp_path)("650", add_special_tokens=False)["input_ids"] == [257]:
        pytest.skip("this version of transformers keeps the rules of tokenizer.json")
    with pytest.raises(RequestError, match="transformers loads it as Qwen2Tokenizer, which makes"):
        load_tokenizer(str(tmp_path))
