"""Every kind of model is resumed with all of its weights: six steps in one go equal three, and three more.

Experts, whose names on disk are others than in the model, tied and untied weights, a merged adapter, adapters
beside frozen weights. Weights that do not fit are an error that names the checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain import sft
from posttrain.base.files import hash_of, read_json, write_json
from posttrain.errors import WorkError
from posttrain.models.load import load_scored
from posttrain.models.saved_weights import refuse_other_weights
from posttrain.recipe import load_stage
from posttrain.rundir.proof import FACTS, MARKER, seal
from tests.families import EXPERTS, LATENT, LINEAR, LOCAL_EXPERTS, MAMBA, SHARED_EXPERT
from tests.tiny import tiny_model

FAMILIES = {
    "llama": {},
    "gemma2": {"head_dim": 8},
    "phi": {},
    "qwen3_moe": EXPERTS,
    "mixtral": LOCAL_EXPERTS,
    "olmoe": EXPERTS,
    "granitemoe": LOCAL_EXPERTS,
    "deepseek_v3": EXPERTS | LATENT,
    "qwen3_next": EXPERTS | SHARED_EXPERT | LINEAR | {"num_hidden_layers": 4},
    "gpt_oss": LOCAL_EXPERTS | {"head_dim": 8},
    "falcon_h1": MAMBA,  # its config has an infinite number
}
SETTINGS = [
    "train.optim=adamw_torch",
    "train.learning_rate=1e-2",
    "train.lr_scheduler_type=linear",
    "train.max_steps=6",
    "train.per_device_train_batch_size=4",
    "checkpoints.save_steps=3",
    "checkpoints.keep_last=null",
]
LAST = "step-000006"


@pytest.fixture
def resumed(recipe) -> Callable[..., tuple[Path, dict, dict]]:
    """`resumed(model, *overrides, change)`: the run, the weights of its last checkpoint, and those of the
    same run taken up from the one before, after `change(folder)` was made to that."""

    def run(model: Path, *overrides: str, change: Callable[[Path], object] = lambda _: None):
        asked = load_stage(recipe, [*SETTINGS, f"model.init={model}", *overrides], "sft")
        last = sft.train(asked).checkpoints / LAST
        (file,) = [f for f in last.glob("*.safetensors") if f.name.startswith(("model", "adapter_model"))]
        whole = load_file(file)
        shutil.rmtree(last)
        change(last.with_name("step-000003"))
        sft.train(asked)
        return last, whole, load_file(file)

    return run


def equal(whole: dict, again: dict) -> None:
    assert again.keys() == whole.keys()
    different = [name for name, value in whole.items() if not torch.equal(value, again[name])]
    assert not different, different


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_resumed_with_all_of_its_weights(resumed, tmp_path, kind):
    start = tiny_model(tmp_path / "start", kind=kind, **FAMILIES[kind])
    last, whole, again = resumed(start)
    equal(whole, again)
    before = load_file(start / "model.safetensors")
    experts = [name for name in whole if "experts" in name or "moe" in name]
    trained = [name for name in experts if not torch.equal(whole[name], before[name])]
    assert bool(trained) == (kind not in ("llama", "gemma2", "phi", "falcon_h1"))
    refuse_other_weights(load_scored(last, "cpu"), last)  # what is saved is what is loaded


@pytest.mark.slow
@pytest.mark.parametrize("tie", [False, True])
def test_a_start_from_an_adapter_that_is_resumed(resumed, recipe, tmp_path, tie):
    """Merged, it may leave a head apart from an embedding that it was tied to."""
    model = tiny_model(tmp_path / "start", tie=tie)
    lora = "model.lora={r: 4, target_modules: [q_proj, lm_head]}"
    first = [f"model.init={model}", "name=first", lora, "train.learning_rate=0.05", "train.max_steps=2"]
    adapter = sft.train(load_stage(recipe, first, "sft")).path
    _, whole, again = resumed(adapter)
    equal(whole, again)
    assert "lm_head.weight" in whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("saved", ["[]", "[lm_head]", "[embed_tokens, lm_head]"])
def test_an_adapter_is_resumed_with_all_of_its_weights(resumed, tmp_path, kind, saved):
    lora = f"model.lora={{r: 4, target_modules: [q_proj, v_proj], modules_to_save: {saved}}}"
    equal(*resumed(tiny_model(tmp_path / "start", kind=kind, **FAMILIES[kind]), lora)[1:])


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Of a checkpoint, as if it had been written so: another version of a library may use other names."""

    def write(folder: Path) -> None:
        (file,) = [f for f in folder.glob("*.safetensors") if "model" in f.name]
        weights = load_file(file)
        change(weights)
        save_file(weights, file, {"format": "pt"})
        write_json(folder / FACTS, read_json(folder / FACTS) | seal(folder))
        (folder / MARKER).write_text(hash_of(folder / FACTS), encoding="ascii")

    return write


UP, GATE = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.experts.1.gate_proj.weight"
LORA = "model.lora={r: 4, target_modules: [q_proj, v_proj]}"
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
CHANGES = {
    "missing": ("llama", [], lambda w: w.pop(UP), f"its files lack {UP}"),
    "expert": ("qwen3_moe", [], lambda w: w.pop(GATE), f"its files lack {GATE}"),
    "shape": (
        "llama",
        [],
        lambda w: w.update({UP: w[UP][:48].clone()}),
        f"{UP} as [48, 32] instead of [64, 32]",
    ),
    "unexpected": ("llama", [], lambda w: w.update(new=w[UP].clone()), "have new, which the model does not"),
    "adapter": ("llama", [LORA], lambda w: w.pop(A), "its files lack base_model.model.model.layers.0"),
    "adapter_unexpected": (
        "llama",
        [LORA],
        lambda w: w.update({A.replace("layers.0", "layers.7"): w[A].clone()}),
        "have base_model.model.model.layers.7",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_do_not_fit_are_an_error(resumed, tmp_path, name):
    kind, overrides, change, words = CHANGES[name]
    model = tiny_model(tmp_path / "start", kind=kind, **FAMILIES[kind])
    with pytest.raises(WorkError) as caught:
        resumed(model, *overrides, change=rewritten(change))
    said = str(caught.value)
    assert "checkpoints/step-000003 cannot be resumed: " in said and words in said
    assert "Its files are as they were written: resume with the versions of the libraries" in said
    assert "damage" not in said and "emove" not in said and "\n" not in said
