"""Adapters on disk, without torch: chains, identities, and what is refused before a weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from posttrain.base.files import append_jsonl
from posttrain.errors import RequestError
from posttrain.rundir import adapters
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapter_fit import refuse_unfit
from posttrain.rundir.adapters import adapter_in, chain, tokenizer_place

Q = "model.layers.0.self_attn.q_proj"


def model(folder: Path, width: int = 6, **config) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    save_file({f"{Q}.weight": np.zeros((4, width), np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def adapter(folder: Path, base: str | Path, width: int = 6, bias: bool = False, **config) -> Path:
    """Of rank 2, on the query projection: [2, width] and [4, 2]."""
    folder.mkdir(parents=True)
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    weights = {"lora_A.weight": (2, width), "lora_B.weight": (4, 2)} | ({"lora_B.bias": (4,)} if bias else {})
    named = {f"base_model.model.{Q}.{name}": np.zeros(s, np.float32) for name, s in weights.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def test_a_chain_of_three_leads_to_the_model_and_its_tokenizer(tmp_path):
    base = model(tmp_path / "m")
    a = adapter(tmp_path / "a", base)
    b = adapter(tmp_path / "b", a)
    c = adapter(tmp_path / "c", b, r=8)
    assert chain(c) == [str(c), str(b), str(a), str(base)]
    assert chain(base) == [str(base)] and chain("org/model") == ["org/model"]
    assert tokenizer_place(c) == str(base)
    (b / "tokenizer.json").write_text("{}")
    assert tokenizer_place(c) == str(b)
    refuse_unfit(c, quantized=False)
    assert adapter_in(base) is None


def test_a_relative_base_lies_by_the_working_directory_or_above_the_adapter(tmp_path, monkeypatch):
    base = model(tmp_path / "there" / "runs" / "m")
    a = adapter(tmp_path / "there" / "runs" / "a" / "checkpoints" / "step-000001", "runs/m")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Path(chain(a)[1]).samefile(base)
    monkeypatch.chdir(tmp_path / "there")
    assert chain(a)[1] == "runs/m", "as it is written, where that leads to the same folder"
    model(tmp_path / "here" / "runs" / "m", width=5)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RequestError, match=r"may be .*here/runs/m or .*there/runs/m: write the whole path"):
        chain(a)


def test_a_base_that_is_gone(tmp_path):
    """Deleted by rotation, moved together with the adapter, or without a trace."""
    runs = tmp_path / "runs"
    (runs / "a" / "checkpoints" / "step-000010").mkdir(parents=True)
    rotated = adapter(tmp_path / "x", runs / "a" / "checkpoints" / "step-000005")
    with pytest.raises(RequestError, match=r"step-000005, which was deleted, as by checkpoints.keep_last"):
        chain(rotated)
    model(runs / "m")
    moved = adapter(runs / "b", "/old/place/runs/m")
    with pytest.raises(RequestError, match=rf"did you mean '{runs}/m'\?.*adapter_config.json"):
        chain(moved)
    lost = adapter(tmp_path / "y", "/no/such/model")
    with pytest.raises(RequestError, match="/no/such/model, which does not exist"):
        chain(lost)
    assert chain(adapter(tmp_path / "z", "org/model"))[1] == "org/model", "on the hub, perhaps"


def test_a_circle(tmp_path):
    a = adapter(tmp_path / "a", tmp_path / "b")
    adapter(tmp_path / "b", tmp_path / "c" / ".." / "a")
    (tmp_path / "c").mkdir()
    with pytest.raises(RequestError, match=r"which is itself an adapter on it"):
        chain(a)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"peft_type": "PROMPT_TUNING"}, "of type PROMPT_TUNING: only LoRA is supported; merge it"),
        ({"task_type": "SEQ_CLS"}, "for the task SEQ_CLS, not for a causal language model"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights = pissa_niter_16, whose changes"),
        ({"init_lora_weights": "corda"}, "init_lora_weights = corda"),
        ({"layer_replication": [[0, 2]]}, "with layer_replication, which cannot be merged: the layers"),
        ({"alora_invocation_tokens": [3]}, "with alora_invocation_tokens, which cannot be merged"),
        ({}, None),
        ({"init_lora_weights": "pissa", "use_rslora": True, "task_type": None}, None),
    ],
)
def test_kinds_of_adapters(tmp_path, config, words):
    a = adapter(tmp_path / "a", model(tmp_path / "m"), **config)
    if words is None:
        return refuse_unfit(a, quantized=False)
    with pytest.raises(RequestError) as caught:
        refuse_unfit(a, quantized=False)
    assert words in str(caught.value) and str(a) in str(caught.value)


def test_adapters_that_do_not_fit(tmp_path):
    base = model(tmp_path / "m")
    wide = adapter(tmp_path / "wide", base, width=5)
    with pytest.raises(RequestError, match=r"q_proj.weight is 4 x 5 in the adapter and 4 x 6 in the base"):
        refuse_unfit(wide, quantized=False)
    biased = adapter(tmp_path / "biased", base, bias=True)
    with pytest.raises(RequestError, match=r"lora_bias and cannot be merged: .*q_proj.lora_B.bias"):
        refuse_unfit(biased, quantized=False)
    fits = adapter(tmp_path / "fits", base)
    with pytest.raises(RequestError, match=r"cannot be merged into the quantised weights .*posttrain export"):
        refuse_unfit(fits, quantized=True)
    packed = adapter(tmp_path / "packed", model(tmp_path / "q", quantization_config={"bits": 4}))
    with pytest.raises(RequestError, match="quantised"):
        refuse_unfit(packed, quantized=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"empty, which contains no model"):
        refuse_unfit(adapter(tmp_path / "e", tmp_path / "empty"), quantized=False)


def test_damaged_files(tmp_path):
    base = model(tmp_path / "m")
    broken = {
        "adapter_config.json": (lambda raw: raw[:20], "adapter_config.json is damaged"),
        "adapter_model.safetensors": (lambda raw: raw[:-4], "adapter_model.safetensors is damaged"),
    }
    for name, (cut, words) in broken.items():  # (2 x 6 + 4 x 2) x 4 bytes = 80
        a = adapter(tmp_path / name, base)
        (a / name).write_bytes(cut((a / name).read_bytes()))
        with pytest.raises(RequestError, match=words):
            refuse_unfit(a, quantized=False)
    a = adapter(tmp_path / "header", base)
    (a / "adapter_model.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(RequestError, match="adapter_model.safetensors is damaged"):
        refuse_unfit(a, quantized=False)
    longer = adapter(tmp_path / "longer", base) / "adapter_model.safetensors"
    longer.write_bytes(longer.read_bytes() + b"\0" * 4)
    with pytest.raises(RequestError, match="adapter_model.safetensors is damaged"):
        refuse_unfit(longer.parent, quantized=False)
    (a / "adapter_model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"no weights \(adapter_model.safetensors\)"):
        refuse_unfit(a, quantized=False)
    (a / "adapter_config.json").write_text("[]")
    with pytest.raises(RequestError, match="not an adapter's config"):
        chain(a)
    a = adapter(tmp_path / "facts", base)
    (a / "checkpoint.json").write_text("{")
    with pytest.raises(RequestError, match=r"checkpoint.json is damaged"):
        chain(a)


def test_a_folder_that_is_both_is_neither(tmp_path):
    both = model(tmp_path / "m")
    shutil.copytree(adapter(tmp_path / "a", both), both, dirs_exist_ok=True)
    with pytest.raises(RequestError, match=r"both an adapter .*and a full model \(model.safetensors\)"):
        chain(both)
    a = tmp_path / "a"
    (a / "config.json").write_text("{}")  # of the base, as some tools leave it
    shutil.rmtree(both)
    model(both)
    refuse_unfit(a, quantized=False)


# ---- identity ----------------------------------------------------------------------------------------------


def identity(place: str | Path, revision: str | None = None, branch: str = "c1") -> str:
    """On a hub where every branch is at commit `branch`."""
    return adapters.identity(place, revision, lambda _, revision: revision or branch)


def test_an_identity_follows_content_and_not_place(tmp_path):
    base = model(tmp_path / "m")
    a = adapter(tmp_path / "a", base)
    same = identity(a)
    shutil.copytree(base, tmp_path / "n")
    copy = adapter(tmp_path / "b", tmp_path / "n", inference_mode=True)
    assert identity(copy) == same and identity(tmp_path / "n") == identity(base)
    assert identity(base) != same


@pytest.mark.parametrize(
    "change",
    [
        lambda base, a: (base / "config.json").write_text('{"model_type": "llama", "rope_theta": 5}'),
        lambda base, a: (base / "modeling_own.py").write_text("x = 1"),
        lambda base, a: save_file({"x": np.ones(3, np.float32)}, base / "model.safetensors"),
        lambda base, a: (a / "checkpoint.json").write_text('{"model_options": {"sliding_window": 8}}'),
        lambda base, a: (a / "adapter_config.json").write_text(
            json.dumps(json.loads((a / "adapter_config.json").read_text()) | {"lora_alpha": 3})
        ),
        lambda base, a: save_file({"x": np.ones(3, np.float32)}, a / "adapter_model.safetensors"),
        lambda base, a: (a / "adapter_model.bin").write_bytes(b"older"),
    ],
    ids=["rope", "code", "weights", "options", "alpha", "adapter", "pickle"],
)
def test_an_identity_changes_with_all_that_the_forward_depends_on(tmp_path, change):
    base = model(tmp_path / "m", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    a = adapter(tmp_path / "a", base)
    before = identity(a)
    change(base, a)
    assert identity(a) != before


def test_code_that_the_config_does_not_name_is_not_part_of_a_model(tmp_path):
    base = model(tmp_path / "m")
    before = identity(base)
    (base / "notes.py").write_text("")
    assert identity(base) == before


def test_of_a_hub_id_the_revision_counts(tmp_path):
    assert identity("org/m", "a") != identity("org/m", "b") != identity("org/n", "b")
    a = adapter(tmp_path / "a", "org/m", revision="c0ffee")
    assert identity(a) == identity(a, branch="c2"), "the adapter names a commit"
    free = adapter(tmp_path / "b", "org/m")
    assert identity(free) != identity(free, branch="c2"), "the branch has moved"


def test_a_branch_and_the_commit_it_is_at_are_the_same_model(tmp_path):
    named = [adapter(tmp_path / r, "org/m", revision=r) for r in ("main", "c1")]
    assert len({adapters.identity(a, None, lambda *_: "c1") for a in named}) == 1


def test_weights_of_an_unknown_name_count_by_their_place(tmp_path):
    for name in "ab":
        folder = model(tmp_path / name)
        (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert identity(tmp_path / "a") != identity(tmp_path / "b")


def test_the_best_checkpoint_of_a_run_of_adapters(tmp_path):
    base, run = model(tmp_path / "m"), tmp_path / "runs" / "a"
    for step, value in ((1, 0.2), (2, 0.6), (3, 0.4)):
        folder = adapter(run / "checkpoints" / ckpt.name_of(step), base)
        (folder / "checkpoint.json").write_text(json.dumps({"step": step}))
        (folder / "COMPLETE").touch()
        row = {"checkpoint": folder.name, "step": step, "task": "t", "metric": "pass@1", "value": value}
        append_jsonl(run / "scores.jsonl", row)
    place = ckpt.resolve(f"{run}@best:t/pass@1")[0]
    assert Path(place).name == "step-000002" and chain(place) == [place, str(base)]
    refuse_unfit(place, quantized=False)


def test_a_lost_base_is_not_taken_for_the_adapter_itself(tmp_path):
    """Both are checkpoints of step 20; only the run's name tells them apart."""
    step = Path("checkpoints", "step-000020")
    a = adapter(tmp_path / "runs" / "c3" / step, Path("elsewhere", "runs", "c2", step))
    (tmp_path / "runs" / "c2").mkdir()
    with pytest.raises(RequestError, match=r"does not exist \(any more\): restore that folder"):
        chain(a)
    (tmp_path / "runs" / "c2" / step).mkdir(parents=True)
    with pytest.raises(RequestError, match=r"did you mean '.*/runs/c2/checkpoints/step-000020'\?"):
        chain(a)
