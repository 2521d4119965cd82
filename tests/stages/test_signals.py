"""A signal in any phase of a run: the seconds until it ends are bounded and logged, and the same command
ends as the uninterrupted run does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.rundir.checkpoints import all_complete
from tests.tiny import RECIPE
from tests.training import preferences, rollouts
from tests.training.preferences import far, rows, weights

BOUND_S = 20.0
"""Seconds from signal to exit; on an idle machine it is one or two."""
STEPS = 4
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
COMMON = [
    f"train.max_steps={STEPS}",
    "train.optim=adamw_torch",
    "train.learning_rate=1e-3",
    "checkpoints.save_steps=2",
    "checkpoints.keep_last=null",
]
QUESTIONS = (
    "evaluate.tasks=[{{name: math, path: {rows}, options: {{prompt: prompt}}, "
    "limit: 4, max_new_tokens: 24, batch_size: 2}}]"
)
"""Answered in two batches."""
SFT = ["evaluate.heldout={share: 0.25, every_steps: 2}", "evaluate.at_start=false"]
DPO = ["preference={loss: dpo}"]
RLVR = ["rollout={num_generations: 4, max_new_tokens: 64, batch_size: 8}"]
PHASES = [
    # stage, phase, which call, step of the last checkpoint afterwards
    ("sft", "preparing rows", 1, 0),
    ("sft", "loading the model", 1, 0),
    ("sft", "training step", 3, 1),  # a micro-batch of step 1
    ("sft", "held-out loss", 1, 2),
    ("sft", "saving", 1, 2),
    ("sft", "loading to score", 1, 2),
    ("sft", "generation", 2, 2),
    ("sft", "generation", 4, 4),
    ("sft", "report", 1, 4),
    ("dpo", "reference log-probabilities", 1, 0),
    ("dpo", "training step", 1, 1),
    ("dpo", "saving", 1, 3),  # without tasks the next step has begun
    ("rlvr", "generation", 3, 2),
    ("rlvr", "rewards", 20, 2),
    ("rlvr", "training step", 1, 0),  # its rollouts
    ("rlvr", "saving", 1, 2),
]


def cases():
    """Each phase once; with every signal in the exhaustive run."""
    for i, (stage, phase, call, step) in enumerate(PHASES):
        for j, number in enumerate(SIGNALS):
            marks = [pytest.mark.slow] if i % len(SIGNALS) == j else [pytest.mark.exhaustive]
            name = f"{stage}-{phase}-{call}-{number.name}".replace(" ", "_")
            yield pytest.param(name, stage, phase, call, step, number, id=name, marks=marks)


@pytest.fixture(scope="module")
def ended(tmp_path_factory, tiny, rows_file, root, request):
    """`{name: exit code, stderr, seconds}` of every case that was asked for, and the folder of each stage."""
    asked = {
        item.callspec.params["name"]: item.callspec.params
        for item in request.session.items
        if item.module is request.module and item.originalname == "test_a_signal"
    }
    folder = tmp_path_factory.mktemp("signals")
    recipes = {}
    for stage, extra in (("sft", SFT), ("dpo", DPO), ("rlvr", RLVR)):
        place = folder / stage
        place.mkdir()
        if stage == "sft":
            recipes[stage] = place / "case.yaml"
            recipes[stage].write_text(RECIPE.format(out=place, model=tiny, rows=rows_file))
            extra = [*extra, QUESTIONS.format(rows=rows_file)]
        else:
            recipes[stage] = {"dpo": preferences, "rlvr": rollouts}[stage].write_recipe(place, tiny)
        recipes[stage] = [str(recipes[stage]), *COMMON, *extra]
    used = {params["stage"] for params in asked.values()}
    jobs = [{"name": s, "module": s, "argv": [*recipes[s], "name=whole"]} for s in sorted(used)]
    for name, params in asked.items():
        stage = params["stage"]
        plain = {"module": stage, "argv": [*recipes[stage], f"name={name}"]}
        if stage == "dpo":  # the log-probabilities of the reference are not found
            plain["argv"].append(f"data.cache_dir={folder}/cache-{name}")
        plain["run"] = str(folder / stage / name)
        sent = {"signal": params["number"], "at": params["phase"], "call": params["call"]}
        jobs += [{"name": name} | plain | sent, {"name": f"{name} again"} | plain]
    if "sft" in used:
        jobs += commands(folder)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    paths = f"{root}{os.pathsep}{root / 'kernels'}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.signalled", folder / "jobs.json", folder / "out.json"],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CI": "1"},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert (folder / "out.json").exists(), done.stderr[-4000:]
    found = json.loads((folder / "out.json").read_text())
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        for name, case in found.items():
            if case["seconds"] is not None:
                print(f"{case['seconds']:6.1f} s  {name}")
    return found, folder


def commands(folder: Path) -> list[dict]:
    """`posttrain eval` and `posttrain report`, each stopped by every signal, and once more."""
    whole, jobs = str(folder / "sft" / "whole"), []
    for name, argv, at, call in (
        ("eval", ["eval", whole, "--out", str(folder / "eval")], "generation", 2),
        ("report", ["report", whole, "--out", str(folder / "report.html")], "report page", 1),
    ):
        plain = {"module": "cli", "argv": argv}
        for number in SIGNALS:
            sent = {"signal": number, "at": at, "call": call}
            jobs.append({"name": f"{name} {number.name}"} | plain | sent)
        jobs.append({"name": f"{name} again"} | plain)
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_command(ended, command):
    """Nothing half-written is left, and the same command starts over."""
    found, folder = ended
    for number in SIGNALS:
        case = found[f"{command} {number.name}"]
        said = case["stderr"]
        assert case["code"] == 1 and "Traceback" not in said and "\ninterrupted\n" in f"\n{said}", said
        assert (
            re.search(rf"^stopped \d+\.\d s after {number.name}$", said, re.M) and case["seconds"] < BOUND_S
        )
    assert found[f"{command} again"]["code"] == 0
    if command == "eval":
        whole = {k: v for k, v in scores(folder / "sft" / "whole").items() if k[0] == STEPS}
        assert scores(folder / "eval") == whole


@pytest.mark.parametrize(("name", "stage", "phase", "call", "step", "number"), cases())
def test_a_signal(ended, name, stage, phase, call, step, number):
    found, folder = ended
    case, again, run = found[name], found[f"{name} again"], folder / stage / name
    said = case["stderr"]
    assert case["code"] == 1 and "Traceback" not in said, said[-3000:]
    assert case["seconds"] < BOUND_S
    assert re.search(rf"^stopped \d+\.\d s after {number.name}$", said, re.M), said[-2000:]
    whole = phase == "report"  # the run itself is finished by then
    assert case["status"] == ("finished" if whole else "stopped" if step else case["status"])
    if step and not whole:
        assert f"run the same command to resume from step-{step:06d}" in said
    assert again["code"] == 0, again["stderr"][-3000:]
    assert ("resuming from" in again["stderr"]) == bool(step)
    equals(run, folder / stage / "whole", phase)


def equals(run: Path, whole: Path, phase: str) -> None:
    assert far(weights(run, STEPS), weights(whole, STEPS)) == 0
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert not list((run / "checkpoints").glob(".tmp-*")) and not list(run.glob(".score-*"))
    for split in ("train", "heldout"):
        ours, theirs = ({r["step"]: r.get("loss") for r in rows(p, split)} for p in (run, whole))
        assert ours == theirs
    if (whole / "scores.jsonl").exists():
        ours, theirs = (scores(p) for p in (run, whole))
        assert {k: v for k, v in ours.items() if k in theirs} == theirs
    if (whole / "rollouts").exists():
        assert rollouts.rollouts(run) == rollouts.rollouts(whole)
    assert {c.step for c in all_complete(run / "checkpoints")} >= {2, 4}


def scores(run: Path) -> dict[tuple, float]:
    lines = (run / "scores.jsonl").read_text().splitlines()
    return {(r["step"], r["task"], r["metric"]): r["value"] for r in map(json.loads, lines)}
