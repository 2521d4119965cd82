"""Runs of a sweep are those with the hash that sweep.json gives them: edited files, runs that were moved."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from rich.console import Console

from posttrain.report.page import load_runs, markdown_report, render
from posttrain.report.side_tables import group_tables
from posttrain.report.sides import side_groups, sides
from posttrain.report.swept import MOST_NAMED, cells, load_sweep, progress, run_names, strangers
from posttrain.report.terminal import show
from posttrain.rundir.sweeps import sealed
from tests.report.swept import change, write_chains, write_sweep
from tests.report.test_page import Parsed


@pytest.fixture
def small(tmp_path):
    """N = 16 and 1, two seeds."""
    return write_sweep(tmp_path / "small", (16.0, 1.0), (0.001,), (0, 1), 6, (0, 600), (1, 16))


def swap(root, one: str, two: str) -> None:
    for name, to in ((one, "kept"), (two, one), ("kept", two)):
        (root / name).rename(root / to)


def said(root) -> list[str]:
    """The sentences, each without the place of the file."""
    found = strangers(load_runs([root])[0])
    start, end = f"{root / 'sweep.json'}: ", "; it is not shown as a run of the sweep."
    assert all(text.startswith(start) and text.endswith(end) for text in found)
    return sorted(text.removeprefix(start).removesuffix(end) for text in found)


def named(root) -> list[str]:
    """The runs that have the name of their values."""
    runs = load_runs([root])[0]
    found = cells(runs)
    return sorted(run.path.name for run in runs if id(run) in found)


def forms(root) -> list[str]:
    """Page, Markdown and terminal as plain text."""
    runs, pipeline = load_runs([root])
    out = io.StringIO()
    show(root, Console(file=out, width=300, color_system=None))
    markdown = markdown_report(runs, pipeline).replace("\\", "")
    return [Parsed(render(runs, pipeline)).text, markdown, out.getvalue()]


N_1, N_16 = "n-1_learning_rate-0.001_seed-{}", "n-16_learning_rate-0.001_seed-{}"


def test_what_is_right_is_not_doubted(small, tmp_path):
    for root, count in ((small, 4), (write_chains(tmp_path / "chains"), 6)):
        assert said(root) == [] and len(named(root)) == count


@pytest.mark.parametrize(
    ("one", "two"),
    [(N_1.format(1), N_16.format(1)), (N_1.format(0), N_1.format(1))],
    ids=["values", "seeds"],
)
def test_folders_that_were_swapped(small, one, two):
    """Both leave the sweep, are called by their recipes, and every form of the report says so and counts
    them."""
    swap(small, one, two)
    assert said(small) == sorted([f"{one} is {two} by its run.json", f"{two} is {one} by its run.json"])
    runs, pipeline = load_runs([small])
    assert {*named(small)} == {run.path.name for run in runs} - {one, two}
    labels = {run.path.name: side.label for side in sides(runs) for run in side.runs}
    assert all(labels[name].startswith("n ") == (name not in (one, two)) for name in labels)
    data, _ = load_sweep(pipeline)
    count = "4 runs, all finished, 2 of them not sorted by their values."
    assert progress(pipeline, data) == ([count], [])
    for text in forms(small):
        assert all(sentence in text for sentence in [count, *strangers(runs)])
    ((_, table),) = group_tables(side_groups(runs))
    rows = [row.names for row in table.rows]
    assert ["–"] not in rows and len({*map(tuple, rows)}) == len(rows) and len(runs) == 4
    one_run = io.StringIO()
    show(small / one, Console(file=one_run, width=300, color_system=None))
    assert f"{one} is {two} by its run.json" in one_run.getvalue()


def test_folders_of_two_stages_that_were_swapped(tmp_path):
    """Also where both have one recipe, but for the name."""
    root = write_chains(tmp_path / "chains")
    change(root / "rlvr_k-1_seed-0" / "run.json", recipe_hash="0" * 16)
    change(root / "sft_seed-0" / "run.json", recipe_hash="0" * 16)
    runs = [run | {"recipe_hash": "0" * 16} for run in json.loads((root / "sweep.json").read_text())["runs"]]
    reseal(root, runs)
    swap(root, "rlvr_k-1_seed-0", "sft_seed-0")
    assert "sft_seed-0 is rlvr_k-1_seed-0 by its run.json" in said(root)
    assert not {"sft_seed-0", "rlvr_k-1_seed-0"} & {*named(root)}


def reseal(root, runs) -> None:
    facts = json.loads((root / "sweep.json").read_text()) | {"runs": runs}
    (root / "sweep.json").write_text(json.dumps(sealed(facts)))


def test_a_copied_run_of_another_sweep(small, tmp_path):
    """It has the name, but another recipe, here another rate."""
    other = write_sweep(tmp_path / "other", (1.0,), (0.001,), (0,), 6, (0, 600), (1, 16))
    change(other / N_1.format(0) / "run.json", recipe_hash="0123456789abcdef")
    has = json.loads((small / N_1.format(0) / "run.json").read_text())["recipe_hash"]
    shutil.rmtree(small / N_1.format(0))
    shutil.copytree(other / N_1.format(0), small / N_1.format(0))
    assert said(small) == [
        f"{N_1.format(0)} has another recipe than the sweep gave it (recipe_hash 0123456789abcdef, not {has})"
    ]
    assert N_1.format(0) not in named(small) and len(named(small)) == 3


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("run.json", None, "has no run.json with its name and recipe_hash"),
        ("run.json", '{"name": "NAME"}', "has no run.json with its name and recipe_hash"),
        ("run.json", '{"name": ["a"], "recipe_hash": 3}', "has no run.json with its name and recipe_hash"),
        ("recipe.yaml", None, "has no recipe.yaml that can be read"),
    ],
)
def test_a_run_that_cannot_be_told_is_doubted(small, file, content, why):
    path = small / N_1.format(0) / file
    path.unlink() if content is None else path.write_text(content.replace("NAME", N_1.format(0)))
    assert said(small) == [f"{N_1.format(0)} {why}"] and len(named(small)) == 3


@pytest.mark.parametrize("what", ["values", "seeds", "a value", "no digest", "a digest", "nothing"])
def test_a_changed_file_names_no_run(small, what):
    """Of its own content alone: the runs are right."""
    path = small / "sweep.json"
    facts = json.loads(path.read_text())
    first, *_, last = facts["runs"]
    if what in ("values", "seeds"):
        key = what.removesuffix("seeds") or "seed"
        first[key], last[key] = last[key], first[key]
    elif what == "a value":
        first["values"]["loss.n"] = 17.0
    elif what == "no digest":
        del facts["digest"]
    elif what == "a digest":
        facts["digest"] = "0" * 32
    else:
        facts = {}
    path.write_text(json.dumps(facts))
    assert named(small) == [] and said(small) == []
    sentence = (
        "sweep.json: was changed since it was written (its digest is not that of its content). The runs are"
        " not sorted by their values."
    )
    assert load_sweep(load_runs([small])[1]) == (None, [sentence])
    for text in forms(small):
        assert text.count(sentence) == 1 and "(n 1, seed 0)" not in text
    runs = load_runs([small])[0]
    assert run_names(runs)[0] != f"{runs[0].path.name} (n 16, seed 0)"


def test_a_file_in_another_layout_is_the_same(small):
    path = small / "sweep.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(facts.items())), indent=4))
    assert len(named(small)) == 4


def test_a_doubted_run_counts_as_what_it_is(small):
    """Unfinished, failed: under the name of its folder."""
    swap(small, N_1.format(0), N_1.format(1))
    change(small / N_1.format(0) / "run.json", status="failed", error="disk full")
    pipeline = load_runs([small])[1]
    told, failures = progress(pipeline, load_sweep(pipeline)[0])
    assert told == ["3 of 4 runs are finished; 1 failed; 2 of them not sorted by their values."]
    assert failures == [f"{N_1.format(0)} failed: disk full."]


def test_many_are_counted(tmp_path):
    root = write_sweep(tmp_path / "many", (1.0,), (0.001,), range(MOST_NAMED + 2), 6, (600,), (1,))
    for seed in range(MOST_NAMED + 2):
        change(root / N_1.format(seed) / "run.json", recipe_hash="0" * 16)
    found = strangers(load_runs([root])[0])
    assert len(found) == MOST_NAMED + 1 and found[-1] == "2 more runs are not what sweep.json lists."


def test_stages_outside_of_the_folder_are_said(small):
    stages = json.loads((small / "pipeline.json").read_text())["stages"]
    change(small / "pipeline.json", stages=[*stages, {"name": ".."}])
    for text in forms(small):
        assert "pipeline.json: stages[4] names '..', which is not a folder in" in text


def test_odd_names_of_stages_have_a_page(small):
    names = [None, 3, ["a"], {"a": [1]}, "x" * 5000, "\x1b[31m", "<script>"]
    stages = json.loads((small / "pipeline.json").read_text())["stages"]
    odd = [{"name": name, "run": name, "status": ["odd"], "seconds": "x", "error": 3} for name in names]
    for sweep in (True, False):
        change(small / "pipeline.json", stages=[*stages, *odd])
        for text in forms(small):
            for said in (
                "stages[4] is not a stage with a name",
                "stages[5] names 3, which",
                "names ['a'], which",
            ):
                assert said in text, sweep
        (small / "sweep.json").unlink(missing_ok=True)
