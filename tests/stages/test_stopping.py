"""A base model that learns a chat template stops where its turns ended in training: in stock `generate` with
default settings, from a checkpoint and from its export (LlamaFactory#7454)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from posttrain.commands.export import export
from posttrain.data.tokenizers import _byte_letters
from posttrain.models.load import load_scored
from posttrain.recipe import load_stage
from posttrain.sft import train

QUESTION = [{"role": "user", "content": "5 + 3"}]
GEMMA = """\
{#- tokens: <start_of_turn> <end_of_turn> -#}
{%- for m in messages %}
    {{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + m['content'] }}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""
RECIPE = """\
stage: sft
name: case
output_dir: {out}
model: {{init: {model}}}
data:
  template: {template}
  max_length: 64
  cache_dir: {out}/cache
  sources: [{{name: rows, path: {rows}}}]
train:
  learning_rate: 3.0e-2
  lr_scheduler_type: constant
  optim: adamw_torch
  global_batch_size: 4
  max_steps: 25
  report_to: []
"""
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}


def base_model(folder: Path, *tokens: str, generation: dict | None = None) -> Path:
    """A model as published before any chat: an end of text, no padding token, no template.

    `tokens`: what its tokenizer knows of a template. `generation`: into its generation_config.json.
    """
    text = Tokenizer(models.BPE(vocab=_byte_letters(), merges=[]))
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text,
        eos_token="<|endoftext|>",
        bos_token="<|begin_of_text|>",
        additional_special_tokens=list(tokens),
    )
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation is not None:
        file = folder / GENERATION
        file.write_text(json.dumps(json.loads(file.read_text()) | generation))
    return folder


GENERATION = "generation_config.json"


def trained(folder: Path, model: Path, template: str, *overrides: str) -> Path:
    """The last checkpoint of a run that learns to answer 8."""
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [*QUESTION, {"role": "assistant", "content": "8"}]}) + "\n")
    recipe = folder / "case.yaml"
    recipe.write_text(RECIPE.format(out=folder, model=model, template=template, rows=rows))
    run = train(load_stage(recipe, list(overrides), "sft"))
    return max((run.path / "checkpoints").glob("step-*"))


def answer(model: torch.nn.Module, folder: Path, **settings) -> str:
    """What stock `generate` writes in at most twenty tokens, special tokens included."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**prompt, max_new_tokens=20, **settings)
    return tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
@pytest.mark.parametrize("template", ENDS)
def test_stock_generate_stops_at_the_end_of_turn(tmp_path, template):
    end = ENDS[template]
    (tmp_path / "gemma.jinja").write_text(GEMMA)
    model = base_model(tmp_path / "base")
    checkpoint = trained(tmp_path, model, f"{tmp_path}/gemma.jinja" if template == "gemma" else template)
    export(str(tmp_path / "case"), tmp_path / "exported")
    for folder in (checkpoint, tmp_path / "exported"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = GenerationConfig.from_pretrained(folder)
        eos, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", end])
        assert config.eos_token_id == [eos, turn]
        assert config.pad_token_id == tokenizer.pad_token_id is not None
        shape = AutoConfig.from_pretrained(folder)
        assert (shape.eos_token_id, shape.pad_token_id) == (eos, tokenizer.pad_token_id)
        assert shape.use_cache, "transformers' trainer switches it off"
        assert shape.vocab_size == len(tokenizer) > turn > 257, "the template's tokens are new"
        assert (folder / "chat_template.jinja").is_file()
        assert answer(AutoModelForCausalLM.from_pretrained(folder), folder) == "8" + end


@pytest.mark.slow
def test_an_adapter_stops_there_too(tmp_path):
    """peft writes no generation config, and transformers reads that of the base: ours lies beside it."""
    model = base_model(tmp_path / "base", "<|im_start|>", "<|im_end|>")
    checkpoint = trained(
        tmp_path,
        model,
        "chatml",
        "model.lora={r: 8, modules_to_save: [lm_head, embed_tokens]}",
        "train.max_steps=60",
    )
    assert not (checkpoint / "config.json").exists()
    assert answer(load_scored(checkpoint, "cpu"), checkpoint) == "8<|im_end|>"
    stock = AutoModelForCausalLM.from_pretrained(checkpoint)
    ends = GenerationConfig.from_pretrained(checkpoint)
    assert answer(stock, checkpoint, generation_config=ends) == "8<|im_end|>"
    export(str(checkpoint), tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert answer(exported, tmp_path / "exported") == "8<|im_end|>"


@pytest.mark.slow
def test_a_config_that_transformers_refuses_to_write_travels(tmp_path):
    """A temperature without do_sample: published models have that. Once an id in it changes, transformers
    does not save it; the checkpoint then failed."""
    sampling = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    model = base_model(tmp_path / "base", generation=sampling | {"eos_token_id": [7]})
    checkpoint = trained(tmp_path, model, "chatml", "train.max_steps=1")
    export(str(checkpoint), tmp_path / "exported")
    export(str(model), tmp_path / "untrained")
    again = json.loads((tmp_path / "untrained" / GENERATION).read_text())
    assert sampling.items() <= again.items()
    for folder in (checkpoint, tmp_path / "exported"):
        written = json.loads((folder / GENERATION).read_text())
        assert sampling.items() <= written.items()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert written["eos_token_id"] == [tokenizer.eos_token_id, 7, turn], (
            "the tokenizer's, the base's, the template's"
        )
        AutoModelForCausalLM.from_pretrained(folder)
