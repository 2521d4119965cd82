"""The files of launch/: accelerate knows every key, each is the engine that it claims; what FSDP refuses."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = sorted((ROOT / "launch").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))

ENGINES = {
    "cpu2": ("MULTI_GPU", {}),
    "ddp": ("MULTI_GPU", {}),
    "zero2": ("DEEPSPEED", {"zero_stage": 2, "offload_optimizer_device": "none", "zero3_init_flag": False}),
    "zero3": ("DEEPSPEED", {"zero_stage": 3, "zero3_init_flag": True, "zero3_save_16bit_model": True}),
    "fsdp2": ("FSDP", {"fsdp_version": 2}),
}


def arguments(path: Path, *options: str):
    """The arguments of `accelerate launch --config_file path`."""
    from accelerate.commands import launch

    parsed = launch.launch_command_parser().parse_args([*options, "--config_file", str(path), "script.py"])
    return launch._validate_launch_command(parsed)[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_knows_every_key(path):
    """Outer keys are fields of accelerate's class; keys of sections are arguments of its launcher."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    for section in (config.deepspeed_config, config.fsdp_config):
        assert set(section or {}) <= known
    fields = {f.name for f in dataclasses.fields(config)}
    assert set(yaml.safe_load(path.read_text())) <= fields
    assert config.mixed_precision == "no"  # the recipe's business


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_each_file_is_the_engine_it_claims(path):
    kind, options = ENGINES[path.stem]
    asked = arguments(path)
    assert yaml.safe_load(path.read_text())["distributed_type"] == kind
    assert (asked.multi_gpu, asked.use_deepspeed, asked.use_fsdp) == tuple(
        kind == k for k in ("MULTI_GPU", "DEEPSPEED", "FSDP")
    )
    for key, value in options.items():
        assert getattr(asked, key) == value, key
    assert asked.use_cpu == (path.stem == "cpu2")
    assert asked.num_processes == (2 if path.stem == "cpu2" else 8)
    assert arguments(path, "--num_processes", "3").num_processes == 3


def test_unknown_keys_are_an_error(tmp_path):
    broken = tmp_path / "ddp.yaml"
    broken.write_text((ROOT / "launch" / "ddp.yaml").read_text() + "num_process: 4\n")
    with pytest.raises(ValueError, match="unknown keys"):
        arguments(broken)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_parse_and_can_be_run(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o111
    directives = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert not any(re.search(r"\$", line) for line in directives), "Slurm does not expand variables there"
    named = re.findall(r"(?:launch|recipes)/[\w./-]+\.(?:yaml|sh)", path.read_text())
    assert named and all((ROOT / name).is_file() for name in named), named


def fsdp_environment(monkeypatch, **changes: str) -> None:
    """The environment that `accelerate launch --config_file launch/fsdp2.yaml` gives its processes."""
    from accelerate.utils.launch import prepare_multi_gpu_env

    before = dict(os.environ)
    monkeypatch.setattr(os, "environ", dict(before))
    told = prepare_multi_gpu_env(arguments(ROOT / "launch" / "fsdp2.yaml"))
    monkeypatch.undo()
    for name, value in told.items():
        if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP")):
            monkeypatch.setenv(name, value)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)


def test_fsdp_on_a_cpu_is_refused_before_anything_is_written(tiny_recipe, monkeypatch, capsys):
    """Without a GPU accelerate silently runs DDP under an FSDP config: what was asked for decides."""
    from posttrain.sft import main

    fsdp_environment(monkeypatch, ACCELERATE_USE_CPU="true")
    assert main([str(tiny_recipe), "name=fsdp"]) == 2
    assert re.search(r"FSDP: without a GPU, .* runs DDP.*zero3", capsys.readouterr().err)
    assert not (tiny_recipe.parent / "fsdp" / "run.json").exists()


@pytest.mark.parametrize(
    ("changes", "overrides", "expected"),
    [
        ({"FSDP_VERSION": "1"}, [], "fsdp_version must be 2"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, [], "must be FULL_STATE_DICT"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, [], "fsdp_cpu_ram_efficient_loading must be false"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, [], "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, [], "train.activation_checkpointing"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, [], "parallelism_config"),
        ({}, ["train.fp16=true"], "train.fp16"),
        ({}, ["model.lora={}", "model.quantization={}"], "model.quantization"),
    ],
)
def test_fsdp_beside_what_was_tried_is_refused(tiny_recipe, monkeypatch, changes, overrides, expected):
    from posttrain.errors import RequestError
    from posttrain.recipe import load_stage
    from posttrain.training import engines

    recipe = load_stage(tiny_recipe, overrides, "sft")
    fsdp_environment(monkeypatch, **changes)
    with pytest.raises(RequestError, match=f"FSDP: .*{expected}.*launch/"):
        engines.refuse_fsdp(recipe.model, recipe.train, on_cpu=False)


def test_the_fsdp_file_is_what_is_allowed(tiny_recipe, monkeypatch):
    from posttrain.recipe import load_stage
    from posttrain.training import engines

    recipe = load_stage(tiny_recipe, [], "sft")
    engines.refuse_fsdp(recipe.model, recipe.train, on_cpu=True)  # not asked for
    fsdp_environment(monkeypatch)
    assert engines.fsdp_asked()
    engines.refuse_fsdp(recipe.model, recipe.train, on_cpu=False)


@pytest.mark.parametrize("asked", [True, False])
def test_another_engine_than_the_one_asked_for_is_refused(monkeypatch, asked):
    from posttrain.errors import RequestError
    from posttrain.training import engines

    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(asked).lower())
    got = SimpleNamespace(is_fsdp2=not asked, distributed_type="DistributedType.MULTI_CPU")
    with pytest.raises(RequestError, match="FSDP.*MULTI_CPU"):
        engines.refuse_pretence(got)
    engines.refuse_pretence(SimpleNamespace(is_fsdp2=asked))
