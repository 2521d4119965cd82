"""`posttrain run` killed with -9 at random moments: its stages end, the same command resumes, and all that it
leaves is that of an uninterrupted one.

SFT -> pairs -> DPO on a tiny model; with -s the table of the kills is printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.base.files import read_json, read_jsonl

COMMON = """\
data:
  template: chatml
  max_length: 256
  cache_dir: {out}/cache
  sources:
"""
TRAIN = """\
train: {{learning_rate: 1.0e-3, optim: adamw_torch, global_batch_size: 4, max_steps: {steps},
  logging_steps: 1, report_to: []}}
checkpoints: {{save_steps: 4, keep_last: 2}}
evaluate: {{tasks: [{{name: arithmetic, limit: 4}}]}}
"""
PAIRS = """\
    - {{name: rows, path: {rows}, columns: {{prompt: prompt}}}}
rewards: [{{name: length_target, weight: 0.1, options: {{target: 12, unit: tokens}}}}, {{name: math}}]
rollout: {{num_generations: 4, max_new_tokens: 16, batch_size: 8, max_failed: 1}}
pairing: {{strategy: best_worst}}
max_prompts: 24
"""
STAGES = ("sft", "pairs", "dpo")


def write(folder: Path, tiny: Path, rows: Path) -> Path:
    """cut.yaml and whole.yaml, which differ in the name only."""
    common = COMMON.format(out=folder)
    files = {
        "sft": f"model: {{init: {tiny}}}\n"
        + common
        + f"    - {{name: rows, path: {rows}}}\n"
        + TRAIN.format(steps=14),
        "pairs": "model: {init: sft}\n" + common + PAIRS.format(rows=rows),
        "dpo": "model: {init: sft}\n"
        + common
        + "    - {name: pairs, path: pairs/pairs.jsonl}\n"
        + TRAIN.format(steps=10),
    }
    for stage, text in files.items():
        (folder / f"{stage}.yaml").write_text(f"stage: {stage}\nname: {stage}\n{text}")
    listed = "".join(f"  - {{name: {s}, recipe: {s}.yaml}}\n" for s in STAGES)
    for name in ("whole", "cut"):
        text = f"pipeline: {name}\noutput_dir: {folder}\nstages:\n{listed}"
        (folder / f"{name}.yaml").write_text(text)
    return folder / "cut.yaml"


def rows_of(run: Path, name: str, *keys: str) -> list[tuple]:
    """Values of the last row of each step; a kill repeats the steps since the last checkpoint."""
    found = {}
    for row in read_jsonl(run / name):
        found[tuple(row.get(k) for k in ("split", "checkpoint", "step", "task", "metric"))] = [
            row.get(k) for k in keys
        ]
    return sorted(found.items(), key=str)


def same(cut: Path, whole: Path) -> None:
    for stage in ("sft", "dpo"):
        names = [sorted(p.name for p in (root / stage / "checkpoints").iterdir()) for root in (cut, whole)]
        # a stage that is stopped saves a checkpoint more, which counts in keep_last
        assert names[0][-1] == names[1][-1] and len(names[0]) == len(names[1]) == 2, stage
        for name in set(names[0]) & set(names[1]):
            ours, theirs = (
                load_file(root / stage / "checkpoints" / name / "model.safetensors") for root in (cut, whole)
            )
            worst = max((ours[k] - theirs[k]).abs().max().item() for k in theirs)
            assert ours.keys() == theirs.keys() and worst <= 1e-6, (stage, name, worst)
        ours, theirs = (rows_of(root / stage, "metrics.jsonl", "loss") for root in (cut, whole))
        assert [k for k, _ in ours] == [k for k, _ in theirs]
        torch.testing.assert_close([v for _, v in ours], [v for _, v in theirs], rtol=1e-5, atol=1e-6)
        ours, theirs = (rows_of(root / stage, "scores.jsonl", "value", "n") for root in (cut, whole))
        assert [row for row in ours if row[0] in dict(theirs)] == theirs, stage
        assert len(ours) == len(read_jsonl(cut / stage / "scores.jsonl")), "a score is there once"
    for name in ("pairs.jsonl", "pairs.json", *(f"parts/chunk-{i:06d}.jsonl" for i in range(12))):
        ours, theirs = ((root / "pairs" / name).read_text() for root in (cut, whole))
        assert ours == theirs.replace(str(whole), str(cut)), name


def leftovers(root: Path) -> list[str]:
    return [
        str(p.relative_to(root))
        for p in root.rglob("*")
        if ".tmp-" in p.name or p.name in (".ranks",) or p.name.startswith(".score-")
    ]


@pytest.mark.parametrize(
    "kills",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.exhaustive)],
)
def test_a_killed_pipeline_leaves_nothing_running_and_resumes(tmp_path, tiny, rows_file, environment, kills):
    path, out = write(tmp_path, tiny, rows_file), tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.killed_pipeline", str(path), str(kills), "1", str(out)],
        env=environment | {"KILLED_PIDS": str(tmp_path / "pids")},
        capture_output=True,
        text=True,
        timeout=580,
    )
    log = (tmp_path / "run.log").read_text()[-3000:] if (tmp_path / "run.log").exists() else ""
    assert done.returncode == 0, done.stderr[-3000:] + log
    found = json.loads(out.read_text())
    print(f"\nuninterrupted: {found['span']} s")
    for kill in found["kills"]:
        moment = f"killed at {kill['at']:5.2f} s, progress {kill['done']:3}"
        print(f"{moment}   {kill['stages']:28}   all ended {kill['left']} s later")
    assert (found["whole"], found["code"], found["left"]) == (0, 0, []), log
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    same(cut, whole)
    states = read_json(cut / "pipeline.json")["stages"]
    assert [s["status"] for s in states] == ["finished"] * 3
    for state in states:
        run = read_json(cut / state["name"] / "run.json")
        assert (run["status"], run["seconds"]) == ("finished", state["seconds"])
    assert leftovers(cut) == []
    assert all((root / "report.html").is_file() for root in (cut, whole))
