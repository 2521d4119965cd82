"""Values in a model's files that mean nothing to the library are one sentence with the folder and the
reason, whatever class of exception they end in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from posttrain.base.files import read_json, write_json
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError
from posttrain.models.load import load_model, load_scored
from posttrain.recipe.schema import FromConfig, Model

YARN = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}
LACKS = "Missing required keys in `rope_parameters` for 'rope_type'='yarn': {'factor'}"
HEADS = "The hidden size (32) is not a multiple of the number of attention heads (3)"
PADDING = "AssertionError: Padding_idx must be within num_embeddings"
ODD = {
    "hidden_act": ({"hidden_act": "nope"}, "KeyError: 'nope' (hidden_act in config.json)"),
    "rope_type": (
        {"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}},
        "KeyError: 'nope' (rope_parameters.rope_type in config.json)",
    ),
    "rope_keys": (YARN, LACKS),
    "heads": ({"num_attention_heads": 3}, HEADS),
    "no_heads": ({"num_attention_heads": 0}, "ZeroDivisionError"),
    "type": ({"hidden_size": "32"}, "Field 'hidden_size' expected int, got str"),
    "vocabulary": ({"vocab_size": 100}, PADDING),
    "padding": ({"pad_token_id": 100000}, PADDING),
    "text_config": ({"text_config": 3}, "AttributeError: 'int' object has no attribute"),
}


@pytest.fixture
def odd(tiny, tmp_path):
    """`odd(values)`: a copy of a model whose config.json has them."""

    def make(values: dict) -> Path:
        folder = Path(shutil.copytree(tiny, tmp_path / "odd"))
        write_json(folder / "config.json", read_json(folder / "config.json") | values)
        return folder

    return make


@pytest.mark.parametrize("name", ODD)
def test_a_config_that_describes_no_model(odd, tiny, name):
    values, words = ODD[name]
    folder = odd(values)
    tokenizer = load_tokenizer(str(tiny))
    for load in (
        lambda: load_model(Model(init=str(folder)), str(folder), tokenizer, 0),
        lambda: load_scored(folder, "cpu"),
    ):
        with pytest.raises(RequestError) as caught:
            load()
        said = str(caught.value)
        assert str(folder) in said and "cannot be loaded: " in said and words in said and "\n" not in said


def test_from_config(tiny):
    shape = {"hidden_size": 32, "num_attention_heads": 3}
    with pytest.raises(RequestError, match="from_config does not describe a model: .*not a multiple"):
        load_model(Model(from_config=FromConfig("llama", shape)), None, load_tokenizer(str(tiny)), 0)


@pytest.mark.parametrize(
    ("values", "words"), [(YARN, LACKS), (ODD["heads"][0], HEADS)], ids=["rope", "heads"]
)
def test_the_tokenizer_is_not_blamed(odd, values, words):
    folder = odd(values)
    with pytest.raises(RequestError) as caught:
        load_tokenizer(str(folder))
    said = str(caught.value)
    assert said.startswith(f"{folder}/config.json: ") and words in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "KeyError: 'added_tokens'"),
        ("null", "AttributeError: 'NoneType' object has no attribute"),
        ('{"added_tokens": []}', "Model missing"),
    ],
)
def test_a_broken_tokenizer(odd, text, reason):
    folder = odd({})
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(RequestError) as caught:
        load_tokenizer(str(folder))
    assert str(caught.value).startswith(f"tokenizer {folder}: {reason}")
