"""A run killed with -9 at random moments, anywhere between its first line and its last, and started again
until it ends, leaves what an uninterrupted run leaves: weights, rows, rollouts, scores, files, no process.

Left out: kills between two named lines of code (test_rlvr_resume.py), pipelines (test_pipeline_killed.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.stages.compared import ENVIRONMENT, SETTINGS, Runs, recipe_of
from tests.stages.kill_loop import MARK, NAMES

FEW = {"pairs": 3}
MANY = {"sft": 50, "rlvr": 20, "pairs": 20, "ranks": 10}
"""`ranks` is sft on two ranks, of which one is killed and the other ended as a launcher does it."""


class Loop(Runs):
    """`whole`, `again`, and the runs that were killed."""

    def __init__(self, folder: Path, found: dict[str, Any]) -> None:
        super().__init__(folder)
        self.found, self.runs = found, found["runs"]

    def table(self, stage: str) -> str:
        kills = self.found["kills"]
        fell = Counter(kill["place"] for kill in kills)
        places = ", ".join(f"{name} {fell[name]}" for name in NAMES if fell[name])
        return (
            f"{stage}: {len(kills)} kills in {len(self.runs) - 1} runs of {self.found['seconds']:.1f} s; "
            f"{places}; until all ranks had ended {max(kill['late'] for kill in kills):.1f} s at most; "
            f"largest difference of a weight {self.worst:.1e}"
        )


def run_loop(stage: str, kills: int, folder: Path, tiny: Path, digits: Path) -> Loop:
    recipe = recipe_of(stage, folder, tiny, digits)
    argv = [str(recipe), "name={name}", f"data.cache_dir={folder}/cache-{{name}}", *SETTINGS[stage]]
    ranks = 2 if stage == "ranks" else 1
    module = f"posttrain.{'sft' if stage == 'ranks' else stage}"
    job, out = folder / "job.json", folder / "out.json"
    job.write_text(json.dumps({"module": module, "argv": argv, "ranks": ranks, "kills": kills, "seed": 13}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.kill_loop", job, out],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {MARK: str(folder)},
        capture_output=True,
        text=True,
        timeout=300 + 30 * kills,
    )
    assert out.exists(), done.stderr[-4000:]
    return Loop(folder, json.loads(out.read_text()))


@pytest.fixture(scope="module")
def loop_of(tmp_path_factory, tiny, digits):
    """`loop_of(stage, kills)`: a loop, run once for all tests."""
    known: dict[tuple[str, int], Loop] = {}

    def find(stage: str, kills: int) -> Loop:
        if (stage, kills) not in known:
            known[stage, kills] = run_loop(stage, kills, tmp_path_factory.mktemp(stage), tiny, digits)
        return known[stage, kills]

    return find


def loops(*stages: str):
    """Many kills; few in the ordinary suite, where sft and rlvr have test_resume.py, test_rlvr_resume.py."""
    few = [pytest.param(stage, FEW[stage], marks=pytest.mark.slow) for stage in stages if stage in FEW]
    many = [pytest.param(stage, MANY[stage], marks=pytest.mark.exhaustive) for stage in stages]
    return pytest.mark.parametrize(("stage", "kills"), [*few, *many])


@loops("sft", "rlvr", "pairs", "ranks")
def test_every_start_ends_well(loop_of, stage, kills):
    """Without an error, without a process that outlives it."""
    loop = loop_of(stage, kills)
    assert not loop.found["errors"], loop.found["errors"]
    assert not loop.found["orphans"]
    assert len(loop.found["kills"]) == kills
    for run in loop.runs:
        assert json.loads((loop.folder / run / "run.json").read_text())["status"] == "finished"


@loops("sft", "rlvr", "ranks")
def test_the_training_is_that_of_an_uninterrupted_run(loop_of, stage, kills):
    loop = loop_of(stage, kills)
    for run in loop.runs:
        loop.trained_the_same(run)
    print(loop.table(stage))


@loops("rlvr", "pairs")
def test_the_completions_are_those_of_an_uninterrupted_run(loop_of, stage, kills):
    loop = loop_of(stage, kills)
    for run in loop.runs:
        loop.sampled_the_same(run)
    print(loop.table(stage))


@loops("sft", "rlvr", "pairs", "ranks")
def test_the_files_are_those_of_an_uninterrupted_run(loop_of, stage, kills):
    loop = loop_of(stage, kills)
    for run in loop.runs:
        loop.left_the_same(run)


@loops("sft", "rlvr", "ranks")
def test_no_step_is_logged_twice(loop_of, stage, kills):
    loop = loop_of(stage, kills)
    for run in loop.runs:
        loop.logged_once(run)
