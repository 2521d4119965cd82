"""Adapters under the engines that shard: two processes that are resumed equal the uninterrupted run, and what
these engines load is compared with the model."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from posttrain.base.files import read_jsonl
from posttrain.rundir.checkpoints import all_complete

SETTINGS = [
    "train.per_device_train_batch_size=2",
    "train.optim=adamw_torch",
    "train.learning_rate=1e-2",
    "train.lr_scheduler_type=linear",
    "train.logging_steps=1",
    "checkpoints.save_steps=3",
    "checkpoints.keep_last=null",
]
ADAPTERS = {
    "plain": "model.lora={r: 4, target_modules: [q_proj, v_proj]}",
    "head": "model.lora={r: 4, target_modules: [q_proj], modules_to_save: [lm_head]}",
}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2.yaml", "zero3.yaml", "fsdp2.yaml"])
def test_an_adapter_is_resumed(recipe, launch, config):
    cases = [
        {"name": name, "recipe": str(recipe), "overrides": [f"name={name}", *SETTINGS, lora], "again": True}
        for name, lora in ADAPTERS.items()
    ]
    for name, result in launch(cases, config).items():
        run = recipe.parent / name
        assert result["engine"] == config.removesuffix(".yaml")
        first = load_file(run / "first.safetensors")
        last = load_file(all_complete(run / "checkpoints")[-1].path / "adapter_model.safetensors")
        assert first.keys() == last.keys()
        assert max(float((first[key] - last[key]).abs().max()) for key in first) <= 1e-6
        assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]
