"""A tokenizer that a checkpoint would not give back is refused; the model's old end tokens are forgotten."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError
from posttrain.models.load import load_model
from posttrain.recipe.schema import FromConfig, Model
from tests.tiny import tiny_model

SHAPE = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "mistral"])
def test_a_tokenizer_that_is_swapped_beside_the_config(tmp_path, kind):
    """Refused if and only if what lies in a checkpoint's folder splits a text in another way."""
    tokenizer = load_tokenizer("builtin:digits")
    start = Model(from_config=FromConfig(kind, SHAPE), tokenizer="builtin:digits")
    plain = Model(from_config=FromConfig(kind, SHAPE))
    load_model(plain, None, tokenizer, seed=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = "12 + 34 = 46"
    swapped = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] != tokenizer(text)["input_ids"]
    if kind == "llama":
        assert not swapped
    if swapped:
        with pytest.raises(RequestError, match=f"beside the config of a {kind} model transformers"):
            load_model(start, None, tokenizer, seed=0)
    else:
        load_model(start, None, tokenizer, seed=0)


def test_end_tokens_of_another_vocabulary(tmp_path):
    """Id 53, which ended a text in the model's own vocabulary, is the digit 5 in the other."""
    folder = tiny_model(tmp_path / "m")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [53, 1]}))
    tokenizer = load_tokenizer("builtin:bytes")
    assert tokenizer.decode([53]) == "5"
    own = load_model(Model(init=str(folder)), folder, tokenizer, seed=0)
    assert own.generation_config.eos_token_id == [53, 1]
    other = load_model(Model(init=str(folder), tokenizer="builtin:bytes"), folder, tokenizer, seed=0)
    assert other.generation_config.eos_token_id is None
