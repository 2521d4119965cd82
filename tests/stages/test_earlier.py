"""Run directories of an earlier version are continued: resumed, found finished, and started from.

Every file was written by the earlier version (`tests/rundir/make_earlier.py`): a checkpoint, a cached
reference or a chunk that this version reads in another way fails here.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from posttrain.recipe import load
from posttrain.stages.stage_process import finished
from tests.rundir.make_earlier import STAGES
from tests.stages.damage import flip

LAST, BEFORE = "step-000004", "step-000002"
TRAINED = ("sft", "lora", "dpo", "kto", "rlvr")
PRODUCTS = {
    "pairs": ("pairs.jsonl", "pairs.json"),
    "pass_rate": ("kept.jsonl", "prompts.jsonl", "pass_rate.json"),
}
MEASURED = ("ms", "peak_memory_mib", "time", "tokens_per_second")
pytestmark = pytest.mark.slow
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the runs were made on a CPU, in fp32")


def start(name: str, *overrides: str) -> int:
    """The exit code of the stage of `name`, run in this process."""
    return importlib.import_module(f"posttrain.{STAGES[name]}").main([f"{name}.yaml", *overrides])


def far(a: Path, b: Path) -> float:
    """Largest difference between weights of two checkpoints."""
    first, second = (load_file(next(folder.glob("*model.safetensors"))) for folder in (a, b))
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of `file`, if it exists, without what depends on the machine's speed.

    The earlier version left special tokens out of completions; the models of these runs write `<unk>`.
    """
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").replace("<unk>", "").splitlines()
    return [_unmeasured(json.loads(line)) for line in lines]


