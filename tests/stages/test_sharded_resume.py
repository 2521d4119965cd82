"""Two processes that are resumed under an engine that shards equal the uninterrupted run: adapters, tied
weights, a checkpoint without whole weights; and what these engines load is compared with the model."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.models.sharded_weights import refuse_other_fsdp, refuse_other_zero
from posttrain.rundir.checkpoints import all_complete
from posttrain.rundir.proof import Damaged
from tests.training.preferences import far, rows

SETTINGS = [
    "train.per_device_train_batch_size=2",
    "train.optim=adamw_torch",
    "train.learning_rate=1e-2",
    "train.lr_scheduler_type=linear",
    "train.logging_steps=1",
    "checkpoints.save_steps=3",
    "checkpoints.keep_last=null",
]
LORA = {
    "plain": "model.lora={r: 4, target_modules: [q_proj, v_proj]}",
    "head": "model.lora={r: 4, target_modules: [q_proj], modules_to_save: [lm_head]}",
}


def starts(tied: Path) -> dict[str, list[str]]:
    """What is resumed, as overrides beside `SETTINGS`."""
    return {name: [lora] for name, lora in LORA.items()} | {"tied": [f"model.init={tied}"]}


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param("zero2", marks=pytest.mark.exhaustive), "zero3"])
def test_a_run_is_resumed(recipe, launch, tiny, tied, engine):
    """FSDP2 is in `tests/training/test_fsdp2.py`, whose launch it shares."""
    models = starts(tied) | ({"earlier": []} if engine == "zero3" else {})
    cases = [
        {
            "name": name,
            "recipe": str(recipe),
            "overrides": [f"name={name}", *SETTINGS, *overrides],
            "again": True,
            "earlier": name == "earlier",
        }
        for name, overrides in models.items()
    ]
    for name, result in launch(cases, f"{engine}.yaml").items():
        assert (result["world_size"], result["engine"]) == (2, engine)
        is_resumed(recipe.parent / name, name, engine, tiny)


def is_resumed(run: Path, name: str, engine: str, tiny: Path) -> None:
    """`name`: of `starts`, or `earlier`."""
    file = f"{'adapter_' if name in LORA else ''}model.safetensors"
    before, last = (checkpoint.path for checkpoint in all_complete(run / "checkpoints")[-2:])
    first, again = load_file(run / "first.safetensors"), load_file(last / file)
    assert far(first, again) <= 1e-6
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5]
    assert (before / file).exists() == (name != "earlier")
    assert (name == "tied") == ("lm_head.weight" not in again and name not in LORA)
    if name in LORA:
        what_is_loaded_is_compared(before, name, engine, tiny)


def what_is_loaded_is_compared(folder: Path, name: str, engine: str, tiny: Path) -> None:
    """The files that the engine has written, then with one name, shape or place changed."""
    if engine == "fsdp2":
        file, key, model = folder / "pytorch_model_fsdp.bin", None, adapter(tiny, name)
        ask = partial(refuse_other_fsdp, model, folder)
    else:
        rank = "zero_pp_rank_0_" if engine == "zero3" else ""
        file, key = folder / "global_step3" / f"{rank}mp_rank_00_model_states.pt", "param_shapes"
        groups = torch.load(file, weights_only=False)[key]
        fake = SimpleNamespace(
            zero_optimization=lambda: True,
            _get_zero_param_shapes=lambda: groups,
            _get_ckpt_name=lambda place, tag: f"{place}/{tag}/{file.name}",
        )
        ask = partial(refuse_other_zero, fake, folder)
    ask()
    whole = file.read_bytes()
    for change, words in CHANGES.items():
        if change == "order" and key is None:
            continue
        saved = torch.load(file, weights_only=False)
        weights = dict(saved[key][0] if key else saved)
        first = next(iter(weights))
        value = weights.pop(first)
        if change == "order":
            weights[first] = value
        elif change == "name":
            weights[f"{first}.other"] = value
        elif change == "other":
            weights |= {first: value, "other": value}
        elif change == "shape":
            weights[first] = torch.Size([7]) if key else torch.zeros(7)
        torch.save(saved | {key: [OrderedDict(weights), *saved[key][1:]]} if key else weights, file)
        with pytest.raises(Damaged, match=words):
            ask()
        file.write_bytes(whole)
    ask()


CHANGES = {
    "missing": "its files lack base_model",
    "name": "its files lack base_model",
    "other": "its files have other, which the model does not",
    "shape": r"its files have base_model.* as \[7\] instead of",
    "order": "another order",
}


def adapter(place: Path, name: str):
    base = AutoModelForCausalLM.from_pretrained(place)
    saved = {"modules_to_save": ["lm_head"]} if name == "head" else {}
    targets = ["q_proj"] if name == "head" else ["q_proj", "v_proj"]
    return get_peft_model(base, LoraConfig(r=4, target_modules=targets, **saved))
