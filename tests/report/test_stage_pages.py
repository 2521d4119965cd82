"""What the later stages add to the page, the terminal and the card."""

from __future__ import annotations

import io
import json
import re

import pytest
import yaml
from rich.console import Console

from posttrain.base.printable import UNSAFE
from posttrain.report.card import model_card
from posttrain.report.page import load_runs, markdown_report, render, write_report
from posttrain.report.plots import success_bars
from posttrain.report.step_plots import Line, over_steps
from posttrain.report.terminal import show
from tests.report import stages
from tests.report.test_page import Parsed
from tests.rundir.written import HOSTILE, lines, rollout


def hostile_run(path):
    """Markup, escapes, half a surrogate pair and a megabyte wherever a model or a row may write."""
    text = HOSTILE + "\x1b[2J\x07\u202e\ud800"
    stages.write_rlvr(path, "mean", (path, text), {}, 6)
    rows = [
        rollout(g, 0, prompt=text, completion=text, answer=text, source=text, where=text, finish=text)
        for g in range(3)
    ]
    rows[0]["components"] = {text: {"value": 0.0, "status": text, "reason": text}}
    rows[1]["completion"] = text * 20_000
    lines(path / "rollouts" / "step-000119.jsonl", rows)
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    recipe["policy"] = {"loss": HOSTILE, "advantage": HOSTILE}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    named = {
        f"reward/{HOSTILE}": 0.5,
        f"reward/{HOSTILE}/ms": 1.0,
        "checks_failed": 0.5,
        f"reward/{HOSTILE}/error": 0.5,
    }
    lines(
        path / "metrics.jsonl",
        [{"step": i, "split": "train", "success": 0.1, "reward/b": 0.2} | named for i in (1, 2)],
    )
    dropped = {"overlong": [{"where": f"{text}:3", "detail": f"{text}\n\x9b2J\ttail"}, 7], text: "no list"}
    mixture = {"sources": [{"name": text, "rows_read": 9, "dropped_examples": dropped}, {"name": "bare"}]}
    (path / "mixture.json").write_text(json.dumps(mixture))
    outcome = {"prompts": 3, "pairs": 1, "none": {text: 2}, "success_by_count": [1, 1, 1]}
    (path / "pairs.json").write_text(json.dumps(outcome))
    lines(
        path / "gates.jsonl",
        [{"step": 1, "task": text, "metric": text, "value": 1, "reference": 2, "max_drop": 0}],
    )
    return path


@pytest.fixture(scope="module")
def page(chain, tmp_path_factory):
    """The pipeline with a hostile run beside it."""
    folder = tmp_path_factory.mktemp("page")
    return write_report([chain, hostile_run(folder / "hostile")], folder / "page.html")


def test_page_has_the_stages_in_order(page):
    text = page.read_text(encoding="utf-8")
    found = Parsed(text)
    heads = [re.sub(r"<[^>]+>", "", h) for h in re.findall(r"<h[23]>(.*?)</h[23]>", text)]
    order = [
        "arithmetic",
        "Sampled completions",
        "Training",
        "Supervised fine-tuning: Cross-entropy",
        "Preference optimisation: DPO dpo_norm",
        "Verifiable rewards: RLVR dapo, mean_std advantage,",
        "Data",
        "Samples",
    ]
    places = [next(i for i, head in enumerate(heads) if head.startswith(title)) for title in order]
    assert places == sorted(places) and heads[places[3]] == order[3], "stages that sample train nothing"
    for words in (
        "Reward: tags",
        "Log-ratio to the reference",
        "How often prompts were solved",
        "pass@1 through the stages",
        "Groups without gradient",
        "timeout, worker lost",
        "advantage +0.7",
        "the chosen replies become less likely",
        "all wrong 30",
        "full bars: kept",
        "stages end to end",
    ):
        assert words in found.text, words
    ids = [v for _, k, v in found.attributes if k == "id"]
    assert len(ids) == len(set(ids)) and len(text) < 2_000_000


def test_hostile_text_stays_text(page):
    text = page.read_text(encoding="utf-8")
    found = Parsed(text)
    assert not {"script", "img"} & set(found.tags)
    assert not [k for _, k, _ in found.attributes if k.startswith("on")]
    assert "<script>alert('x')</script>" in found.text and "\\x1b[2J\\x07\\u202e\\ud800" in found.text
    assert not UNSAFE.search(text)
    hostile = page.parent / "hostile"
    assert not UNSAFE.search(printed(hostile)) and "\\x1b[2J" in printed(hostile)
    assert "\\x9b2J tail" in found.text, "the detail of a dropped row"
    words = markdown_report(load_runs([hostile])[0])
    assert "<script" not in words and not UNSAFE.search(words)