def _unmeasured(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {
        k: v for k, v in value.items() if k.split("/")[-1] not in MEASURED and k.split("/")[0] != "seconds"
    }
    return {k: _unmeasured(v) for k, v in kept.items()}


def info(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def written(run: Path, pattern: str) -> dict[Path, int]:
    """When each file was written."""
    return {file: file.stat().st_mtime_ns for file in run.glob(pattern)}


# ---- resumed -----------------------------------------------------------------------------------------------


@on_cpu
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_resumed_from_its_checkpoint(earlier, name, caplog):
    """The last two steps, trained again, end where the earlier version did.

    On one machine the weights are equal, bit for bit. Another CPU may sum in another order, hence 1e-6; two
    steps move a weight by more than 1e-4.
    """
    run, removed = earlier / "runs" / name, earlier / "removed"
    shutil.move(run / "checkpoints" / LAST, removed)
    metrics, samples = rows(run / "metrics.jsonl"), rows(run / "samples.jsonl")
    rollouts = {file: rows(file) for file in run.glob("rollouts/*")}
    assert start(name) == 0
    assert f"resuming from runs/{name}/checkpoints/{BEFORE}" in caplog.messages
    assert f"checkpoints/{BEFORE} has no hashes of its files" in caplog.text
    assert "reference log-probabilities" not in caplog.text, "those beside the run are known"
    again = run / "checkpoints" / LAST
    difference = far(again, removed)
    print(f"{name}: largest difference of a weight {difference:.1e}")
    assert difference <= 1e-6
    assert far(run / "checkpoints" / BEFORE, removed) > 1e-4
    early, late = ([row for row in metrics if (row["step"] > 2) == after] for after in (False, True))
    logged = rows(run / "metrics.jsonl")
    added = logged[len(early) :]
    assert logged[: len(early)] == early and len(added) == len(late)
    for new, old in zip(added, late, strict=True):
        assert new.pop("split") == old.pop("split")
        assert new == pytest.approx(old, rel=1e-4, abs=1e-6)
    assert rows(run / "samples.jsonl") == [*samples, *samples[2:]]
    assert {file: rows(file) for file in run.glob("rollouts/*")} == rollouts
    new, old = (json.loads((folder / "checkpoint.json").read_text()) for folder in (again, removed))
    for key in ("saved", "digest", "guard"):
        del new[key], old[key]
    new.pop("start", None)  # the earlier version did not say it
    assert new.pop("window")
    assert new.pop("spent") == [], "what its first steps cost was not counted"
    assert (new.pop("engine"), new.pop("world_size")) == ("single", 1)  # nor this
    assert new.pop("files")  # the earlier version kept no hashes
    assert new == old
    assert info(run)["status"] == "finished"


@pytest.mark.parametrize(
    ("file", "damage", "code", "sentence"),
    [
        ("model.safetensors", "flip", 2, "its weights have changed since they were written"),
        ("optimizer.pt", "delete", 2, "optimizer* is missing"),
        ("scheduler.pt", "delete", 2, "scheduler.pt is missing"),
        ("rng_state.pth", "delete", 2, "rng_state*.pth is missing"),
        ("trainer_state.json", "delete", 2, "trainer_state.json is missing"),
        ("checkpoint.json", "flip", 2, "checkpoint.json is not JSON"),
        ("optimizer.pt", "empty", 2, "optimizer* is missing or empty"),
        ("trainer_state.json", "flip", 2, "trainer_state.json is not JSON"),
        ("rng_state.pth", "cut", 1, "and one may be damaged: restore it, or move"),
    ],
)
def test_a_damaged_checkpoint_without_hashes_is_refused(earlier, file, damage, code, sentence, capsys):
    folder = earlier / "runs/sft/checkpoints"
    shutil.rmtree(folder / LAST)
    if damage == "flip":
        flip(folder / BEFORE / file, 0 if file.endswith("json") else 1)
    elif damage == "empty":
        (folder / BEFORE / file).write_bytes(b"")
    elif damage == "cut":
        (folder / BEFORE / file).write_bytes((folder / BEFORE / file).read_bytes()[:-100])
    else:
        (folder / BEFORE / file).unlink()
    assert start("sft") == code
    assert sentence in capsys.readouterr().err


@on_cpu
@pytest.mark.parametrize("name", PRODUCTS)
def test_sampling_is_resumed_from_its_chunks(earlier, name):
    run = earlier / "runs" / name
    lost = ["parts/chunk-000002.jsonl", "rollouts/chunk-000002.jsonl", *PRODUCTS[name]]
    before = {file: rows(run / file) for file in lost if file.endswith("l")}
    counts = json.loads((run / lost[-1]).read_text())
    for file in lost:
        (run / file).unlink()
    kept = written(run, "*s/chunk-*")
    assert len(kept) == 4 and start(name) == 0
    assert {file: rows(run / file) for file in before} == before
    assert json.loads((run / lost[-1]).read_text()) == counts
    assert kept.items() <= written(run, "*s/chunk-*").items(), "nothing is sampled twice"


@pytest.mark.parametrize("name", STAGES)
def test_a_finished_run_started_again_does_nothing(earlier, name):
    run = earlier / "runs" / name
    patterns = (
        "checkpoints/*/*",
        "*/*.jsonl",
        "samples/*/*",
        "metrics.jsonl",
        "samples.jsonl",
        "scores.jsonl",
    )
    before = {pattern: written(run, pattern) for pattern in patterns}
    assert start(name) == 0
    assert {pattern: written(run, pattern) for pattern in patterns} == before
    assert info(run)["status"] == "finished"


# ---- started from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, overrides", [("lora", ["model.lora=null"]), ("dpo", [])], ids=["sft", "dpo"])
def test_a_new_run_starts_from_an_earlier_one(earlier, name, overrides):
    """With a learning rate of almost 0, so that the weights after a step are those that were loaded."""
    new = ["name=next", "train.max_steps=1", "train.learning_rate=1e-12", "checkpoints.save_steps=1"]
    assert start(name, *new, *overrides) == 0
    run = earlier / "runs" / "next"
    assert info(run)["parent"] == {"run": "runs/sft", "checkpoint": LAST}
    assert info(run)["status"] == "finished"
    assert far(run / "checkpoints" / "step-000001", earlier / "runs" / "sft" / "checkpoints" / LAST) < 1e-9


# ---- found finished ----------------------------------------------------------------------------------------


def _backwards(value: Any) -> Any:
    """`value` with the keys of every mapping in the opposite order."""
    if isinstance(value, list):
        return [_backwards(item) for item in value]
    if isinstance(value, dict):
        return {key: _backwards(value[key]) for key in reversed(value)}
    return value


@pytest.mark.parametrize("name", STAGES)
def test_a_pipeline_finds_the_run_finished(earlier, name):
    file = earlier / "runs" / name / "recipe.yaml"
    recipe, text = load(f"{name}.yaml"), file.read_text()
    assert finished(recipe)
    values = yaml.safe_load(text)
    file.write_text(yaml.safe_dump(_backwards(values), sort_keys=False))
    assert file.read_text() != text and finished(recipe)
    values["data"]["max_length"] = 31
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    assert not finished(recipe)


def test_a_pipeline_runs_what_another_recipe_has_finished(earlier):
    assert not finished(load("sft.yaml", ["train.learning_rate=0.04"]))
    (earlier / "runs" / "sft" / "run.json").write_text(
        json.dumps(info(earlier / "runs" / "sft") | {"status": "stopped"})
    )
    assert not finished(load("sft.yaml"))
