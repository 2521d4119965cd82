"""A run whose sources changed since it began is refused with the source and what changed, or goes on where
the recipe accepts it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.stages.damage import start
from tests.stages.test_damage import refused, unfinished

pytestmark = pytest.mark.slow
FILES = {"sft": "rows.jsonl", "lora": "rows.jsonl", "dpo": "pairs.jsonl", "rlvr": "rows.jsonl"}


def change(file: str, edit: Callable[[list[str]], list[str]]) -> None:
    path = Path(file)
    path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))


def changed_digit(row: int) -> Callable[[list[str]], list[str]]:
    """Another digit in a row, so that it has other tokens."""

    def edit(lines: list[str]) -> list[str]:
        i = next(i for i, char in enumerate(lines[row]) if char.isdigit())
        lines[row] = lines[row][:i] + str((int(lines[row][i]) + 1) % 10) + lines[row][i + 1 :]
        return lines

    return edit


CHANGES = {
    "edited": (changed_digit(20), "36 rows as before, the first other is row 20"),
    "grown": (lambda lines: [*lines, lines[0]], "36 -> 37 rows, the first other is row 36"),
    "shrunk": (lambda lines: lines[:-2], "36 -> 34 rows, the first other is row 34"),
    "reordered": (
        lambda lines: [*lines[:30], *lines[:29:-1]],
        "36 rows as before, the first other is row 30",
    ),
    "blank lines": (lambda lines: [*lines, "\n"], "36 rows as before, with the same tokens"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", CHANGES)
def test_the_source_and_what_changed_are_named(runs, name, kind, capsys):
    unfinished(runs, name)
    edit, expected = CHANGES[kind]
    change(FILES[name], edit)
    said = refused(name, capsys)
    assert f"source 'rows': {expected}" in said and "data.on_change=accept" in said
    account = (runs / name / "mixture.json").read_text()
    assert refused(name, capsys) == said, "a refusal changes nothing"
    assert (runs / name / "mixture.json").read_text() == account


def test_accepted_the_remaining_steps_see_the_new_rows(runs, caplog):
    unfinished(runs, "rlvr")
    change("rows.jsonl", changed_digit(3))
    assert start("rlvr", "data.on_change=accept") == 0
    assert "accepted by data.on_change" in caplog.text
    assert start("rlvr") == 0  # finished on the new rows


def test_a_reference_that_is_the_start_model_is_asked_about_new_rows(runs):
    unfinished(runs, "dpo")
    change("pairs.jsonl", changed_digit(3))
    assert start("dpo", "data.on_change=accept") == 0
    shutil.rmtree("cache/reference")
    assert start("dpo", "name=fresh") == 0  # on the new rows from the beginning
    (expected,) = (runs / "fresh/reference").glob("*.npz")
    with np.load(expected) as fresh, np.load(runs / "dpo/reference" / expected.name) as resumed:
        assert all(np.array_equal(fresh[name], resumed[name]) for name in ("rows", "log_probs"))


@pytest.mark.parametrize("name", FILES)
def test_an_equal_copy_is_the_same_source(runs, name):
    unfinished(runs, name)
    file = Path(FILES[name])
    shutil.copy(file, "copy")
    file.unlink()
    Path("copy").rename(file)
    assert start(name) == 0


def test_a_deleted_source_and_a_lost_account(runs, capsys):
    folder = unfinished(runs, "sft")
    file = Path("rows.jsonl")
    text = file.read_text()
    file.unlink()
    assert "no such file" in refused("sft", capsys)
    change_back = text.splitlines(keepends=True)
    file.write_text("".join(change_back[:-1]))
    (runs / "sft/mixture.json").write_text('{"sources": 7}')
    assert "which says what they were, is missing or damaged" in refused("sft", capsys)
    shutil.rmtree("cache")
    file.write_text(text)
    assert start("sft") == 0 and folder.is_dir()


def test_without_the_old_rows_in_the_cache_only_counts_are_named(runs, capsys):
    unfinished(runs, "dpo")
    shutil.rmtree("cache")
    change("pairs.jsonl", lambda lines: lines[:-1])
    assert "source 'rows': 36 -> 35 rows. Restore them" in refused("dpo", capsys)


def test_of_two_sources_the_changed_one_is_named(whole, tmp_path, monkeypatch, capsys):
    for name in ("rows.jsonl", "sft.yaml"):
        shutil.copy(whole / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.copy("rows.jsonl", "more.jsonl")
    change("more.jsonl", changed_digit(0))
    two = "data.sources=[{name: one, path: rows.jsonl}, {name: two, path: more.jsonl}]"
    assert start("sft", two) == 0
    shutil.rmtree("runs/sft/checkpoints/step-000006")
    change("more.jsonl", changed_digit(7))
    said = refused("sft", capsys, two)
    assert "source 'two'" in said and "source 'one'" not in said


def test_other_heldout_rows_are_said(whole, tmp_path, monkeypatch, caplog):
    """They are not trained on: the run goes on."""
    for name in ("rows.jsonl", "sft.yaml"):
        shutil.copy(whole / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.copy("rows.jsonl", "own.jsonl")
    own = "evaluate.heldout={share: null, source: {name: own, path: own.jsonl}, every_steps: 2}"
    assert start("sft", own) == 0
    shutil.rmtree("runs/sft/checkpoints/step-000006")
    change("own.jsonl", changed_digit(7))
    assert start("sft", own) == 0
    assert "the held-out rows have changed" in caplog.text
