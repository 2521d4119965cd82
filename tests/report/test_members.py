"""What sweep.json says of a run is compared with the run's own recipe: edited files, runs that were moved."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import yaml
from rich.console import Console

from posttrain.report.members import contradicted
from posttrain.report.page import load_runs, markdown_report, render
from posttrain.report.sides import side_groups, sides
from posttrain.report.swept import MOST_NAMED, load_sweep, progress, run_names, strangers
from posttrain.report.terminal import show
from posttrain.rundir.reading import RunData
from posttrain.rundir.sweeps import SweepData
from tests.report.swept import change, write_chains, write_sweep
from tests.report.test_page import Parsed


@pytest.fixture
def small(tmp_path):
    """N = 16 and 1, two seeds."""
    return write_sweep(tmp_path / "small", (16.0, 1.0), (0.001,), (0, 1), 6, (0, 600), (1, 16))


def edit(root, run: str, **entry) -> None:
    """Changes what sweep.json says of a run."""
    runs = json.loads((root / "sweep.json").read_text())["runs"]
    change(root / "sweep.json", runs=[r | entry if r["run"] == run else r for r in runs])


def said(root) -> list[str]:
    """The sentences, each without the place of the file."""
    found = strangers(load_runs([root])[0])
    start, end = f"{root / 'sweep.json'}: ", "; it is not shown as a run of the sweep."
    assert all(text.startswith(start) and text.endswith(end) for text in found)
    return [text.removeprefix(start).removesuffix(end) for text in found]


def recipe(path, **sections) -> None:
    """Changes sections of a run's recipe."""
    text = yaml.safe_load((path / "recipe.yaml").read_text()) | sections
    (path / "recipe.yaml").write_text(yaml.safe_dump(text))


N_1, N_16 = "n-1_learning_rate-0.001_seed-{}", "n-16_learning_rate-0.001_seed-{}"


def test_what_is_right_is_not_doubted(small, tmp_path):
    assert said(small) == [] and said(write_chains(tmp_path / "chains")) == []


def test_values_that_were_swapped(small):
    """Two of four runs leave the sweep, are called by their recipes, and every form of the report says so."""
    edit(small, N_1.format(1), values={"loss.n": 16.0})
    edit(small, N_16.format(1), values={"loss.n": 1.0})
    runs, pipeline = load_runs([small])
    first, second = strangers(runs)
    assert sorted(said(small)) == sorted(
        [
            f"{N_1.format(1)} has loss.n = 16.0, but its recipe has 1.0",
            f"{N_16.format(1)} has loss.n = 1.0, but its recipe has 16.0",
        ]
    )
    labels = {run.path.name: side.label for side in sides(runs) for run in side.runs}
    assert labels == {
        N_16.format(0): "n 16",
        N_1.format(0): "n 1",
        N_16.format(1): "Confidence-limited N = 16",
        N_1.format(1): "Confidence-limited N = 1",
    }
    names = dict(zip([run.path.name for run in runs], run_names(runs), strict=True))
    assert names[N_1.format(0)] == f"{N_1.format(0)} (n 1, seed 0)" and names[N_1.format(1)] == N_1.format(1)
    data, unread = load_sweep(pipeline)
    assert [run.run for run in data.runs] == [N_16.format(0), N_1.format(0)] and unread == []
    assert progress(pipeline, data) == ([], []) and len(side_groups(runs)) == 1
    out = io.StringIO()
    show(small, Console(file=out, width=300, color_system=None))
    for text in (Parsed(render(runs, pipeline)).text, out.getvalue(), markdown_report(runs, pipeline)):
        plain = text.replace("\\", "")
        assert first in plain and second in plain
    one = io.StringIO()
    show(small / N_1.format(1), Console(file=one, width=300, color_system=None))
    assert "but its recipe has 1.0" in one.getvalue() and "Confidence-limited N = 1: " in one.getvalue()


def test_seeds_that_were_swapped(small):
    edit(small, N_1.format(0), seed=1)
    assert said(small) == [f"{N_1.format(0)} has seed = 1, but its recipe has 0"]


