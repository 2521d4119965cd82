"""Damaged files of a sampling stage are made again, and the products are those of the undamaged run."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from tests.stages.damage import flip, start

pytestmark = pytest.mark.slow
PRODUCTS = {
    "pairs": ("pairs.jsonl", "pairs.json"),
    "pass_rate": ("kept.jsonl", "prompts.jsonl", "pass_rate.json"),
}
CHUNK = "chunk-000001.jsonl"


def products(run: Path, name: str) -> list[str]:
    return [(run / file).read_text() for file in PRODUCTS[name]]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("both", [False, True], ids=["part", "part and rollouts"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, 0.5),
        lambda file: file.write_text(file.read_text().replace("4", "3").replace("1.0", "0.0")),
        lambda file: file.write_text('{"x": 1}\n'),
        lambda file: file.write_text("7\n"),
        lambda file: file.write_text("{oops\n"),
        lambda file: file.write_text(""),
        lambda file: os.truncate(file, file.stat().st_size // 2),
        lambda file: file.unlink(),
    ],
    ids=["flipped", "other numbers", "other keys", "a number", "not JSON", "emptied", "cut", "deleted"],
)
def test_a_damaged_chunk_is_made_again(runs, whole, name, both, damage, caplog):
    run = runs / name
    for folder in ("parts", "rollouts") if both else ("parts",):
        damage(run / folder / CHUNK)
    for file in PRODUCTS[name]:
        (run / file).unlink()
    kept = {file: file.stat().st_mtime_ns for file in run.glob("*s/chunk-*[02].jsonl")}
    with caplog.at_level(logging.WARNING):
        assert start(name) == 0
    assert products(run, name) == products(whole / "runs" / name, name)
    assert len(kept) == 4 and all(file.stat().st_mtime_ns == at for file, at in kept.items())


@pytest.mark.parametrize("content", ["{oops\n", "7\n", ""])
def test_damaged_hashes_make_no_traceback(runs, whole, content):
    (runs / "pairs" / "chunks.hashes").write_text(content)
    assert start("pairs") == 0
    assert products(runs / "pairs", "pairs") == products(whole / "runs/pairs", "pairs")


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_source_that_grew_is_named(runs, name, capsys):
    (runs / name / "parts" / CHUNK).unlink()
    rows = Path("rows.jsonl")
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[0] + "\n")
    for overrides in ([], ["data.on_change=accept"]):
        assert start(name, *overrides) == 2
        assert "source 'rows': 36 -> 37 rows, the first other is row 36" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRODUCTS)
def test_samples_without_run_json_are_refused(runs, name, capsys):
    """Of an earlier launch: those of this one may be there before the main process writes run.json."""
    (runs / name / "run.json").unlink()
    for part in (runs / name).glob("parts/*"):
        os.utime(part, (0, 0))
    assert start(name) == 2
    assert "contains samples but no run.json" in capsys.readouterr().err


def test_hashes_are_in_the_folder(runs):
    rows = [json.loads(line) for line in (runs / "pairs/chunks.hashes").read_text().splitlines()]
    assert {row["file"] for row in rows} == {
        f"{f}/chunk-{n:06d}.jsonl" for f in ("parts", "rollouts") for n in range(3)
    }
