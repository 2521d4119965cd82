"""Two processes resume as one does: the run whose last checkpoint is damaged, started again, ends in the same
weights and has logged the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.base.files import read_jsonl
from tests.stages.damage import flip


@pytest.mark.slow
@pytest.mark.parametrize(("config", "engine"), [("cpu2.yaml", "ddp"), ("zero3.yaml", "zero3")])
def test_two_processes_resume(recipe, launch, config, engine):
    overrides = [
        "name=twice",
        "train.per_device_train_batch_size=2",
        "train.optim=adamw_torch",
        "train.learning_rate=1e-3",
        "train.lr_scheduler_type=linear",
        "train.log_samples=true",
        "train.logging_steps=2",
        "checkpoints.save_steps=3",
        "checkpoints.keep_last=null",
    ]
    case = {"name": "twice", "recipe": str(recipe), "overrides": overrides, "engine": engine}
    result = launch([case], config)["twice"]
    assert (result["world_size"], result["engine"]) == (2, engine)
    run = Path(result["run"])
    last = run / "checkpoints" / "step-000005"
    whole = load_file(last / "model.safetensors")
    seen = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    logged = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in logged] == [2, 4, 5]
    files = json.loads((last / "checkpoint.json").read_text())["files"]
    there = {str(file.relative_to(last)) for file in last.rglob("*") if file.is_file()}
    assert there - files.keys() == {"checkpoint.json", "COMPLETE"}, "what every rank wrote is listed"
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= files.keys()
    if engine == "ddp":  # rank 0 sees it and tells the others
        flip(last / "model.safetensors", 0.5)
    else:
        shutil.rmtree(last)
    launch([case], config)
    assert (last.parent / f"damaged-{last.name}").is_dir() == (engine == "ddp")
    resumed = load_file(last / "model.safetensors")
    assert max(float((resumed[k] - whole[k]).abs().max()) for k in whole) <= 1e-6
    measured = ("loss", "nll", "segment_logp", "trained_tokens", "grad_norm", "learning_rate", "epoch")
    for row, before in zip(read_jsonl(run / "metrics.jsonl"), logged, strict=True):  # 4: half of it before
        assert row["step"] == before["step"] and row.keys() == before.keys()
        assert [row[name] for name in measured] == pytest.approx([before[name] for name in measured], 1e-5)
    again = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()][len(seen) :]
    assert sorted((r["step"], r["rank"]) for r in again) == [(4, 0), (4, 1), (5, 0), (5, 1)]
    by_place = {(r["step"], r["rank"]): r["ids"] for r in seen}
    assert all(by_place[r["step"], r["rank"]] == r["ids"] for r in again)
