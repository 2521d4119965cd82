"""Exports give the logits of their checkpoint: for families, ties, adapters, types and files in parts.

`pytest -s -k every_family` prints a table of largest differences. Adapters are random, written by peft: what
was not trained shows an error in any weight as well, and faster.
"""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import WorkError
from posttrain.models import adapters
from posttrain.models.exporting import Proof, _compare_tokenizers, write_plain
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
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # with the rules of the model's own class
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


# ---- types, files, options ---------------------------------------------------------------------------------


def test_the_type_is_that_of_the_base_or_the_one_asked_for(tmp_path, tokenizer):
    """Asked for fp32, an adapter on bf16 weights is merged without rounding: W + 2 B A."""
    place = place_of(tmp_path, tokenizer, "llama", False, "attention", torch.bfloat16)
    for dtype in ("auto", "float32", "float16"):
        proof = written(tmp_path / dtype, place, dtype)
        assert 0 < proof.difference <= proof.bound
    weights = {
        name: load_file(tmp_path / name / "model.safetensors") for name in ("auto", "float32", "float16")
    }
    assert {str(w.dtype) for w in weights["auto"].values()} == {"torch.bfloat16"}
    assert {str(w.dtype) for w in weights["float16"].values()} == {"torch.float16"}
    assert json.loads((tmp_path / "auto" / "config.json").read_text())["dtype"] == "bfloat16"
    name = "model.layers.0.self_attn.q_proj"
    low = load_file(place / "adapter_model.safetensors")
    a, b = (low[f"base_model.model.{name}.lora_{x}.weight"].float() for x in "AB")
    below = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"].float()
    exact = load_file(tmp_path / "float32" / "model.safetensors")[f"{name}.weight"]
    assert torch.allclose(exact, below + 2 * b @ a, atol=1e-6)


def test_weights_that_nothing_changes_are_the_same_bytes(tmp_path, tokenizer):
    place = place_of(tmp_path, tokenizer, "llama", True, "full", torch.bfloat16)
    proof = written(tmp_path / "out", place)
    assert proof.difference == 0 and proof.bound < 1e-3
    before, after = (load_file(folder / "model.safetensors") for folder in (place, tmp_path / "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert str(tmp_path) not in json.dumps(config), "a path of this machine"


def test_files_in_parts(tmp_path, tokenizer, monkeypatch):
    save = PreTrainedModel.save_pretrained
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", partialmethod(save, max_shard_size="20KB"))
    place = place_of(tmp_path, tokenizer, "llama", True, "head")
    proof = written(tmp_path / "out", place)
    assert proof.difference <= proof.bound
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= index["weight_map"].keys()


def test_options_of_a_trained_adapter_are_in_the_config(tmp_path, tokenizer):
    """`model.options` of the stage; a full model has them in its own config.json."""
    place = place_of(tmp_path, tokenizer, "llama", False, "attention")
    ids = torch.arange(60)[None]
    with torch.inference_mode():
        without = load_scored(place, "cpu")(input_ids=ids).logits
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    (place / "checkpoint.json").write_text(json.dumps({"model_options": {"rope_parameters": rope}}))
    proof = written(tmp_path / "out", place)
    assert proof.difference <= proof.bound
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"] == rope
    with torch.inference_mode():
        scored = load_scored(place, "cpu")(input_ids=ids).logits
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(input_ids=ids).logits
    assert torch.allclose(exported, scored, atol=1e-4) and (scored - without).abs().max() > 0.1


def test_a_chain_of_adapters(tmp_path, tokenizer):
    """A head on a tied model, then its embedding, then attention, of three ranks."""
    place = full_model(tmp_path / "base", tokenizer, "llama", True)
    for r, target in enumerate(("lm_head", "embed_tokens", "q_proj"), 2):
        below = load_scored(place, "cpu")
        below = adapters.merge(below, str(place)) if r > 2 else below
        config = LoraConfig(task_type="CAUSAL_LM", r=r, target_modules=[target])
        model = get_peft_model(below, config)
        _randomise(model, trained=True)
        place = tmp_path / target
        model.save_pretrained(place)
    assert written(tmp_path / "out", place).difference > 0
    ids = torch.arange(60)[None]
    with torch.inference_mode():
        expected = model.eval()(input_ids=ids).logits
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(input_ids=ids).logits
    assert (exported - expected).abs().max() <= 1e-5 * expected.abs().max()


# ---- what is told ------------------------------------------------------------------------------------------


def test_a_lost_tie_is_told(tmp_path, tokenizer, monkeypatch):
    """Without untying, the update of the head goes into the embedding as well (peft#2018)."""
    monkeypatch.setattr(adapters, "_untie", lambda model: None)
    place = place_of(tmp_path, tokenizer, "llama", True, "head")
    with pytest.raises(WorkError, match=r"a logit differs by \d.*, above the bound .*e-05 \(the largest"):
        written(tmp_path / "out", place)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_weight_is_told(tmp_path, tokenizer, monkeypatch, dtype):
    """In fp32 a thousandth of one matrix; in bf16, which rounds to 1 of 256, half of it."""
    place = place_of(tmp_path, tokenizer, "llama", False, "full")
    save = PreTrainedModel.save_pretrained

    def spoilt(model, *args, **kwargs):
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.mul_(1.001 if dtype == "float32" else 0.5)
        save(model, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", spoilt)
    with pytest.raises(WorkError, match="a logit differs by"):
        written(tmp_path / "out", place, dtype)


def test_another_tokenizer_is_told(tmp_path, tokenizer, monkeypatch):
    place = place_of(tmp_path, tokenizer, "llama", False, "full")
    other = load_tokenizer("builtin:bytes")
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    loaded = load_tokenizer(str(place))
    monkeypatch.setattr(loaded, "save_pretrained", other.save_pretrained)
    (tmp_path / "out").mkdir()
    with pytest.raises(WorkError, match="another chat template and encoding of a text"):
        write_plain(str(place), tmp_path / "out", loaded, "auto")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.add_tokens(["<extra>"]), "vocabulary"),
        (lambda t: setattr(t, "eos_token", "<|im_start|>"), "special tokens"),
    ],
)
def test_what_differs_of_a_tokenizer_is_named(tmp_path, tokenizer, change, what):
    own, other = (load_tokenizer("builtin:bytes") for _ in "ab")
    change(other)
    other.save_pretrained(tmp_path)
    with pytest.raises(WorkError, match=f"not the checkpoint's: another {what}$"):
        _compare_tokenizers(own, tmp_path, None)


def test_half_a_number_is_told(tmp_path, tokenizer):
    """A weight above 65,504 is infinite in fp16."""
    place = full_model(tmp_path / "base", tokenizer, "llama", False)
    model = AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        model.lm_head.weight[5] = 1e6
    model.save_pretrained(place)
    with pytest.raises(WorkError, match=r"a logit differs by (inf|nan)"):
        written(tmp_path / "out", place, "float16")
