"""Saved adapters: loaded to be scored, and merged to start a stage, they are the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations import deepspeed

from posttrain.base.unsharded import unsharded_loading
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError
from posttrain.models.adapter_targets import refuse_missing_modules
from posttrain.models.adapters import lora_config, refused_by_peft
from posttrain.models.load import commit_of, load_model, load_scored
from posttrain.recipe.library_fields import table
from posttrain.recipe.rules import LORA_INITS
from posttrain.recipe.schema import Lora, Model
from tests.tiny import tiny_model

TWO = ["q_proj", "v_proj"]
HEADED = ["q_proj", "lm_head"]
EMBEDDED = ["q_proj", "embed_tokens"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("bases")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    return {
        "plain": tiny_model(out / "plain", vocab_size=280),
        "tied": tiny_model(out / "tied", True, vocab_size=280),
        "gpt2": tiny_model(out / "gpt2", True, "gpt2", vocab_size=280, **sizes),
        "biased": tiny_model(out / "biased", kind="qwen2", vocab_size=280),
    }


def adapted(base: Path, folder: Path, lora: Lora, seed: int = 0) -> torch.nn.Module:
    """A trained adapter on `base`, saved in `folder`; the model as it was trained.

    What a stage trains is moved at random here.
    """
    model = load_model(Model(init=str(base)), base, load_tokenizer("builtin:digits"), 0)
    torch.manual_seed(seed)
    live = get_peft_model(model, lora_config(lora, None))
    with torch.no_grad():
        for p in live.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    live.save_pretrained(folder)
    return live


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(1))
    return model.eval()(input_ids=ids).logits.float()


def merged(place: Path, **options: Any) -> torch.nn.Module:
    return load_model(Model(init=str(place), **options), place, load_tokenizer("builtin:digits"), 0)


def apart(a: torch.nn.Module, b: torch.nn.Module) -> float:
    return float((logits(a) - logits(b)).abs().max())


# ---- options -----------------------------------------------------------------------------------------------

OPTIONS: dict[str, list[tuple[str, list[str], dict[str, Any]]]] = {
    "alpha_pattern": [("plain", TWO, {"alpha_pattern": {"v_proj": 5}})],
    "bias": [("biased", TWO, {"bias": "all"}), ("biased", TWO, {"bias": "lora_only"})]
    + [("gpt2", ["c_attn"], {"bias": "all"})],
    "ensure_weight_tying": [("tied", EMBEDDED, {"ensure_weight_tying": True})],
    "exclude_modules": [("plain", ["all-linear"], {"exclude_modules": ["v_proj"]})],
    "fan_in_fan_out": [("gpt2", ["c_attn"], {"fan_in_fan_out": True})],
    "init_lora_weights": [("plain", TWO, {"init_lora_weights": name}) for name in LORA_INITS],
    "layers_pattern": [("plain", TWO, {"layers_pattern": "layers", "layers_to_transform": [1]})],
    "layers_to_transform": [("plain", TWO, {"layers_to_transform": [1]})],
    "rank_pattern": [("plain", TWO, {"rank_pattern": {"q_proj": 2}})],
    "target_parameters": [("plain", ["v_proj"], {"target_parameters": ["self_attn.q_proj.weight"]})],
    "trainable_token_indices": [("plain", TWO, {"trainable_token_indices": [5, 60, 97]})],
    "use_dora": [(base, ["all-linear"], {"use_dora": True}) for base in ("plain", "gpt2", "biased")],
    "use_rslora": [("tied", HEADED, {"use_rslora": True})],
}
PLAIN = [(base, targets, {}) for base in ("plain", "tied") for targets in (HEADED, EMBEDDED)]
CASES = [case for cases in OPTIONS.values() for case in cases] + PLAIN


def test_every_option_is_tried():
    assert OPTIONS.keys() == {name for name, field in table()["LoraConfig"].items() if field.open}


@pytest.mark.parametrize(("base", "targets", "options"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_a_saved_adapter_is_the_model_that_was_trained(bases, tmp_path, base, targets, options):
    live = adapted(bases[base], tmp_path, Lora(r=4, target_modules=targets, options=options))
    assert float((logits(live) - logits(load_scored(bases[base], "cpu"))).abs().max()) > 1e-3
    assert apart(live, load_scored(tmp_path, "cpu")) == 0
    start = merged(tmp_path)
    assert apart(live, start) <= 1e-5
    assert all(p.requires_grad for p in start.parameters())
    start.save_pretrained(tmp_path / "again")  # a head of its own, where it has become one, is written too
    assert apart(start, AutoModelForCausalLM.from_pretrained(tmp_path / "again")) == 0


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], ["norm"]])
@pytest.mark.parametrize("base", ["plain", "tied"])
def test_modules_saved_whole(bases, tmp_path, base, saved):
    live = adapted(bases[base], tmp_path, Lora(r=4, target_modules=TWO, modules_to_save=saved))
    assert apart(live, load_scored(tmp_path, "cpu")) == 0 and apart(live, merged(tmp_path)) <= 1e-5


def test_repeated_layers_are_not_merged(bases, tmp_path):
    """They share weights: peft would merge two adapters into one (logits off by .5)."""
    adapted(
        bases["plain"],
        tmp_path,
        Lora(r=4, target_modules=TWO, options={"layer_replication": [[0, 2], [0, 2]]}),
    )
    with pytest.raises(RequestError, match="layer_replication, which cannot be merged"):
        merged(tmp_path)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (
            Lora(target_modules=["q_proj", "v_porj"]),
            r"target_modules: .* 'v_porj' \(did you mean 'v_proj'\?\)",
        ),
        (Lora(modules_to_save=["lm_heat"]), r"modules_to_save: .* 'lm_heat' \(did you mean 'lm_head'\?\)"),
        (Lora(target_modules=["proj"]), "no module 'proj'"),
        (Lora(target_modules=["self_attn.q_proj", "layers.1.mlp.up_proj"]), None),
        (Lora(modules_to_save=["norm"]), None),
        (Lora(options={"rank_pattern": {"a": 1}}), "options.rank_pattern: the model has no module 'a'"),
        (
            Lora(options={"alpha_pattern": {"v_porj": 1}}),
            r"options.alpha_pattern: .* 'v_porj' \(did you mean 'v_proj'\?\)",
        ),
        (Lora(options={"rank_pattern": {"(": 1}}), r"rank_pattern: '\(' is not a regular expression"),
        (Lora(options={"exclude_modules": "zzz"}), "options.exclude_modules: the model has no module 'zzz'"),
        (Lora(options={"exclude_modules": ["v_proj", "b"]}), "exclude_modules: the model has no module 'b'"),
        (
            Lora(options={"trainable_token_indices": {"zzz": [1]}}),
            "options.trainable_token_indices: the model has no module 'zzz'",
        ),
        (Lora(options={"target_parameters": ["q.weight"]}), "the model has no parameter 'q.weight'"),
        (Lora(options={"rank_pattern": {r"layers\.1\..*": 1, "^model.layers.0.mlp.up_proj": 2}}), None),
        (Lora(options={"exclude_modules": r".*\.v_proj"}), None),
        (Lora(options={"exclude_modules": ["v_proj"], "target_parameters": ["q_proj.weight"]}), None),
    ],
)
def test_names_of_modules(bases, lora, words):
    """peft trains those that it finds and says nothing of the others."""
    model = AutoModelForCausalLM.from_pretrained(bases["plain"])
    if words is None:
        return refuse_missing_modules(model, lora)
    with pytest.raises(RequestError, match=words):
        refuse_missing_modules(model, lora)


def test_olora_needs_linear_layers(bases):
    """It takes Q R out of the weight and gives it back by B A, which for a Conv1D is transposed."""
    model = AutoModelForCausalLM.from_pretrained(bases["gpt2"])
    olora = {"init_lora_weights": "olora"}
    for targets in (["all-linear"], ["attn.c_proj"]):
        with pytest.raises(RequestError, match="olora does not work for .*, a Conv1D"):
            refuse_missing_modules(model, Lora(target_modules=targets, options=olora))
    refuse_missing_modules(model, Lora(target_modules=["lm_head"], options=olora))


# ---- loading -----------------------------------------------------------------------------------------------


def test_a_chain_in_half_precision_loses_no_small_update(bases, tmp_path):
    """An update of 2^-12 of a weight is below bfloat16's rounding (2^-8): merged there it would be lost."""
    half = AutoModelForCausalLM.from_pretrained(bases["plain"], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "base")
    live = adapted(tmp_path / "base", tmp_path / "a", Lora(r=4, alpha=4, target_modules=TWO))
    small = load_file(tmp_path / "a" / "adapter_model.safetensors")
    save_file(
        {k: v * (2**-12 if "lora_B" in k else 1) for k, v in small.items()},
        tmp_path / "a" / "adapter_model.safetensors",
    )
    live = adapted(tmp_path / "a", tmp_path / "b", Lora(r=2, target_modules=["k_proj"]))
    scored = load_scored(tmp_path / "b", "cpu")
    assert scored.dtype == torch.float32 and apart(live, scored) <= 1e-5
    assert load_scored(tmp_path / "a", "cpu").dtype == torch.bfloat16


