"""Vocabularies whose ids have a gap: every token has an embedding row, and no two tokens share one."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.data.template import load_text
from posttrain.data.tokenizers import vocabulary_size
from posttrain.errors import RequestError
from posttrain.models.load import load_model
from posttrain.recipe.schema import FromConfig, Lora, Model
from tests.tiny import build_model

WORDS = ["<pad>", "<eos>", *"0123456789+"]


def with_gap(last: int) -> PreTrainedTokenizerFast:
    """13 tokens: ids 0 to 11, and `last` for "="."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS[:-1])} | {"=": last}, "<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def test_the_size_is_the_largest_id_and_one(digits):
    gap = with_gap(28)
    assert (len(gap), vocabulary_size(gap)) == (13, 29)
    assert vocabulary_size(digits) == len(digits)


@pytest.mark.parametrize("scratch", [True, False])
def test_every_id_has_a_row(tmp_path, scratch):
    """A model from a config, and one that has a row for each of the 13 tokens but not for id 28."""
    tokenizer = with_gap(28)
    if scratch:
        shape = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
        start, init = Model(from_config=FromConfig("llama", shape)), None
    else:
        build_model("llama", 13).save_pretrained(tmp_path)
        start, init = Model(init=str(tmp_path)), tmp_path
    model = load_model(start, init, tokenizer, seed=0)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 29
    with torch.no_grad():
        assert model(torch.tensor([tokenizer("1=")["input_ids"]])).logits.shape == (1, 2, 29)


def test_lora_counts_the_missing_rows(tmp_path):
    build_model("llama", 13).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"16 token\(s\) are new to the model"):
        load_model(Model(init=str(tmp_path), lora=Lora()), tmp_path, with_gap(28), seed=0)


@pytest.mark.parametrize(
    ("last", "shared"), [(12, None), (13, "'=' and '<think>'"), (14, "'=' and '</think>'"), (28, None)]
)
def test_new_tokens_never_take_the_id_of_another(tmp_path, last, shared):
    """`tokenizers` gives the 14th and 15th token the ids 13 and 14, in use or not: "=" would be read as
    `<think>`."""
    with_gap(last).save_pretrained(tmp_path)
    start = Model(init=str(tmp_path), add_tokens=["<think>", "</think>"])
    if shared:
        with pytest.raises(RequestError, match=f"{shared} would both have id {last}"):
            load_text(start, "plain", str(tmp_path))
        return
    tokenizer, _ = load_text(start, "plain", str(tmp_path))
    ids = tokenizer("1=<think></think>")["input_ids"]
    assert ids == [3, last, 13, 14] and vocabulary_size(tokenizer) == max(ids) + 1
