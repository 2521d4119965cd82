"""The text of a completion leaves out what only ends or pads it, and nothing else."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from posttrain.data.template import load_template
from posttrain.data.tokenizers import add_tokens, decode, load_tokenizer
from posttrain.generation.base import Sampling, completion_of, completion_text
from posttrain.generation.local import TransformersGenerator
from tests.unigram import unigram_model

MARKERS = ["<think>", "</think>", "<|bos|>"]
SAID = "<think>two</think>2"


@pytest.fixture(scope="module")
def marked():
    """Bytes, with markers that are special tokens, as `model.add_tokens` adds them."""
    tokenizer = load_tokenizer("builtin:bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS}, replace_extra_special_tokens=False)
    tokenizer.bos_token = "<|bos|>"
    return tokenizer


def ids_of(text: str, tokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("sampled", "ended", "text"),
    [
        (SAID + "<eos>", True, SAID),
        (SAID + "<|im_end|>", True, SAID),  # a stop token of the template, which is not the end token
        (SAID, False, SAID),  # cut off: nothing ends it
        ("<think>two<|im_end|>", False, "<think>two<|im_end|>"),  # where im_end does not stop, it is said
        ("a<eos>b<|im_end|>", True, "a<eos>b"),
        ("a<pad>b<pad><pad>", False, "ab"),
        ("<|bos|>a<|im_start|>", False, "<|bos|>a<|im_start|>"),
        ("<eos>", True, ""),
        ("", False, ""),
        (" a .  b n't\n", False, " a .  b n't\n"),
    ],
)
def test_only_what_ends_or_pads_is_left_out(marked, sampled, ended, text):
    ids = ids_of(sampled, marked)
    found = completion_of(marked, 3, 4, ids, ended, None)
    assert found.text == text
    assert (found.token_ids, found.finish) == (ids, "stop" if ended else "length")


def test_padding_that_begins_a_text_is_said():
    tokenizer = word_tokenizer(bos_token="<bos>", pad_token="<bos>")
    ids = tokenizer.convert_tokens_to_ids(["<bos>", "it"])
    assert None not in ids and "<bos>" in completion_text(tokenizer, ids)


def test_an_end_of_several_tokens_does_not_stop_and_is_text(marked):
    ids = ids_of("2\n\nHuman:", marked)
    assert completion_text(marked, ids) == "2\n\nHuman:"


def word_tokenizer(**special):
    """Words and spaces, unchanged by the decoder; transformers is told to clean up, as in many old files."""
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "<eos>", "it", "is", ".", "n't", ",", " "]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", clean_up_tokenization_spaces=True, **special
    )


def test_no_space_is_cleaned_up():
    tokenizer = word_tokenizer(unk_token="<unk>", pad_token="<pad>")
    text = "it is n't , it ."
    ids = ids_of(text, tokenizer)
    assert tokenizer.decode(ids) == "it isn't, it.", "this tokenizer's own decode would"
    assert completion_text(tokenizer, ids) == decode(ids, tokenizer) == text


@pytest.mark.parametrize(("pad", "text"), [("<pad>", "it<unk>"), ("<unk>", "it<unk>"), ("<eos>", "it<unk>")])
def test_an_unknown_token_is_kept_also_where_it_pads(pad, text):
    """Llama 2 models often pad with the unknown token."""
    tokenizer = word_tokenizer(unk_token="<unk>", pad_token=pad)
    ids = [*ids_of("it", tokenizer), tokenizer.unk_token_id, tokenizer.eos_token_id]
    assert completion_text(tokenizer, ids, ended=True) == text


def test_sampled_special_tokens_are_in_the_text(tmp_path):
    """Every token of the text is a token that was sampled: encoded again it gives the ids without the end."""
    from transformers import AutoModelForCausalLM

    folder = unigram_model(tmp_path / "model", {"<|im_start|>": 0.4, "1": 0.4})
    tokenizer = load_tokenizer(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    stops = load_template("chatml", tokenizer).stops
    found = TransformersGenerator(model, tokenizer, stops).generate(
        [[5]], 64, Sampling(max_new_tokens=9), seed=0
    )
    for one in found:
        ended = one.finish == "stop"
        assert ids_of(one.text, tokenizer) == one.token_ids[: len(one.token_ids) - ended]
        assert ("<|im_end|>" in one.text) is False
    assert sum("<|im_start|>" in one.text for one in found) > 32
    assert {one.finish for one in found} == {"stop", "length"}


@pytest.mark.parametrize("token", ["<réponse>", "Ġx", "<答え>", "<think>"])
def test_letters_of_an_added_token_are_not_bytes(token):
    """A byte-level decoder reads "é" as byte 0xE9 and "Ġ" as a space, if every letter stands for a byte."""
    tokenizer = load_tokenizer("builtin:bytes")
    assert decode([65], tokenizer) == "A"
    add_tokens(tokenizer, [token])
    number = tokenizer.convert_tokens_to_ids(token)
    assert decode([65, number, 66, number], tokenizer) == f"A{token}B{token}"
    assert tokenizer(f"A{token}B")["input_ids"] == [65, number, 66]
