"""A real sweep of tiny runs: made, gone on with, extended, refused; and killed with -9 at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from posttrain.recipe import load, to_dict
from posttrain.rundir.reading import PipelineData
from posttrain.rundir.sweeps import SweepData
from tests.stages.killed_sweep import marks
from tests.stages.test_pipeline_killed import leftovers


def sweep(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "posttrain", "sweep", "case.yaml", "train.max_steps=2", *words]
    return subprocess.run(
        [*command, "--parallel", "2", "--name", "rates"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        cwd=folder,
    )


@pytest.mark.slow
def test_a_sweep_is_made_gone_on_with_and_extended(recipe, environment):
    folder, root = recipe.parent, recipe.parent / "rates"
    done = sweep(folder, environment, "train.learning_rate=0.1,2e-2", "--seeds", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"report: {root / 'report.html'}" in done.stdout
    names = [f"learning_rate-{rate}_seed-{seed}" for seed in (42, 43) for rate in ("0.1", "0.02")]
    data = SweepData.load(root)
    assert [run.run for run in data.runs] == names == [run.name for run in PipelineData.load(root).runs]
    base = to_dict(load(recipe, ["train.max_steps=2"]))
    for run in data.runs:
        info = json.loads((root / run.run / "run.json").read_text())
        assert (info["recipe_hash"], info["name"]) == (run.recipe_hash, run.run)
        made = yaml.safe_load((root / run.run / "recipe.yaml").read_text())
        changed = {"learning_rate": run.values["train.learning_rate"], "seed": run.seed}
        own = {"name": run.run, "output_dir": str(root)}
        assert made == base | own | {"train": base["train"] | changed}
    weights = {run: load_file(root / run / "checkpoints/step-000002/model.safetensors") for run in names}
    some = {run: next(iter(w.values())).flatten()[:50].tolist() for run, w in weights.items()}
    assert len({tuple(values) for values in some.values()}) == 4, "each run is another one"

    # the same again, and with one value more: finished runs stay as they are
    before = marks(root)
    assert len([name for name in before if name.endswith(".log")]) == 4
    done = sweep(folder, environment, "train.learning_rate=0.1,0.02,0.3", "--seeds", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {name: marks(root)[name] for name in before} == before
    new = {f"learning_rate-0.3_seed-{seed}" for seed in (42, 43)}
    assert {p.parent.name for p in root.glob("*/run.json")} == {*names, *new}
    assert {line.split(":")[0] for line in done.stderr.splitlines() if "preparing" in line} == new
    assert SweepData.load(root).keys == {"train.learning_rate": [0.1, 0.02, 0.3]}

    # another recipe under the same name is refused before anything starts
    before = marks(root)
    recipe.write_text(recipe.read_text().replace("optim: sgd", "optim: adamw_torch"))
    done = sweep(folder, environment, "train.learning_rate=0.1,0.02,0.3", "--seeds", "2")
    assert (done.returncode, done.stdout, marks(root)) == (2, "", before)
    assert "contains a run of another recipe" in done.stderr and "Traceback" not in done.stderr


RUNS = """\
sweep: {name}
recipe: case.yaml
output_dir: {out}
parallel: 2
seeds: 2
keys:
  - {{key: train.learning_rate, values: [0.1, 0.02]}}
  - {{key: train.max_steps, values: [40]}}
  - {{key: checkpoints.save_steps, values: [5]}}
"""


@pytest.mark.slow
def test_a_killed_sweep_repeats_nothing_that_is_finished(tmp_path, recipe, environment):
    """The whole tree of processes is killed: as sweep.json appears, with a checkpoint of the first runs, with
    runs finished, with others half done. What is finished is never touched again, and what was cut off goes
    on from its checkpoint, to the weights of an uninterrupted sweep."""
    for name in ("whole", "cut"):
        (tmp_path / f"{name}.yaml").write_text(RUNS.format(name=name, out=tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.killed_sweep", str(tmp_path), str(tmp_path / "out.json")],
        env=environment | {"KILLED_PIDS": str(tmp_path / "pids")},
        capture_output=True,
        text=True,
        timeout=580,
    )
    log = (tmp_path / "run.log").read_text()[-3000:] if (tmp_path / "run.log").exists() else ""
    assert done.returncode == 0, done.stderr[-3000:] + log
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["codes"] == [0, 0], log
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for kill in found["kills"]:
        assert kill["finished"].items() <= found["end"].items(), "a finished run was repeated"
    assert [len(kill["finished"]) > 0 for kill in found["kills"]] == [False, False, True, True, True]
    resumed = {name for kill in found["kills"] for name in kill["saved"]}
    assert resumed, "some were cut off after a checkpoint"
    for name in resumed:
        assert "resuming from" in (cut / f"{name}.log").read_text(), name
    runs = [run.run for run in SweepData.load(cut).runs]
    assert runs == [run.run for run in SweepData.load(whole).runs] and len(runs) == 4
    for run in runs:
        file = f"{run}/checkpoints/step-000040/model.safetensors"
        ours, theirs = load_file(cut / file), load_file(whole / file)
        assert max((ours[key] - theirs[key]).abs().max().item() for key in theirs) <= 1e-6, run
    states = json.loads((cut / "pipeline.json").read_text())["stages"]
    assert [state["status"] for state in states] == ["finished"] * 4
    assert leftovers(cut) == []
