"""A checkpoint is complete only with all of its weights: names and shapes on disk are those of the model.

The library saves none, with a warning, where ZeRO-3 does not gather them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from posttrain import sft
from posttrain.errors import WorkError
from posttrain.recipe import load_stage
from posttrain.training.saving import CheckpointWriter
from tests.tiny import accelerate

UP = "model.layers.1.mlp.up_proj.weight"
UNCHECKED = """\
import sys
import posttrain.stages.train as stages
stages.refuse_unsaved_weights = lambda model: None
from posttrain.sft import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def ungathered(root, environment, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """`ungathered(processes, *command)` under launch/zero3.yaml without `zero3_save_16bit_model`."""
    values = yaml.safe_load((root / "launch" / "zero3.yaml").read_text()) | {"use_cpu": True}
    del values["deepspeed_config"]["zero3_save_16bit_model"]
    config = tmp_path / "default.yaml"
    config.write_text(yaml.safe_dump(values))

    def run(processes: int, *command: str) -> subprocess.CompletedProcess:
        return accelerate(config, *command, environment=environment, cwd=tmp_path, processes=processes)

    return run


@pytest.mark.slow
@pytest.mark.ranks
def test_zero3_that_gathers_nothing_is_refused_before_work_begins(recipe, ungathered):
    done = ungathered(2, "-m", "posttrain.sft", str(recipe))
    assert done.returncode != 0
    assert "error: under this ZeRO-3 config checkpoints would hold no weights; set" in done.stderr
    assert not (recipe.parent / "case").exists() and not (recipe.parent / "cache").exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_and_would_seal_nothing(recipe, ungathered):
    script = recipe.parent / "unchecked.py"
    script.write_text(UNCHECKED)
    done = ungathered(2, str(script), str(recipe), "train.max_steps=1", "train.per_device_train_batch_size=4")
    assert done.returncode != 0
    assert "step-000001 could not be written: rank 0: no weights were written" in done.stderr
    assert not list((recipe.parent / "case" / "checkpoints").iterdir())


CHANGES = {
    "none": (lambda file: file.unlink(), "no weights were written (there is no model.safetensors)"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-100]), "model.safetensors cannot be opened"),
    "missing": (lambda file: written(file, lambda w: w.pop(UP)), f"its files lack {UP}"),
    "shape": (
        lambda file: written(file, lambda w: w.update({UP: w[UP][:48].clone()})),
        f"{UP} as [48, 32] instead of [64, 32]",
    ),
    "other": (
        lambda file: written(file, lambda w: w.update(new=w[UP].clone())),
        "new, which the model does not",
    ),
}


def written(file: Path, change: Callable[[dict], object]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_what_was_written_is_compared_with_the_model(recipe, monkeypatch, name):
    change, words = CHANGES[name]
    plain = CheckpointWriter._save

    def save(self, output_dir=None, state_dict=None):
        plain(self, output_dir, state_dict)
        change(Path(output_dir) / "model.safetensors")

    monkeypatch.setattr(CheckpointWriter, "_save", save)
    with pytest.raises(WorkError) as caught:
        sft.train(load_stage(recipe, ["train.max_steps=1"], "sft"))
    assert "step-000001 could not be written: " in str(caught.value) and words in str(caught.value)
    assert not list((recipe.parent / "case" / "checkpoints").iterdir())
