"""A checkpoint that was not scored is named wherever its scores would be."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.report.card import model_card
from posttrain.report.markdown import markdown_report
from posttrain.report.page import render
from posttrain.report.scorecard import scorecard_markdown
from posttrain.report.terminal import show
from posttrain.rundir.reading import RunData

SAID = "step-000900 was not scored on multiplication: no memory."


@pytest.fixture
def lacking(pair, tmp_path) -> Path:
    """A finished run without the scores of step 900, which has no memory, and of 1500, which was removed."""
    path = Path(shutil.copytree(pair[0], tmp_path / "lacking"))
    rows = [json.loads(line) for line in (path / "scores.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] not in (900, 1500)]
    (path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"checkpoint": "step-000900", "task": "multiplication", "reason": "no memory"}
    (path / "unscored.jsonl").write_text(json.dumps(row) + "\n")
    return path


def test_every_page_names_the_hole(lacking):
    run = RunData.load(lacking)
    out = Console(file=io.StringIO(), width=200)
    show(lacking, out)
    for text in (
        render([run]),
        markdown_report([run]),
        out.file.getvalue(),
        model_card(run, "step-001800"),
        scorecard_markdown(lacking),
    ):
        assert SAID in text.replace("\\", "")


def test_no_curve_passes_over_it_in_silence(lacking):
    run = RunData.load(lacking)
    page = render([run])
    assert page.count("not scored: step 900") >= 2, "pass@k over k and over steps"
    assert "| 900 | – |" in scorecard_markdown(lacking)


def test_of_a_finished_run_every_kept_checkpoint_has_scores(lacking):
    (lacking / "unscored.jsonl").unlink()
    assert [str(u) for u in RunData.load(lacking).unscored] == [
        "step-000900 was not scored on multiplication"
    ], "step 1500 is half-written"
    info = json.loads((lacking / "run.json").read_text()) | {"status": "running"}
    (lacking / "run.json").write_text(json.dumps(info))
    assert RunData.load(lacking).unscored == []