def test_folders_that_were_swapped(small):
    for name, to in ((N_1.format(0), "kept"), (N_16.format(0), N_1.format(0)), ("kept", N_16.format(0))):
        (small / name).rename(small / to)
    assert sorted(said(small)) == sorted(
        [
            f"{N_1.format(0)} has loss.n = 1.0, but its recipe has 16.0",
            f"{N_16.format(0)} has loss.n = 16.0, but its recipe has 1.0",
        ]
    )


def test_a_key_of_another_stage_belongs_to_the_run_that_this_one_comes_from(tmp_path):
    root = write_chains(tmp_path / "chains", ks=(1,), seeds=(0,))
    name = "rlvr_k-1_seed-0"
    edit(root, name, values={"sft.loss.n": 1.0, "rlvr.policy.k": 1})
    assert said(root) == []
    edit(root, name, values={"sft.loss.n": 16.0, "rlvr.policy.k": 1})
    expected = f"{name} has sft.loss.n = 16.0, but the recipe of sft_seed-0, which it comes from, has 1.0"
    assert said(root) == [expected]
    run = RunData.load(root / name)
    (alone,) = contradicted(SweepData.load(root), [run]).values()
    assert expected in alone, "the other run is read from beside it"
    shutil.rmtree(root / "sft_seed-0")
    assert said(root) == [], "what is gone says nothing"


def test_a_stage_that_was_named_by_a_value(tmp_path):
    """The recipe has the place of the run, the sweep the name of its stage."""
    root = write_chains(tmp_path / "chains", ks=(1,), seeds=(0,))
    name = "rlvr_k-1_seed-0"
    edit(root, name, values={"rlvr.model.init": "sft@last"})
    assert said(root) == []
    for wrong in ("sft", "rlvr@last", "org/model"):
        edit(root, name, values={"rlvr.model.init": wrong})
        (text,) = said(root)
        assert text == f"{name} has rlvr.model.init = {wrong}, but its recipe has runs/chains/sft_seed-0@last"


@pytest.mark.parametrize(
    ("key", "asked", "doubted"),
    [
        ("loss", {"name": "confidence_limited"}, False),
        ("loss", {"name": "cross_entropy"}, True),
        ("evaluate.tasks.0.k", [1, 16], False),
        ("evaluate.tasks.0.k", [1, 8], True),
        ("evaluate.tasks", [{"name": "multiplication"}], False),
        ("evaluate.tasks.1.name", "multiplication", True),
        ("loss.n", "${oc.env:N}", False),
        ("loss.n", None, True),
        ("", 1, True),
    ],
)
def test_values_of_every_kind(small, key, asked, doubted):
    """Of a section the keys that were given; an expression is not compared."""
    edit(small, N_1.format(0), values={key: asked})
    assert len(said(small)) == doubted


def test_a_run_without_a_recipe_is_left_alone(small):
    edit(small, N_1.format(0), values={"loss.n": 7})
    (small / N_1.format(0) / "recipe.yaml").unlink()
    assert said(small) == []


def test_many_are_counted(tmp_path):
    root = write_sweep(tmp_path / "many", (1.0,), (0.001,), range(MOST_NAMED + 2), 6, (600,), (1,))
    for seed in range(MOST_NAMED + 2):
        recipe(root / N_1.format(seed), loss={"name": "confidence_limited", "n": 2.0})
    found = strangers(load_runs([root])[0])
    assert len(found) == MOST_NAMED + 1 and found[-1] == "2 more runs contradict their sweep.json."


def test_stages_outside_of_the_folder_are_said(small):
    stages = json.loads((small / "pipeline.json").read_text())["stages"]
    change(small / "pipeline.json", stages=[*stages, {"name": ".."}])
    runs, pipeline = load_runs([small])
    out = io.StringIO()
    show(small, Console(file=out, width=300, color_system=None))
    for text in (Parsed(render(runs, pipeline)).text, out.getvalue(), markdown_report(runs, pipeline)):
        assert "pipeline.json: stages[4] names '..', which is not a folder in" in text
