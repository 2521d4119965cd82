"""The model card and the terminal view."""

from __future__ import annotations

import io
import json
import sys

import pytest
import yaml
from rich.console import Console

from posttrain.errors import RequestError
from posttrain.report.card import model_card
from posttrain.report.terminal import show
from posttrain.rundir.reading import RunData


def front(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0][4:])


def test_card_says_what_was_measured(runs):
    card = model_card(runs[0], "step-000600")
    value = next(s.value for s in runs[0].scores if s.step == 600 and s.metric == "pass@256")
    results = front(card)["model-index"][0]["results"]
    metrics = {m["type"]: m["value"] for r in results for m in r["metrics"]}
    assert metrics["pass@256"] == pytest.approx(value)
    assert f"| multiplication | pass@256 | {value:.3f}".replace("0.", ".") in card
    assert "| addition |" in card and "learning_rate: 0.001" in card
    assert "Held-out loss: 1.689 at step 1,800" in card


def test_card_is_read_by_the_hub_library(runs):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(runs[1], "step-001800"))
    found = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert set(found) == {"pass@1", "pass@16", "pass@256", "pass@4096", "nll"}
    card.data.eval_results = None
    assert card.data.library_name == "transformers" and "sft" in card.data.tags


def test_card_without_the_hub_library(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    data = front(model_card(runs[0], "step-000600"))
    assert data["tags"] == ["posttrain", "sft"] and "model-index" not in data


def test_card_of_an_unmeasured_checkpoint(tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-000010").mkdir(parents=True)
    run = RunData.load(tmp_path / "run")
    card = model_card(run, "step-000010")
    assert card.count("not measured") >= 7 and "Scores of this checkpoint: not measured." in card
    with pytest.raises(RequestError, match=r"no checkpoint 'step-00001' \(did you mean 'step-000010'\?\)"):
        model_card(run, "step-00001")


def test_card_text_cannot_break_out(tmp_path, tables):
    """A fence inside the recipe, table bars and markup in names stay text."""
    run = RunData.load(tables["sampled"](tmp_path / "run", problems=3))
    run.recipe_text = "note: |\n  ````\n  # not a heading\n"
    card = model_card(run, "step-000200")
    assert "`````yaml" in card and "<script" not in card.split("---", 2)[2]
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") in (6, 11) for line in rows)


def printed(path, **options) -> str:
    out = io.StringIO()
    show(path, Console(file=out, width=100, color_system=None), **options)
    return out.getvalue()


def test_show_run(pair):
    text = " ".join(printed(pair[0]).split())
    for word in (
        "finished",
        "step 1,800 of 1,800",
        "step-001500 (partial)",
        "overlong 7",
        "pass@256",
        "none yet",
    ):
        assert word in text, word
    assert "Cross-entropy: pass@1" in text


def test_show_names_dropped_rows(pair, tmp_path):
    """On one line each, whatever the detail contains; no line for a run that names none."""
    detail = "4,100 tokens\nreport forged \x1b[2J [red]x[/nope]"
    source = {"name": "a", "dropped_examples": {"overlong": [{"where": "train.jsonl:12", "detail": detail}]}}
    (tmp_path / "mixture.json").write_text(json.dumps({"sources": [source]}))
    shown = printed(tmp_path).splitlines()
    head = next(i for i, line in enumerate(shown) if line.startswith("dropped from"))
    assert "train.jsonl:12" in shown[head + 1] and "4,100 tokens report forged \\x1b[2J" in shown[head + 1]
    assert "[red]x[/nope]" in "".join(shown[head + 1 : head + 3])
    assert "dropped from" not in printed(pair[0])


def test_show_pipeline_and_hostile_names(pipeline, tables, tmp_path):
    text = printed(pipeline)
    assert "disk full" in text and "From N =" in text and "cl-256" in text
    text = printed(tables["sampled"](tmp_path / "run", problems=3, text="[red]x[/nope]"))
    assert "[red]x[/nope]" in text, "rich markup in a run's text is text"


def test_show_json(pair, pipeline):
    value = json.loads(printed(pair[1], json=True))
    assert value["status"] == "finished" and value["step"] == value["steps"] == 1800
    assert {c["name"] for c in value["checkpoints"] if not c["complete"]} == {"step-001500"}
    assert len(json.loads(printed(pipeline, json=True))["runs"]) == 2


def test_show_refuses_what_is_no_run(tmp_path):
    with pytest.raises(RequestError, match="no such run"):
        printed(tmp_path / "x")