def test_options_of_the_stage_that_trained_an_adapter_apply_again(bases, tmp_path):
    """Of three adapters the second was trained under another rope; a recipe's own options come last."""
    first, second, third = (tmp_path / name for name in "abc")
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 20.0}}
    adapted(bases["plain"], first, Lora(r=4, target_modules=TWO))
    adapted(first, second, Lora(r=2, target_modules=TWO))
    without = merged(second)
    (second / "checkpoint.json").write_text(json.dumps({"model_options": rope}))
    adapted(second, third, Lora(r=3, target_modules=TWO))
    assert merged(second).config.rope_parameters["rope_theta"] == 20.0
    assert load_scored(second, "cpu").config.rope_parameters["rope_theta"] == 20.0
    assert apart(merged(third), load_scored(third, "cpu")) <= 1e-5
    assert apart(merged(second), without) > 1e-3
    own = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    assert apart(merged(second, options=own), without) == 0


def test_weights_in_a_pickle(bases, tmp_path):
    """As older versions of peft wrote them."""
    live = adapted(bases["plain"], tmp_path, Lora(r=4, target_modules=TWO))
    file = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "adapter_model.bin")
    file.unlink()
    assert apart(live, load_scored(tmp_path, "cpu")) == 0 and apart(live, merged(tmp_path)) <= 1e-5


