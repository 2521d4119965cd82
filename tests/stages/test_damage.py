"""A damaged checkpoint is never trained on: the run goes on from the one before, and ends as if nothing had
happened; or it is refused in a sentence that names the file."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.reading import RunData
from tests.stages.damage import BEFORE, LAST, NEWEST, TRAINED, damages, edit, flip, start

pytestmark = pytest.mark.slow
QUICK = (
    "model.safetensors: middle byte",
    "adapter_model.safetensors: last byte",
    "optimizer.pt: deleted",
    "checkpoint.json: other rows",
    "COMPLETE: deleted",
)
"""Of the damages, those with which the fast tests train."""


def weights(checkpoint: Path) -> dict[str, bytes]:
    """The bits of every weight."""
    (file,) = checkpoint.glob("*model.safetensors")
    return {name: value.numpy().tobytes() for name, value in load_file(file).items()}


def by_step(file: Path) -> dict[tuple, dict]:
    """What the last line of each step says of the training."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    keys = ("ids", "loss", "grad_norm", "learning_rate", "reward", "epoch")
    return {(row["step"], row.get("split")): [row.get(key) for key in keys] for row in rows}


def rollouts(run: Path) -> dict[str, list[tuple]]:
    keys = ("completion", "reward", "advantage", "trained")
    found = {}
    for file in sorted(run.glob("rollouts/*")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.name] = [tuple(row[key] for key in keys) for row in rows]
    return found


def refuse_or_resume(name: str, damage, runs: Path, whole: Path, caplog, capsys) -> str:
    """Damages the newest checkpoint of an unfinished run and starts it twice; returns the warning."""
    run, before = runs / name, whole / "runs" / name
    shutil.rmtree(run)
    shutil.copytree(before, run)
    folder = run / "checkpoints"
    shutil.rmtree(folder / LAST)
    damage(folder / NEWEST, folder / BEFORE)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert start(name) == 0, capsys.readouterr().err
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    said = [line for line in said if NEWEST in line and "is damaged" in line]
    assert len(said) == 1 and "resuming from step-000002" in said[0], caplog.text
    assert f"resuming from runs/{name}/checkpoints/{BEFORE}" in caplog.messages
    assert (folder / f"damaged-{NEWEST}").is_dir()
    assert {c.step for c in RunData.load(run).checkpoints} <= {0, 2, 4, 6}, "it is no checkpoint any more"
    assert [c.name for c in ckpt.all_complete(folder) if c.step] == [BEFORE, NEWEST, LAST]
    for step in (NEWEST, LAST):
        assert weights(folder / step) == weights(before / "checkpoints" / step)
    assert by_step(run / "metrics.jsonl") == by_step(before / "metrics.jsonl")
    if (before / "samples.jsonl").exists():
        assert by_step(run / "samples.jsonl") == by_step(before / "samples.jsonl")
    assert rollouts(run) == rollouts(before)
    if (before / "scores.jsonl").exists():  # equal weights have equal scores: none is written twice
        assert (run / "scores.jsonl").read_text() == (before / "scores.jsonl").read_text()
    return said[0]


@pytest.mark.parametrize("name", TRAINED)
def test_every_damage_is_seen(runs, name):
    """The choice of the checkpoint alone, which is what training starts with."""
    folder = runs / name / "checkpoints"
    found = dict(damages(folder / NEWEST, folder / BEFORE))
    assert len(found) > 100
    for what, damage in found.items():
        shutil.rmtree(folder / LAST, ignore_errors=True)
        shutil.copytree(folder / NEWEST, folder / "kept")
        damage(folder / NEWEST, folder / BEFORE)
        sound, damaged = ckpt.newest_sound(folder, 6)
        assert sound is not None and sound.name == BEFORE, what
        assert damaged.keys() == {NEWEST}, what
        file = what.partition(":")[0]
        named = (file,) if ":" in what else ("model", "template", "config", "checkpoint.json")
        named += ("checkpoint.json", "COMPLETE") if file in ("checkpoint.json", "COMPLETE") else ()
        assert any(part in damaged[NEWEST] for part in named), (what, damaged)
        shutil.rmtree(folder / NEWEST)
        (folder / "kept").rename(folder / NEWEST)
    assert ckpt.newest_sound(folder, 6)[0].name == NEWEST


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_training_goes_on_from_the_checkpoint_before(runs, whole, name, quick, caplog, capsys):
    folder = whole / "runs" / name / "checkpoints"
    for what, damage in damages(folder / NEWEST, folder / BEFORE):
        if (what in QUICK) == quick:
            said = refuse_or_resume(name, damage, runs, whole, caplog, capsys)
            print(f"{name}, {what}: {said}")


# ---- refused -----------------------------------------------------------------------------------------------


def refused(name: str, capsys, *overrides: str, code: int = 2) -> str:
    """The sentence with which the run ends."""
    capsys.readouterr()
    assert start(name, *overrides) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error: ") :]


