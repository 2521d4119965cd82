"""Stages as processes: order, lineage, a failure that blocks only those that wait for it, one report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from posttrain.errors import RequestError
from posttrain.recipe import as_written, load, recipe_hash, to_yaml
from posttrain.stages.pipeline import dependencies, stage_recipes
from posttrain.stages.stage_process import finished
from tests.conftest import ROOT

PIPELINE = """\
pipeline: chain
parallel: 2
output_dir: {out}
stages:
  - {{name: first, recipe: case.yaml, overrides: [train.max_steps=3]}}
  - {{name: second, recipe: case.yaml, overrides: [train.max_steps=2, model.init=first]}}
  - {{name: broken, recipe: case.yaml, overrides: [train.learning_rate=1e3, train.max_steps=30]}}
  - {{name: never, recipe: case.yaml, after: [broken]}}
"""


@pytest.fixture
def pipeline(recipe):
    path = recipe.parent / "pipeline.yaml"
    path.write_text(PIPELINE.format(out=recipe.parent))
    return path


def test_stages_wait_for_what_they_start_from(pipeline):
    loaded = load(pipeline)
    recipes = stage_recipes(loaded, pipeline)
    assert recipes["second"].model.init == str(pipeline.parent / "chain" / "first")
    assert dependencies(loaded, recipes) == {
        "first": set(),
        "second": {"first"},
        "broken": set(),
        "never": {"broken"},
    }


def test_a_stage_cannot_start_from_a_later_one(pipeline):
    pipeline.write_text(pipeline.read_text().replace("[train.max_steps=3]", "[model.init=second]"))
    with pytest.raises(RequestError, match="not an earlier stage"):
        stage_recipes(load(pipeline), pipeline)


def test_a_finished_stage_is_known_by_the_values_of_its_recipe(recipe):
    """Not by the text of recipe.yaml: a field that moves within its section does not run a stage again."""
    stage = load(recipe)
    run = recipe.parent / stage.name
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "finished", "recipe_hash": recipe_hash(stage)}))
    (run / "recipe.yaml").write_text(to_yaml(stage))
    assert not finished(stage), "there is no checkpoint"
    last = run / "checkpoints" / "step-000004"
    last.mkdir(parents=True)
    (last / "checkpoint.json").write_text('{"digest": "x"}')
    (last / "COMPLETE").touch()
    assert finished(stage)
    moved = {
        key: dict(reversed(v.items())) if isinstance(v, dict) else v for key, v in as_written(stage).items()
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(dict(reversed(moved.items())), sort_keys=False))
    assert (run / "recipe.yaml").read_text() != to_yaml(stage) and finished(stage)
    for override in ("train.learning_rate=0.1", "evaluate.tasks=[{name: arithmetic}]"):  # to train, to score
        assert not finished(load(recipe, [override])), override
    (run / "recipe.yaml").write_text("stage: [")
    assert not finished(stage)
    (run / "recipe.yaml").write_text(to_yaml(stage))
    (run / "run.json").write_text('{"status": "stopped"}')
    assert not finished(stage)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_what_is_compared_survives_its_file(path):
    """YAML has no tuples: a recipe with one would never equal its own recipe.yaml."""
    values = load(path)
    assert yaml.safe_load(to_yaml(values)) == as_written(values)


@pytest.mark.slow
def test_a_failure_blocks_only_those_that_wait(pipeline, environment):
    command = [sys.executable, "-m", "posttrain.cli", "run", str(pipeline)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, cwd=pipeline.parent
    )
    assert done.returncode == 1
    assert "stage broken: stopped before step" in done.stderr and "stage never: not started" in done.stderr
    assert "Traceback" not in done.stderr
    root = pipeline.parent / "chain"
    states = {s["name"]: s["status"] for s in json.loads((root / "pipeline.json").read_text())["stages"]}
    assert states == {"first": "finished", "second": "finished", "broken": "failed", "never": "waiting"}
    parent = json.loads((root / "second" / "run.json").read_text())["parent"]
    assert parent == {"run": str(root / "first"), "checkpoint": "step-000003"}
    assert "Traceback" not in (root / "broken.log").read_text()

    # mended, the same pipeline leaves the finished stages alone and ends in a report
    pipeline.write_text("\n".join(pipeline.read_text().splitlines()[:-2]) + "\n")
    weights = root / "first" / "checkpoints" / "step-000003" / "model.safetensors"
    stamp, begun = weights.stat().st_mtime_ns, time.time()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, cwd=pipeline.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights.stat().st_mtime_ns == stamp
    assert (root / "report.html").stat().st_mtime > begun and f"report: {root / 'report.html'}" in done.stdout


@pytest.mark.ranks
def test_a_stop_request_reaches_the_ranks_of_a_launcher(pipeline, environment, root):
    """SIGTERM to the pipeline: both ranks of its stage save a checkpoint, and the same command would
    resume."""
    pipeline.write_text(
        "\n".join(pipeline.read_text().splitlines()[:4])
        + "\n  - {name: first, recipe: case.yaml, overrides: [train.max_steps=100000]}\n"
    )
    config = root / "launch" / "cpu2.yaml"
    command = [sys.executable, "-m", "posttrain", "run", str(pipeline), "--accelerate", str(config)]
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=pipeline.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        run, deadline = pipeline.parent / "chain" / "first", time.time() + 240
        while not (run / "metrics.jsonl").exists():
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 1, process.stderr.read()
    finally:
        for left in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            left.kill()
        process.kill()
    info = json.loads((run / "run.json").read_text())
    assert (info["status"], info["world_size"], info["engine"]) == ("stopped", 2, "ddp")
    assert "run the same command to resume" in info["error"]
    (last,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    assert (last / "COMPLETE").exists()
