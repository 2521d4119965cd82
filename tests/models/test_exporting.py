"""Exports give the logits of their checkpoint: for families, ties, adapters, types and files in parts.

`pytest -s -k every_family` prints a table of largest differences. Adapters are random, written by peft: what
was not trained shows an error in any weight as well, and faster.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.models.exporting import Proof, write_plain
from posttrain.models.load import load_scored
from posttrain.rundir.adapters import tokenizer_place

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
HEADS = {**SHAPE, "head_dim": 8}
FAMILIES = {
    "llama": SHAPE,
    "qwen2": SHAPE,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": HEADS,
    "gemma3_text": HEADS,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "lfm2": {**SHAPE, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        **HEADS,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_moe": {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
ATTENTION = {"gpt2": ["c_attn"], "lfm2": ["q_proj", "in_proj"], "qwen3_next": ["q_proj", "in_proj_qkvz"]}
CHANGES = ("full", "attention", "head", "embedding", "saved")


@pytest.fixture(scope="module")
def tokenizer():
    loaded = load_tokenizer("builtin:bytes")
    load_template("chatml", loaded).apply_to(loaded)
    return loaded


def full_model(folder: Path, tokenizer, kind: str, tie: bool, dtype: torch.dtype = torch.float32) -> Path:
    """Random weights, large enough that every token's logits differ."""
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        kind, **FAMILIES[kind], vocab_size=len(tokenizer), tie_word_embeddings=tie, **ends
    )
    model = AutoModelForCausalLM.from_config(config)
    _randomise(model)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, change: str) -> Path:
    """An adapter on `base` with random weights, as peft saves it: without a tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    kind = model.config.model_type
    targets, saved = list(ATTENTION.get(kind, ["q_proj", "v_proj"])), None
    if change == "head":
        targets.append("lm_head")
    elif change == "embedding":
        targets.append("wte" if kind == "gpt2" else "embed_tokens")
    elif change == "saved":
        saved = ["lm_head"]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, modules_to_save=saved
    )
    model = get_peft_model(model, config)
    _randomise(model, trained=True)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _randomise(model: torch.nn.Module, trained: bool = False) -> None:
    torch.manual_seed(1)
    spread = 0.05 if "next" in model.config.model_type else 0.2  # its recurrence multiplies rounding
    for weight in model.parameters():
        if weight.dim() > 1 and weight.requires_grad >= trained:
            weight.normal_(0, spread)


def place_of(folder: Path, tokenizer, kind: str, tie: bool, change: str, dtype=torch.float32) -> Path:
    base = folder / "base"
    if not base.exists():
        full_model(base, tokenizer, kind, tie, dtype)
    return base if change == "full" else adapter(folder / change, base, change)


def written(folder: Path, place: Path, dtype: str = "auto") -> Proof:
    folder.mkdir()
    return write_plain(str(place), folder, load_tokenizer(tokenizer_place(place)), dtype)


# ---- families, ties, adapters ------------------------------------------------------------------------------


def equal_logits(folder: Path, tokenizer, kind: str, tie: bool, change: str) -> Proof:
    """In fp32 to 1e-5 of the largest logit, as plain transformers and `load_scored` compute them."""
    ids = torch.arange(len(tokenizer))[None, ::5]
    place = place_of(folder, tokenizer, kind, tie, change)
    with torch.inference_mode():
        scored = load_scored(place, "cpu")(input_ids=ids).logits
    out = folder / f"out-{change}"
    proof = written(out, place)
    assert proof.difference <= proof.bound
    with torch.inference_mode():
        exported = AutoModelForCausalLM.from_pretrained(out)(input_ids=ids).logits
    assert (exported - scored).abs().max() <= 1e-5 * scored.abs().max()
    config = json.loads((out / "config.json").read_text())
    still = tie and change in ("full", "attention")
    assert config["tie_word_embeddings"] is still
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) is not still
    assert not list(out.glob("adapter*"))
    return proof


@pytest.mark.parametrize("change", CHANGES)
def test_a_tied_llama(tmp_path, tokenizer, change):
    equal_logits(tmp_path, tokenizer, "llama", True, change)


@pytest.mark.slow
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family(tmp_path, tokenizer, kind, tie):
    for change in CHANGES:
        exact = equal_logits(tmp_path, tokenizer, kind, tie, change)
        place = tmp_path / ("base" if change == "full" else change)
        half = written(tmp_path / f"half-{change}", place, "bfloat16")
        numbers = [f"{proof.difference:.1e} ({proof.bound:.1e})" for proof in (exact, half)]
        print("|", " | ".join([kind, "tied" if tie else "untied", change, *numbers]), "|")
