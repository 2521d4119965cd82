"""Where stock `generate` and vLLM stop: the ids in generation_config.json, and the file itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.models.generation_config import (
    stop_as_trained,
    take_generation_config,
    with_generation_config,
)
from tests.tiny import build_model


@pytest.fixture
def tokenizer():
    return load_tokenizer("builtin:bytes")


@pytest.fixture
def model():
    return build_model("llama", 260)


@pytest.mark.parametrize("had, extra", [(None, []), (7, [7]), ([9, 7], [7, 9]), ([256, 9], [9])])
def test_ends_are_the_tokenizers_the_models_and_the_templates(model, tokenizer, had, extra):
    model.generation_config = GenerationConfig(eos_token_id=had, do_sample=True, temperature=0.6, top_p=0.9)
    eos = tokenizer.eos_token_id
    stop_as_trained(model, tokenizer, load_template("chatml", tokenizer))
    config = model.generation_config
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert eos == 256 and turn == 259
    assert config.eos_token_id == [eos, *extra, turn]
    assert config.pad_token_id == tokenizer.pad_token_id
    assert (config.do_sample, config.temperature, config.top_p) == (True, 0.6, 0.9)


def test_an_end_of_turn_of_several_tokens_is_told_and_left_out(model, tokenizer, tmp_path, caplog):
    """`stop_strings` in the file would make `generate` fail where it is not given a tokenizer."""
    file = tmp_path / "words.jinja"
    file.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n###' }}{% endfor %}")
    template = load_template(str(file), tokenizer)
    assert len(template.end_ids) == 3 and not template.stops and template.endings == [template.end_ids]
    stop_as_trained(model, tokenizer, template)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert model.generation_config.stop_strings is None
    assert "ends with '###', which is 3 tokens: generate needs stop_strings" in caplog.text


def test_written_as_it_is(model, tmp_path):
    """transformers refuses this one: the temperature has no effect."""
    model.generation_config = GenerationConfig(eos_token_id=[3], do_sample=False, temperature=0.6)
    own = model.generation_config
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "plain")
    (tmp_path / "ours").mkdir()
    with with_generation_config(model, tmp_path / "ours"):
        model.save_pretrained(tmp_path / "ours")
    assert model.generation_config is own
    written = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert {"eos_token_id": [3], "do_sample": False, "temperature": 0.6}.items() <= written.items()
    with pytest.raises(OSError), with_generation_config(model, tmp_path / "failed"):
        raise OSError("no space left")
    assert model.generation_config is own and not (tmp_path / "failed").exists()


def test_the_file_beside_an_adapter_counts(model, tmp_path):
    before = model.generation_config
    take_generation_config(model, tmp_path)
    take_generation_config(model, "organisation/adapter")
    assert model.generation_config is before
    Path(tmp_path, "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    take_generation_config(model, tmp_path)
    assert model.generation_config.eos_token_id == [3, 4]
