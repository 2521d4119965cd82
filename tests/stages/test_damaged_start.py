"""Whatever loads a model from a damaged checkpoint is refused with the file's name, before it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.errors import RequestError
from posttrain.rewards.model_based import reward_model
from posttrain.rundir.proof import MARKER
from tests.stages.damage import BEFORE, LAST, flip, start

pytestmark = pytest.mark.slow
TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
USES = {
    "model.init": lambda place: start("dpo", f"model.init={place}", "name=new"),
    "model.init of an adapter": lambda place: start("lora", f"model.init={place}", "name=new"),
    "reference_model": lambda place: start("dpo", f"preference.reference_model={place}", "name=new"),
    "policy.reference": lambda place: start(
        "rlvr", f"policy={{loss: dapo, advantage: mean_std, beta: 0.1, reference: {place}}}", "name=new"
    ),
    "pairs": lambda place: start("pairs", f"model.init={place}", "name=new"),
    "teacher": lambda place: start(
        "pairs", f"pairing={{strategy: cross_model, teacher: {place}}}", "name=new"
    ),
    "eval": lambda place: cli.main(["eval", place, "--task", "arithmetic", "--out", "scored"]),
    "chat": lambda place: cli.main(["chat", place]),
    "export": lambda place: cli.main(["export", place, "out"]),
}


def said(capsys, code: int) -> str:
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("file", ["model.safetensors", *TEXTS])
def test_a_damaged_checkpoint_is_refused(runs, use, file, capsys):
    place = f"runs/sft@{LAST}"
    flip(runs / "sft/checkpoints" / LAST / file, 0.5)
    error = said(capsys, USES[use](place))
    assert f"runs/sft/checkpoints/{LAST} is damaged: {file} has changed since it was written" in error
    assert f"copy the folder to another place without its file {MARKER}" in error
    assert not Path("out").exists() and not Path("scored").exists()


@pytest.mark.parametrize("use", ["eval", "export", "chat"])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_refused(runs, use, file, capsys):
    flip(runs / "lora/checkpoints" / LAST / file, 0.5)
    words = said(capsys, USES[use]("runs/lora"))  # a broken header is seen before the hashes are compared
    assert f"{LAST} is damaged: {file} has changed" in words or f"{LAST}/{file} is damaged" in words


@pytest.mark.parametrize("use", ["eval", "export"])
def test_a_damaged_base_of_an_adapter_is_refused(runs, use, capsys):
    flip(runs / "sft/checkpoints" / LAST / "model.safetensors", 0.5)
    assert f"sft/checkpoints/{LAST} is damaged: model.safetensors" in said(capsys, USES[use]("runs/lora"))


def test_check_reads_the_small_files(runs, capsys):
    flip(runs / "sft/checkpoints" / LAST / "tokenizer.json", 0.5)
    assert f"model.init: runs/sft/checkpoints/{LAST} is damaged: tokenizer.json" in said(
        capsys, cli.main(["check", "dpo.yaml"])
    )


def test_check_reads_those_of_the_base(runs, capsys):
    flip(runs / "sft/checkpoints" / LAST / "generation_config.json", 0.5)
    error = said(capsys, cli.main(["check", "dpo.yaml", "model.init=runs/lora"]))
    assert f"sft/checkpoints/{LAST} is damaged: generation_config.json" in error


def test_an_adapter_config_in_a_full_checkpoint(runs, capsys):
    config = {"base_model_name_or_path": str((runs / "sft/checkpoints" / BEFORE).absolute())}
    (runs / "sft/checkpoints" / LAST / "adapter_config.json").write_text(json.dumps(config))
    assert "adapter_config.json does not belong to it" in said(capsys, USES["model.init"]("runs/sft"))


def test_a_copy_without_the_marker_is_a_model_like_any_other(runs):
    folder = runs / "sft/checkpoints" / LAST
    flip(folder / "model.safetensors", 0.9)
    copy = Path(shutil.copytree(folder, "edited"))
    (copy / MARKER).unlink()
    assert start("dpo", "model.init=./edited", "name=new", "train.max_steps=1") == 0


def test_what_only_trains_may_be_missing_of_a_start_model(runs):
    for file in ("optimizer.pt", "trainer_state.json", "rng_state.pth"):
        (runs / "sft/checkpoints" / LAST / file).unlink()
    assert start("dpo", "name=new", "train.max_steps=1") == 0


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_reward_model_from_a_damaged_checkpoint(runs, file):
    folder = runs / "sft/checkpoints" / LAST
    flip(folder / file, 0.5)
    with pytest.raises(RequestError, match=f"is damaged: {file} has changed"):
        reward_model._load(str(folder), "cpu", "auto")
