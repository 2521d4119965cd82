"""Stages as processes: order, lineage, a failure that blocks only those that wait for it, one report."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from posttrain.errors import RequestError
from posttrain.recipe import load
from posttrain.stages.pipeline import dependencies, stage_recipes

PIPELINE = """\
pipeline: chain
parallel: 2
output_dir: {out}
stages:
  - {{name: first, recipe: case.yaml, overrides: [train.max_steps=3]}}
  - {{name: second, recipe: case.yaml, overrides: [train.max_steps=2, model.init=first]}}
  - {{name: broken, recipe: case.yaml, overrides: [train.learning_rate=1e30, train.max_steps=30]}}
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