def test_browser_renders_the_stages(page, chromium, tmp_path):
    done = chromium(page, tmp_path / "profile")
    assert done.stdout.count("<svg") == page.read_text(encoding="utf-8").count("<svg") > 30
    assert "<script" not in done.stdout and "<img" not in done.stdout
    for words in (
        "Sampled completions",
        "Preference optimisation",
        "Reward: tags",
        "check failed",
        "more characters",
    ):
        assert words in done.stdout, words
    assert "CONSOLE" not in done.stderr, done.stderr


def test_one_component_is_not_shown_twice(made):
    rows = [{"success": 0.5, "reward": 0.5, "reward/math": 0.5, "reward/math/ms": 1.0}] * 2
    text = render([made("rlvr", {}, rows)])
    assert "Reward: math" not in text and ">Reward<" in text


def test_failed_checks_stand_out(made):
    for name, failed in (("quiet", 0.002), ("loud", 0.03)):
        text = render([made("rlvr", {}, [{"checks_failed": failed}] * 3, name)])
        assert ('<figcaption class="fail"><b>Failed checks' in text) == (name == "loud")
        assert ('<p class="alert">' in text) == (name == "loud")


def test_bars_name_their_shares():
    text = Parsed(success_bars("x", [1, 0, 299, 100], 0, (1, 2))).text
    assert all(word in text for word in ("<1%", "75%", "25%", "right of 3"))
    assert "%" in Parsed(success_bars("x", [1] * 65)).text, "many bars have an axis instead"


def test_labels_at_line_ends_do_not_overlap():
    """Three lines of text under one line: centres are two line heights apart."""
    wide = [
        Line("one two three four five six seven", [1, 2], [0.5, 0.5], 0),
        Line("b", [1, 2], [0.5, 0.5], 1),
    ]
    svg = over_steps("x", "y", wide, "share")
    found = re.findall(r'(?:y="|translate\([\d.]+ )([\d.]+)\)?">([^<]+)</text>', svg)
    heights = {text: float(y) for y, text in found if text in ("b", "one two three", "seven")}
    assert heights["b"] - heights["seven"] > 11 and heights["seven"] > heights["one two three"]


def test_lengths_stand_on_a_log_axis():
    svg = over_steps(
        "x", "tokens", [Line("a", [1, 2], [60.0, 80.0]), Line("b", [1, 2], [900.0, 1000.0])], "log"
    )
    assert {"32", "128", "512"} <= set(re.findall(r">(\d+)<", svg))
    over_steps("x", "tokens", [Line("", [1], [0.0])], "log")


def printed(path, **options) -> str:
    out = io.StringIO()
    show(path, Console(file=out, width=160, color_system=None), **options)
    return out.getvalue()


def test_show_says_what_each_stage_did(chain):
    text = printed(chain)
    for words in (
        "accuracy              .514 → .836",
        "pairs        120",
        "100 (25% of the prompts)",
        "success  ",
        "rollouts                3 files (posttrain show",
        "1 file (posttrain show",
        "less likely",
    ):
        assert words in text, words
    assert "chunk 1 of 9" in text
    value = json.loads(printed(chain / "rlvr-plain", json=True))
    assert value["rollouts"] == [1, 61, 119] and value["alerts"] == [] and "success" in value["facts"]


def test_markdown_and_card_say_it_too(chain, held):
    text = markdown_report(*load_runs([chain]))
    assert "## Stage of DPO dpo\\_norm" in text or "## Stage of DPO dpo_norm" in text
    assert "- **DPO dpo" in text and "| math | 1 |" in text and "| pairs | 120 |" in text
    card = model_card(held["rlvr-plain"], "step-000120")
    assert "stage rlvr" in card and "Objective: RLVR dapo, mean_std advantage." in card
    assert "- rewards: math (weight 1), tags (weight 0.2)" in card and "- success: " in card
    assert "tags:\n- posttrain\n- rlvr" in card
    card = model_card(held["dpo"], "step-000050")
    assert "Objective: DPO dpo_norm." in card and "- accuracy: .514 → .836" in card