def unfinished(runs: Path, name: str) -> Path:
    """The checkpoints of a run that was stopped after step 4."""
    folder = runs / name / "checkpoints"
    shutil.rmtree(folder / LAST)
    return folder


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_whose_checkpoints_are_all_damaged_is_refused(runs, name, capsys):
    folder = unfinished(runs, name)
    for step in (BEFORE, NEWEST):
        flip(folder / step / "optimizer.pt", 0.5)
    said = refused(name, capsys)
    for step in (BEFORE, NEWEST):
        assert f"{step}: optimizer.pt has changed since it was written" in said
        assert (folder / step).is_dir(), "nothing is renamed in a run that is refused"
    assert "Restore the files" in said
    flip(folder / BEFORE / "optimizer.pt", 0.5)  # restored
    assert start(name) == 0 and (folder / f"damaged-{NEWEST}").is_dir()


def test_a_checkpoint_of_another_recipe_is_refused(runs, capsys):
    folder = unfinished(runs, "dpo")
    shutil.rmtree(folder / NEWEST)
    shutil.copytree(runs / "rlvr" / "checkpoints" / NEWEST, folder / NEWEST)
    said = refused("dpo", capsys)
    assert f"{folder.relative_to(runs.parent) / NEWEST} is a checkpoint of another recipe" in said
    shutil.rmtree(folder / NEWEST)
    assert start("dpo") == 0


def test_a_checkpoint_of_other_rows_is_refused_or_accepted(runs, capsys, caplog):
    folder = unfinished(runs, "dpo")
    edit(folder / NEWEST, sealed=True, data_fingerprint="0" * 64)
    assert "its sources have changed" in refused("dpo", capsys)
    flip(folder / NEWEST / "model.safetensors", 0.5)
    edit(folder / BEFORE, sealed=True, data_fingerprint="1" * 64)
    edit(folder / NEWEST, sealed=True, data_fingerprint=_rows(runs, "dpo"))
    said = refused("dpo", capsys)
    assert f"{BEFORE} was trained on other rows" in said and "data.on_change=accept" in said
    assert start("dpo", "data.on_change=accept") == 0


def _rows(runs: Path, name: str) -> str:
    return json.loads((runs / name / "mixture.json").read_text())["fingerprint"]


def test_a_renamed_checkpoint_is_not_taken_for_a_later_one(runs, whole, caplog):
    folder = unfinished(runs, "sft")
    (folder / NEWEST).rename(folder / "step-000009")
    assert start("sft") == 0
    assert "step-000009 is damaged: checkpoint.json is that of step 4" in caplog.text
    assert weights(folder / LAST) == weights(whole / "runs/sft/checkpoints" / LAST)


def test_a_finished_run_is_not_trained_again_for_its_optimizer(runs, caplog):
    (runs / "sft/checkpoints" / LAST / "optimizer.pt").unlink()
    assert start("sft") == 0 and "is damaged" not in caplog.text
    flip(runs / "sft/checkpoints" / LAST / "model.safetensors", 1)
    assert start("sft") == 0 and f"{LAST} is damaged: model.safetensors" in caplog.text


# ---- other files of the run --------------------------------------------------------------------------------

RATE = "train.learning_rate=0.01"


@pytest.mark.parametrize("content", [None, "7", "{oops", "{}", '{"recipe_hash": "0"}', "\xff"])
def test_run_json(runs, content, capsys):
    """Deleted, the checkpoints say which recipe it was; damaged, it is refused. Never another recipe."""
    unfinished(runs, "sft")
    file = runs / "sft/run.json"
    file.unlink() if content is None else file.write_bytes(content.encode("latin-1"))
    known = content in (None, "{}")
    said = refused("sft", capsys, RATE, code=2 if known or "hash" in content else 1)
    assert ("learning_rate" in said) == (known or "hash" in content) and "sft" in said
    if known:
        assert start("sft") == 0
        return
    said = refused("sft", capsys, code=2 if "hash" in content else 1)
    assert "run.json" in said and "delete it to resume" in said
    file.unlink()
    assert start("sft") == 0


@pytest.mark.parametrize("content", [None, b"7", b"{oops: [", b"\xff\xfe", b""])
@pytest.mark.parametrize("name", ["recipe.yaml", "mixture.json"])
def test_recipe_and_account_are_written_again(runs, name, content, whole):
    unfinished(runs, "sft")
    file = runs / "sft" / name
    file.unlink() if content is None else file.write_bytes(content)
    assert start("sft") == 0
    assert file.read_bytes() == (whole / "runs/sft" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        *(("scores.jsonl", line) for line in ("7", '{"x": 1}', '{"checkpoint": 5}', "{oops", '"\xff"')),
        *((f"{name}.jsonl", line) for name in ("metrics", "samples", "gates") for line in ("7", "{oops")),
    ],
)
def test_a_damaged_line(runs, name, line, capsys):
    """Scores decide which checkpoint is the best, so a damaged one is refused. None ends in a traceback."""
    unfinished(runs, "sft")
    file = runs / "sft" / name
    file.write_bytes(line.encode("latin-1") + b"\n" + (file.read_bytes() if file.exists() else b""))
    from posttrain.cli import main

    for command in (["show", "runs/sft"], ["report", "runs/sft", "--out", "out.html"]):
        assert main(command) in (0, 1)
    if name == "scores.jsonl":
        said = refused("sft", capsys, code=1)
        assert "scores.jsonl:1" in said and "remove the line" in said
        assert main(["eval", "runs/sft@best:arithmetic/pass@1"]) == 1
        file.write_text(file.read_text(errors="replace").partition("\n")[2])
    assert start("sft") == 0
    assert "Traceback" not in capsys.readouterr().err
