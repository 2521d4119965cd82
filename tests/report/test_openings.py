"""A start model's own scores open the curves of its child, under the same settings alone."""

from __future__ import annotations

import json
import shutil

import pytest

from posttrain.report.openings import note, opened, starts
from posttrain.report.page import render
from posttrain.report.text import labels
from posttrain.rundir.reading import RunData
from tests.report import stages
from tests.report.test_page import Parsed

TASK = "arithmetic"


@pytest.fixture
def family(tmp_path):
    """A parent scored at steps 100 and 200, and a child that started from step 100, scored at 50."""
    parent, child = tmp_path / "parent", tmp_path / "child"
    stages.papers(parent, "sft", {"train": {"learning_rate": 1.0}})
    stages.scored(parent, {100: (-2.0, 1.0), 200: (-1.0, 1.0)})
    stages.papers(child, "rlvr", {}, (parent, "step-000100"))
    stages.scored(child, {50: (0.0, 1.0), 100: (0.5, 1.0)})
    return parent, child


def change(path, **values):
    """Sets fields of every line of scores.jsonl."""
    rows = [json.loads(line) | values for line in (path / "scores.jsonl").read_text().splitlines()]
    (path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def of(child, *others):
    runs = [RunData.load(path) for path in (child, *others)]
    return opened(runs[0], TASK, starts(runs, labels(runs))[0])


@pytest.mark.parametrize("on_page", [True, False])
def test_a_child_begins_with_its_parents_score(family, on_page):
    """Of the checkpoint that it started from, which is not the last one; on the page or beside it."""
    parent, child = family
    table, by = of(child, *[parent] * on_page)
    assert by.startswith("step 100 of ") and (on_page or by == "step 100 of parent")
    first, *rest = table.values()
    want = RunData.load(parent).rows(TASK)["step-000100"]
    assert {k: s.value for k, s in first.items()} == {k: want[f"pass@{k}"].value for k in stages.KS}
    assert {s.step for s in first.values()} == {0}
    assert [next(iter(points.values())).step for points in rest] == [50, 100], "it has a step 100 of its own"


def test_never_under_other_settings(family):
    """Another chat template is another start, and so are options of the model and an unscored checkpoint."""
    parent, child = family
    change(parent, settings="s1-other")
    change(child, settings="s1-own")
    assert of(child, parent)[1] == ""
    change(parent, settings="s1-own")
    assert of(child, parent)[1]
    recipe = child / "recipe.yaml"
    kept = recipe.read_text()
    recipe.write_text(kept + "model: {options: {rope_theta: 5.0}}\n")
    assert of(child, parent)[1] == ""
    recipe.write_text(kept)
    stages.papers(child, "rlvr", {}, (parent, "step-000150"))
    assert of(child, parent)[1] == "", "that checkpoint has no score"


def test_its_own_score_of_the_start_comes_first(family):
    parent, child = family
    shutil.rmtree(child)
    stages.papers(child, "rlvr", {}, (parent, "step-000100"))
    stages.scored(child, {0: (-3.0, 1.0), 50: (0.0, 1.0)})
    table, by = of(child, parent)
    assert [*table] == ["step-000000", "step-000050"] and by == ""


@pytest.mark.parametrize("place", [None, "hub/model", "/nowhere", "a\x00b", "x" * 5000, 7])
def test_a_start_that_cannot_be_read_opens_nothing(family, place):
    _, child = family
    facts = json.loads((child / "run.json").read_text())
    facts["parent"] = place if place is None else {"run": place, "checkpoint": "step-000100"}
    (child / "run.json").write_text(json.dumps(facts))
    table, by = of(child)
    assert [*table] == ["step-000050", "step-000100"] and by == ""


def test_the_page_says_what_opened_a_curve(family):
    parent, child = family
    page = Parsed(render([RunData.load(child)])).text
    assert page.count("opened by step 100 of parent") == 3, "the curves, pass@1 and pass@128 over training"
    both = Parsed(render([RunData.load(path) for path in (parent, child)])).text
    assert "opened by step 100 of " in both
    assert "opened" not in Parsed(render([RunData.load(parent)])).text


def test_notes():
    assert note([("a", "step 1 of b")]) == "; opened by step 1 of b" and note([("a", "")]) == ""
    both = [("a", ""), ("c", "step 1 of a"), ("d", "step 1 of a"), ("e", "step 2 of a")]
    assert note(both) == "; opened by step 1 of a: c, d; opened by step 2 of a: e"
