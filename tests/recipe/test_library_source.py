"""The names read from source with `ast` are those of the real classes."""

from __future__ import annotations

import dataclasses

import pytest

from posttrain.errors import RequestError
from posttrain.recipe.library_source import config_fields, model_fields


def test_sft_fields_equal_the_real_config_class():
    from trl import DPOConfig, GRPOConfig, SFTConfig

    for stage, cls in (("sft", SFTConfig), ("dpo", DPOConfig), ("rlvr", GRPOConfig)):
        real = {f.name for f in dataclasses.fields(cls) if f.init}
        assert real == set(config_fields(stage)), stage


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "mistral"])
def test_model_fields_hold_what_the_real_config_takes(model_type):
    from transformers import AutoConfig

    real = AutoConfig.for_model(model_type)
    names = model_fields(model_type)
    assert {"vocab_size", "tie_word_embeddings"} <= names
    for name in real.to_diff_dict():
        if name not in ("model_type", "transformers_version", "architectures"):
            assert name in names or hasattr(type(real), name), name


def test_unknown_model_type():
    with pytest.raises(RequestError, match="did you mean 'llama'"):
        model_fields("lama")
