"""Names and shapes on disk against those of the model, without reading a weight."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.models.saved_weights import refuse_other_weights, take_up_weights
from posttrain.rundir.proof import Damaged
from tests.families import EXPERTS
from tests.tiny import tiny_model


def changed(folder, change) -> None:
    (file,) = [f for f in folder.glob("*.safetensors") if "model" in f.name]
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("tie", [False, True])
def test_a_tied_weight_is_stored_once(tmp_path, tie):
    folder = tiny_model(tmp_path / "m", tie=tie)
    model = AutoModelForCausalLM.from_pretrained(folder)
    refuse_other_weights(model, folder)
    changed(folder, lambda w: w.setdefault("lm_head.weight", w["model.embed_tokens.weight"].clone()))
    refuse_other_weights(model, folder)  # twice does no harm
    take_up_weights(model, folder)
    if tie:
        head = "lm_head.weight"
        changed(folder, lambda w: w.update({head: w[head][:100].clone()}))
        with pytest.raises(Damaged, match=r"its files have lm_head\.weight as \[100, 32\] instead of"):
            refuse_other_weights(model, folder)
        changed(folder, lambda w: w.update({head: w["model.embed_tokens.weight"] + 1}))
        refuse_other_weights(model, folder)
        with pytest.raises(Damaged, match="its files have two values of .*, which are one weight"):
            take_up_weights(model, folder)
    changed(folder, lambda w: w.pop("model.embed_tokens.weight"))
    with pytest.raises(Damaged, match=r"its files lack model\.embed_tokens\.weight"):
        refuse_other_weights(model, folder)


def test_shards_are_read_together_and_none_may_be_missing(tmp_path):
    folder = tiny_model(tmp_path / "m", kind="qwen3_moe", **EXPERTS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    refuse_other_weights(model, folder)
    shards[0].unlink()
    with pytest.raises(Damaged, match="its files lack "):
        refuse_other_weights(model, folder)


ADAPTERS = {
    "plain": {},
    "all": {"target_modules": "all-linear"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norm": {"modules_to_save": ["norm"]},
    "tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "dora": {"use_dora": True},
    "biases": {"bias": "all"},
    "phi": {"bias": "all"},
    "tokens": {"trainable_token_indices": [1, 2]},
    "experts": {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
}


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter(tmp_path, name, tie):
    """peft writes a frozen head or embedding below an adapter besides; what is trained must be there, and is
    taken up."""
    kind = {"kind": "qwen3_moe"} | EXPERTS if name == "experts" else {"kind": "phi"} if name == "phi" else {}
    place = tiny_model(tmp_path / "m", tie=tie, **kind)

    def made():
        base = AutoModelForCausalLM.from_pretrained(place)
        return get_peft_model(base, LoraConfig(**{"r": 4, "target_modules": ["q_proj"]} | ADAPTERS[name]))

    model, again = made(), made()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_()
    model.save_pretrained(tmp_path / "a")
    refuse_other_weights(model, tmp_path / "a")
    take_up_weights(again, tmp_path / "a")
    other = again.state_dict()
    assert all(value.equal(other[key]) for key, value in model.state_dict().items())
    saved = load_file(tmp_path / "a/adapter_model.safetensors")
    for what in ("lora_A", "k_proj.bias") if name == "phi" else ("lora_A",):
        trained = next(key for key in saved if what in key)
        save_file(saved, tmp_path / "a/adapter_model.safetensors", {"format": "pt"})
        changed(tmp_path / "a", lambda w, trained=trained: w.pop(trained))
        for call in (refuse_other_weights, take_up_weights):
            fresh = made()
            before = {key: value.clone() for key, value in fresh.state_dict().items()}
            with pytest.raises(Damaged, match=f"its files lack .*{what}"):
                call(fresh, tmp_path / "a")
            assert all(value.equal(before[key]) for key, value in fresh.state_dict().items())
