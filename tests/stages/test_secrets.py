"""A value of the environment is in no file that a run leaves, and in nothing that a command prints.

Small runs of every stage, as one pipeline: in its recipes and its overrides a resolver gives the token of
the model hub and the key of a reward.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from posttrain.cli import main

SECRET = "hf_SeCrEtOfTheEnvironment"
TOKEN = "model.options={token: '${oc.env:A_TOKEN}'}"
REWARD = "rewards=[{name: 'keyed:keyed', options: {api_key: '${oc.env:A_TOKEN}'}}]"
KEYED = """\
import random
from posttrain.types import Verdict

def keyed(completion, example, api_key: str):
    assert api_key.startswith("hf_SeCrEt")
    return Verdict(float(any(c in completion for c in "01234")))
"""
STAGES = {"sft": "lora", "dpo": "dpo", "rlvr": "rlvr", "pairs": "pairs", "pass_rate": "pass_rate"}
"""Stage -> its recipe among those of tests/rundir/earlier."""
pytestmark = pytest.mark.slow


@pytest.fixture
def pipeline(earlier, monkeypatch, root) -> Path:
    monkeypatch.setenv("A_TOKEN", SECRET)
    monkeypatch.setenv("A_GENERATOR", "addition")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "kernels"), str(earlier)]))
    monkeypatch.syspath_prepend(str(earlier))
    (earlier / "keyed.py").write_text(KEYED)
    stages = []
    for name, file in STAGES.items():
        values = yaml.safe_load((earlier / f"{file}.yaml").read_text())
        overrides = [REWARD] if "rewards" in values else []
        if name == "sft":  # in the recipe itself; the others have it from the pipeline
            values["model"]["options"] = {"token": "${oc.env:A_TOKEN}"}
            values["train"] |= {"report_to": ["tensorboard"], "extra": {"run_name": "tiny"}}
            values["evaluate"] = {"at_start": False, "tasks": [_task()]}
        else:
            overrides.append(TOKEN)
        (earlier / f"{name}.yaml").write_text(yaml.safe_dump(values))
        stages.append({"name": name, "recipe": f"{name}.yaml", "overrides": overrides})
    stages[1]["overrides"].append("model.init=sft")  # an adapter, whose base is loaded with its options
    file = earlier / "all.yaml"
    file.write_text(yaml.safe_dump({"pipeline": "all", "parallel": 2, "stages": stages}))
    return file


def _task() -> dict:
    options = {"generator": "${oc.env:A_GENERATOR}", "digits": 1, "train_size": 20, "test_size": 8}
    return {"name": "arithmetic", "options": options}


def test_no_file_and_no_output_of_a_pipeline_has_the_value(pipeline, capfd):
    assert main(["check", pipeline.name, "--json"]) == 0
    checked = json.loads(capfd.readouterr().out)["stages"]
    assert checked["dpo"]["recipe"]["model"]["options"] == {"token": "${oc.env:A_TOKEN}"}
    assert main(["check", pipeline.name]) == 0
    assert main(["run", pipeline.name]) == 0, (pipeline.parent / "runs/all").exists()
    place = pipeline.parent / "runs" / "all"
    assert main(["show", str(place)]) == 0
    assert main(["show", str(place / "sft"), "--json"]) == 0
    assert main(["report", str(place)]) == 0
    assert main(["eval", str(place / "sft"), "limit=2"]) == 0
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err and "${oc.env:A_TOKEN}" in printed.out
    files = [file for file in pipeline.parent.rglob("*") if file.is_file()]
    assert len([file for file in files if "runs/all" in str(file)]) > 60
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    for name in STAGES:
        recipe = yaml.safe_load((place / name / "recipe.yaml").read_text())
        assert recipe["model"]["options"] == {"token": "${oc.env:A_TOKEN}"}
        if "rewards" in recipe:
            assert recipe["rewards"][0]["options"] == {"api_key": "${oc.env:A_TOKEN}"}
    facts = json.loads((place / "sft" / "checkpoints" / "step-000004" / "checkpoint.json").read_text())
    assert facts["model_options"] == {"token": "${oc.env:A_TOKEN}"}


def test_a_renewed_token_resumes_and_a_missing_one_is_named(pipeline, monkeypatch, capfd):
    command = ["run", "pairs.yaml", TOKEN, REWARD, "name=alone"]
    assert main(command) == 0
    before = (pipeline.parent / "runs" / "alone" / "pairs.jsonl").read_bytes()
    monkeypatch.setenv("A_TOKEN", "hf_SeCrEt_renewed")
    assert main(["run", "runs/alone/recipe.yaml"]) == 0, "the recipe resolves it again"
    assert (pipeline.parent / "runs" / "alone" / "pairs.jsonl").read_bytes() == before
    monkeypatch.delenv("A_TOKEN")
    capfd.readouterr()
    assert main(["run", "runs/alone/recipe.yaml"]) == 2
    assert "Environment variable 'A_TOKEN' not found" in capfd.readouterr().err


def test_a_reward_that_fails_does_not_show_its_options(pipeline, capfd):
    (pipeline.parent / "keyed.py").write_text(KEYED.replace("assert", "1 / 0\n    assert"))
    argv = ["run", "pass_rate.yaml", TOKEN, REWARD, "name=failing"]
    done = subprocess.run([sys.executable, "-m", "posttrain", *argv], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert SECRET not in done.stderr + done.stdout
    files = [file for file in (pipeline.parent / "runs").rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