def drop(weights: dict) -> dict:
    return {k: v for k, v in weights.items() if "layers.1.self_attn.q_proj.lora_B" not in k}


def add(weights: dict) -> dict:
    return weights | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}


def widen(weights: dict) -> dict:
    return {k: torch.cat([v, v], 1).contiguous() if "lora_A" in k else v for k, v in weights.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, "does not fit its base .*: it lacks .*layers.1.self_attn.q_proj.lora_B"),
        (add, "does not fit its base .*: it has weights that do not belong to the base: .*layers.7"),
        (widen, "does not fit its base .*: size mismatch for .*lora_A"),
    ],
)
def test_weights_that_do_not_fit(bases, tmp_path, change, words):
    adapted(bases["plain"], tmp_path, Lora(r=4, target_modules=TWO))
    file = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    for load in (merged, lambda place: load_scored(place, "cpu")):
        with pytest.raises(RequestError, match=words):
            load(tmp_path)


def test_damaged_weights(bases, tmp_path):
    adapted(bases["plain"], tmp_path, Lora(r=4, target_modules=TWO))
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    for load in (merged, lambda place: load_scored(place, "cpu")):
        with pytest.raises(RequestError, match="its weights are damaged"):
            load(tmp_path)


# ---- hub, ZeRO-3 -------------------------------------------------------------------------------------------


@pytest.fixture
def hub(bases, tmp_path, monkeypatch):
    """`hub(name, folder)`: the folder as `org/name` in the hub's cache; nothing else can be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name: str, folder: Path, commit: str = "a" * 40) -> str:
        repo = tmp_path / "hub" / f"models--org--{name}"
        (repo / "snapshots").mkdir(parents=True, exist_ok=True)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
        folder.rename(repo / "snapshots" / commit)
        return f"org/{name}"

    return put


def test_an_adapter_on_the_hub(bases, tmp_path, hub):
    tiny_model(tmp_path / "base", vocab_size=280)
    live = adapted(bases["plain"], tmp_path / "a", Lora(r=4, target_modules=TWO))
    config = tmp_path / "a" / "adapter_config.json"
    base = hub("base", tmp_path / "base", "b" * 40)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
    place = hub("adapter", tmp_path / "a")
    start = load_model(Model(init=place), place, load_tokenizer("builtin:digits"), 0)
    assert apart(live, start) <= 1e-5 and apart(live, load_scored(place, "cpu")) == 0
    assert commit_of(place, None) == "a" * 40 and commit_of(base, None) == "b" * 40
    assert commit_of(place, "main") == "a" * 40 and commit_of(str(tmp_path), None) is None
    with pytest.raises(RequestError, match="org/nothing"):
        commit_of("org/nothing", None)


def test_under_zero3_an_adapter_is_merged_before_weights_are_sharded(bases, tmp_path):
    """Nothing of DeepSpeed is set up here: a model that it would shard while loading could not be made."""
    live = adapted(
        bases["plain"], tmp_path, Lora(r=4, target_modules=HEADED, modules_to_save=["embed_tokens"])
    )

    class Zero3:
        def is_zero3(self) -> bool:
            return True

    config = Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        start = merged(tmp_path)
        assert deepspeed.is_deepspeed_zero3_enabled()
        with unsharded_loading():
            assert not deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert apart(live, start) <= 1e-5


# ---- what peft refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lora",
    [
        Lora(target_modules=["layers"]),
        Lora(target_modules=TWO, options={"layers_to_transform": [7]}),
        Lora(target_modules=TWO, options={"trainable_token_indices": [10**9]}),
        Lora(target_modules=TWO, options={"trainable_token_indices": {"zzz": [1]}}),
    ],
    ids=lambda lora: str(lora.options or lora.target_modules),
)
def test_an_error_of_peft_is_known_as_such(bases, lora):
    with pytest.raises(Exception) as error:  # peft has no type of its own for all of them
        get_peft_model(AutoModelForCausalLM.from_pretrained(bases["plain"]), lora_config(lora, None))
    assert refused_by_peft(error.value), error.value


def test_errors_that_say_nothing_of_an_adapter():
    def fails(name: str, error: Exception) -> Exception:
        try:
            exec("raise error", {"__name__": name, "error": error})
        except type(error) as raised:
            return raised

    assert refused_by_peft(fails("peft.tuners", IndexError()))
    assert not refused_by_peft(fails("trl.trainer", ValueError("Target module")))
    assert not refused_by_peft(fails("peft.tuners", torch.OutOfMemoryError()))
