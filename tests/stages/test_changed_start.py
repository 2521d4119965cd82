"""A run is not resumed in a model of another config than the checkpoint's, although the weights fit; a start
model that is only written otherwise is the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain import sft
from posttrain.base.files import read_json, write_json
from posttrain.recipe import load_stage
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow
SHAPE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4, "head_dim": 8}
SETTINGS = ["train.max_steps=4", "checkpoints.save_steps=2", "checkpoints.keep_last=null"]
EDITS = {
    "rope_parameters.rope_theta 10000.0 -> 50000.0": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}
    },
    "sliding_window None -> 16": {"sliding_window": 16, "use_sliding_window": True},
    "hidden_act 'silu' -> 'gelu'": {"hidden_act": "gelu"},
    "num_experts_per_tok 2 -> 1": {"num_experts_per_tok": 1},
    "rms_norm_eps 1e-06 -> 0.001": {"rms_norm_eps": 1e-3},
    "attention_dropout 0.0 -> 0.5": {"attention_dropout": 0.5},
    "tie_word_embeddings False -> True": {"tie_word_embeddings": True},
}
SAME = {"_name_or_path": "x", "transformers_version": "5.0.0", "dtype": "bfloat16", "use_cache": False}
SAME |= {"of_another_tool": {"x": 1}, "architectures": ["Other"], "rms_norm_eps": 0.000001, "pad_token_id": 1}


@pytest.fixture
def stopped(recipe, tmp_path) -> tuple[Path, Path, list[str]]:
    """A run that was stopped after step 2, its start model, and its arguments."""
    model = tiny_model(tmp_path / "start", kind="qwen3_moe", **SHAPE)
    asked = [str(recipe), f"model.init={model}", *SETTINGS]
    run = sft.train(load_stage(recipe, asked[1:], "sft")).path
    shutil.rmtree(run / "checkpoints/step-000004")
    return run, model, asked


def refused(asked: list[str], run: Path, capsys) -> str:
    def files() -> dict[Path, bytes]:
        found = (file for file in run.rglob("*") if file.is_file() and file.name != "run.json")
        return {file: file.read_bytes() for file in found}

    before = files()
    capsys.readouterr()
    assert sft.main(asked) == 2
    said = capsys.readouterr().err
    assert files() == before and "Traceback" not in said
    return said[said.index("error: ") :]


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    config = read_json(folder / "config.json")
    change(config)
    write_json(folder / "config.json", config)


def test_the_key_and_both_values_are_named(stopped, capsys):
    run, model, asked = stopped
    config = (model / "config.json").read_text()
    for words, values in EDITS.items():
        edit(model, lambda config, values=values: config.update(values))
        said = refused(asked, run, capsys)
        assert f"{run}/checkpoints/step-000002 was trained with another config.json than {model}" in said
        assert words in said and f"name=... model.init={run}/checkpoints/step-000002" in said
        (model / "config.json").write_text(config)
    edit(model, lambda config: config.update(SAME))
    assert sft.main(asked) == 0


def test_another_model_of_the_same_shapes(recipe, tmp_path, capsys):
    model = tiny_model(tmp_path / "start")
    asked = [str(recipe), f"model.init={model}", *SETTINGS]
    run = sft.train(load_stage(recipe, asked[1:], "sft")).path
    shutil.rmtree(run / "checkpoints/step-000004")
    shutil.rmtree(model)
    tiny_model(model, kind="mistral", sliding_window=16)
    assert "model_type 'llama' -> 'mistral'" in refused(asked, run, capsys)
    begun = ["name=new", f"model.init={run}/checkpoints/step-000002"]
    assert sft.main([*asked, *begun]) == 0
