"""Page, Markdown and terminal of a sweep: sides together, runs on request, whatever is missing or damaged."""

from __future__ import annotations

import io
import json
import re
import shutil
from statistics import mean, stdev

import pytest
from rich.console import Console

from posttrain.evaluate.seeds import over_seeds
from posttrain.report import sweep_page
from posttrain.report.differences import Place, values
from posttrain.report.findings import each, findings, headlines
from posttrain.report.numbers import curves
from posttrain.report.page import load_runs, markdown_report, render, write_report
from posttrain.report.side_plots import PROBLEMS, RANGE, SEEDS, band, choose, short_names
from posttrain.report.side_tables import group_tables
from posttrain.report.sides import side_difference, side_groups
from posttrain.report.sweep_page import averaged, sides_view
from posttrain.report.swept import cells_of, load_sweep, progress, titles_of
from posttrain.report.terminal import show
from posttrain.rundir.reading import PipelineData
from posttrain.rundir.sweeps import SweepData, SweptRun, sealed
from tests.report.conftest import add_controls
from tests.report.swept import change, write_chains, write_sweep
from tests.report.test_page import Parsed

LAST = "step-000600"
RUN = "n-1_learning_rate-0.001_seed-0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three N, two rates, three seeds."""
    return write_sweep(tmp_path_factory.mktemp("runs") / "grid")


@pytest.fixture(scope="module")
def page(whole):
    return write_report([whole])


@pytest.fixture
def small(tmp_path):
    """Two N, a rate, three seeds: six runs."""
    return write_sweep(tmp_path / "small", ns=(16.0, 1.0), rates=(0.001,), problems=12)


def shown(path, width=130) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(path, console)
    return console.file.getvalue()


def test_rows_are_the_sweeps_values_in_their_order(whole, small):
    ((title, table),) = group_tables(side_groups(load_runs([whole])[0]))
    assert (title, table.heads) == ("multiplication", ["n", "learning_rate"])
    assert [row.names for row in table.rows] == [
        [n, rate] for n in ("1", "16", "256") for rate in ("0.0003", "0.001")
    ]
    assert {(row.seeds, row.whole, row.step) for row in table.rows} == {("3", True, 600)}
    assert "chosen among 6 on the problems shown, which flatters it" in table.note
    runs = load_runs([small])[0]
    ((_, table),) = group_tables(side_groups(runs[::-1]))
    assert [row.names[0] for row in table.rows] == ["16", "1"], "as the sweep lists them, not by size"
    each = [curves(run, "multiplication")[LAST][1].value for run in runs if "n-16_" in run.name]
    assert table.rows[0].cells[0].text == f"{mean(each):.3f}"[1:]
    assert table.rows[0].cells[0].spread == f"± {stdev(each):.3f}".replace("0.", ".")


def test_names_of_keys_and_cells(tmp_path):
    assert titles_of(["sft.loss.name", "sft.loss.n"]) == {"sft.loss.name": "loss", "sft.loss.n": "n"}
    assert titles_of(["a.name", "a"]) == {"a.name": "name", "a": "a"}, "else two would be called a"
    runs = [
        SweptRun("a", "sft", {}, 0),
        SweptRun("b", "rlvr", {"rlvr.policy.k": 8.0}, 0),
        SweptRun("c", "rlvr", {"rlvr.policy.k": 8.0}, 1),
        SweptRun("d", "rlvr", {"rlvr.policy.k": 9.0, "x.y": None}, 1),
    ]
    found = cells_of(SweepData(tmp_path, "s", "r", {"rlvr.policy.k": [8.0]}, runs=runs))
    assert [found[c].name for c in "abcd"] == ["sft", "rlvr, k 8", "rlvr, k 8", "rlvr, k 9, no y"]
    assert [found[c].asked for c in "abcd"] == [1, 2, 2, 1]
    assert sorted("dcba", key=lambda c: (found[c].order, c)) == ["a", "b", "c", "d"]


@pytest.mark.slow
def test_page_shows_sides_and_folds_runs(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 3_000_000
    opened = Parsed(re.sub(r"<details>.*?</details>", "", text, flags=re.S)).text
    assert "Last checkpoints: pass@1 is highest for n 1, learning_rate 0.001 (3 seeds)" in opened
    assert "16 · 0.001" in opened and "n 16, learning_rate 0.001" in opened
    assert "mean; band: 95 % interval over problems and seeds" in opened
    assert "By checkpoint" not in opened and "its best (pass@1" not in opened
    whole_text = Parsed(text).text
    assert whole_text.count("By checkpoint") == 18 and "Each recipe by itself: 6 sentences" in whole_text
    ids = [v for _, k, v in Parsed(text).attributes if k == "id"]
    assert len(ids) == len(set(ids)), "pictures do not share ids"


def test_headlines_and_each_are_the_findings(whole, small):
    for root, count in ((whole, 6), (small, 2)):
        runs = load_runs([root])[0]
        assert len(each(runs)) == count and sorted(headlines(runs) + each(runs)) == sorted(findings(runs))
    text = Parsed(render(*load_runs([small]))).text
    assert all(line[-30:] in text for line in findings(runs)) and "Each recipe by itself" not in text


def test_bands(small, tmp_path):
    groups = side_groups(load_runs([small])[0])
    side = groups[0].sides[0]
    found = band(side, "multiplication")
    (behind,) = values("multiplication", 16, [Place(run, LAST) for run in side.runs])
    expected, at = over_seeds(behind.table, behind.groups), found.ks.index(16)
    assert (found.kind, found.low[at], found.high[at]) == (SEEDS, expected.low, expected.high)
    one = band(groups[0].sides[0].__class__("one", side.runs[:1]), "multiplication")
    score = curves(side.runs[0], "multiplication")[LAST][16]
    assert (one.kind, one.low[at], one.high[at]) == (PROBLEMS, score.low, score.high)
    shutil.rmtree(side.runs[1].path / "samples")
    side = side_groups(load_runs([small])[0])[0].sides[0]
    each = [curves(run, "multiplication")[LAST][16].value for run in side.runs]
    found = band(side, "multiplication")
    assert (found.kind, found.low[at], found.high[at]) == (RANGE, min(each), max(each))
    text = Parsed(render(*load_runs([small]))).text
    assert "band: min to max of 16, 95 % interval over problems and seeds of 1" in text


def test_six_of_many_are_drawn_the_best_at_both_ends(tmp_path):
    root = write_sweep(tmp_path / "many", (1.0, 4.0, 16.0, 256.0), (0.0001, 0.001), (0,), 12, (0, 600))
    (group,) = side_groups(load_runs([root])[0])
    drawn, note = choose(group.sides, "multiplication")
    end = {side.label: curves(side.runs[0], "multiplication")[LAST] for side in group.sides}
    assert len(group.sides) == 8 and len(drawn) == 6
    assert [s for s in group.sides if s in drawn] == drawn, "in the order of the table"
    for k in (1, 256):
        ranked = sorted(end, key=lambda name: -end[name][k].value)
        assert set(ranked[:3]) <= {side.label for side in drawn}
    left = [side.label for side in group.sides if side not in drawn]
    assert note == (
        f"Drawn: 6 of 8, the best at pass@256 and pass@1 of multiplication. Not drawn: {left[0]}; {left[1]}."
    )
    assert note in Parsed(render(*load_runs([root]))).text
    assert choose(drawn, "multiplication") == (drawn, "")
    assert short_names(group, drawn[:1]) == {
        drawn[0].label: drawn[0].label.replace("n ", "").replace(", learning_rate", " ·")
    }


def test_means_over_seeds_of_training(small):
    side = side_groups(load_runs([small])[0])[0].sides[0]
    rows = [run.metrics["train"] for run in side.runs]
    del rows[1][3]
    rows[2][5].pop("loss")
    found = averaged(side).metrics["train"]
    assert [row["step"] for row in found] == [row["step"] for row in rows[1]]
    assert found[0]["loss"] == pytest.approx(mean(r[0]["loss"] for r in rows))
    assert "loss" not in found[4] and "entropy" in found[4]


def test_differences_of_recipes_leave_out_seeds(whole):
    groups = side_groups(load_runs([whole])[0])
    rows = dict(side_difference(groups[0].sides))
    assert [*rows] == ["loss.n", "train.learning_rate"] and rows["loss.n"][::2] == ["1.0", "16.0", "256.0"]


def unfinished(root):
    """Of small: n 1 has one run left, one of n 16 is still running, another one failed."""
    for seed in (1, 2):
        shutil.rmtree(root / f"n-1_learning_rate-0.001_seed-{seed}")
    change(root / "n-16_learning_rate-0.001_seed-1" / "run.json", status="running")
    early = root / "n-16_learning_rate-0.001_seed-1" / "scores.jsonl"
    early.write_text("".join(line + "\n" for line in early.read_text().splitlines() if "step-000300" in line))
    change(root / "n-16_learning_rate-0.001_seed-2" / "run.json", status="failed", error="disk full.")
    stages = json.loads((root / "pipeline.json").read_text())["stages"]
    for stage in stages:
        if stage["name"].startswith("n-1_") and not stage["name"].endswith("0"):
            stage["status"] = "waiting" if stage["name"].endswith("1") else "finished"
    change(root / "pipeline.json", stages=stages)
    return root


def test_a_sweep_in_progress(small):
    unfinished(small)
    runs, pipeline = load_runs([small])
    told, failures = progress(pipeline, load_sweep(pipeline)[0])
    assert told[0].startswith("2 of 6 runs are finished; ") and "1 failed" in told[0]
    assert {
        "Running: n-16_learning_rate-0.001_seed-1 (n 16, seed 1).",
        "Not started: n-1_learning_rate-0.001_seed-1 (n 1, seed 1).",
    } == set(told[1:])
    names = [f"n-{n}_learning_rate-0.001_seed-2 (n {n}, seed 2)" for n in (1, 16)]
    assert {*failures} == {
        f"{names[0]} is missing: pipeline.json calls it finished, but it has no directory.",
        f"{names[1]} failed: disk full.",
    }
    ((_, table),) = group_tables(side_groups(runs))
    assert [(row.names, row.seeds, row.whole, row.step) for row in table.rows] == [
        (["16"], "1 of 3", False, 600),
        (["1"], "1 of 3", False, 600),
    ], "not step 300, the last that the running seed shares"
    for text in (Parsed(render(runs, pipeline)).text, markdown_report(runs, pipeline), shown(small, 300)):
        assert told[0] in text and f"{names[1]} failed: disk full." in text and "1 of 3" in text
    assert not any("seeds" in line for line in findings(runs)), "one run a side speaks of runs"


def test_all_running_is_marked(small):
    for run in small.glob("n-*/run.json"):
        change(run, status="running")
    ((_, table),) = group_tables(side_groups(load_runs([small])[0]))
    assert {row.seeds for row in table.rows} == {"3, unfinished"} and "seeds in red" in table.note


def test_terminal_has_a_table_and_no_run_blocks(whole):
    text = shown(whole)
    assert "18 runs, all finished." in text and text.count("learning_rate-") == 1
    row = next(line for line in text.splitlines() if line.startswith("16") and "0.001" in line)
    assert row.split()[:4] == ["16", "0.001", "3", "600"] and row.count("±") == 5
    assert f"one run: posttrain show {whole}/n-1_learning_rate-0.0003_seed-0" in text.replace("\n", "")
    narrow = shown(whole, 80)
    head = next(line for line in narrow.splitlines() if "pass@1" in line)
    assert head.split() == ["n", "learning_rate", "seeds", "step", "pass@1", "pass@16", "pass@256"]


@pytest.mark.parametrize("width", [30, 80])
def test_a_narrow_terminal_cuts_nothing_off(small, width):
    """Lines wrap and cells fold; names of runs and the path that is to be typed stay whole."""
    unfinished(small)
    console = Console(file=io.StringIO(), width=width, color_system=None, soft_wrap=True)
    show(small, console)
    text = console.file.getvalue()
    assert "…" not in text and "n-16_learning_rate-0.001_seed-2 (n 16, seed 2) failed: disk full." in text
    assert f"one run: posttrain show {small}/n-16_learning_rate-0.001_seed-0\n" in text


def test_markdown_has_a_table_and_no_run_blocks(whole):
    text = markdown_report(*load_runs([whole]))
    assert "| n | learning\\_rate |" in text.replace("learning_rate", "learning\\_rate")
    assert "which flatters it" in text and "## Stage of" not in text and "### n-1" not in text


def test_cross_entropy_is_the_base_of_a_sweep(tmp_path):
    """Listed last, as N = 1; the sentences name it, and both sides."""
    root = write_sweep(tmp_path / "three", (16.0, 256.0, 1.0), (0.001,), (0, 1), 12, (0, 600), (1, 16))
    between = [text for text in findings(load_runs([root])[0]) if text.startswith("Last checkpoints")]
    start = "Last checkpoints, 2 seeds a side, "
    heads = [f"{start}n {n} against n 1 (cross-entropy)" for n in (16, 256)]
    assert [text.partition(": ")[0] for text in between] == heads


def test_a_sweep_of_a_pipeline_compares_within_a_stage(tmp_path, monkeypatch):
    root = write_chains(tmp_path / "runs" / "chains")
    runs, pipeline = load_runs([root])
    groups = side_groups(runs)
    assert [(g.stage, [(s.label, len(s.runs)) for s in g.sides]) for g in groups] == [
        ("sft", [("sft", 2)]),
        ("rlvr", [("rlvr, k 1", 2), ("rlvr, k 8", 2)]),
    ], "although the recipes name their start by a path that is not that of the folder"
    titles = {title: [row.names for row in table.rows] for title, table in group_tables(groups)}
    assert titles == {"multiplication, sft": [["sft"]], "multiplication, rlvr": [["1"], ["8"]]}
    text = Parsed(render(runs, pipeline)).text
    assert "multiplication, rlvr" in text and "best of each column in bold, chosen among 2" in text
    assert "multiplication, rlvr" in shown(root)


def test_many_sides_without_a_sweep(small):
    """Directories given one by one, as `posttrain report runs/a runs/b ...`."""
    paths = sorted(small.glob("n-*"))
    runs = load_runs(paths)[0]
    assert "n 16" in Parsed(render(runs)).text
    (small / "sweep.json").unlink()
    ((_, table),) = group_tables(side_groups(runs))
    assert table.heads == ["recipe"] and [r.names for r in table.rows] == [
        ["Confidence-limited N = 16"],
        ["Confidence-limited N = 1"],
    ]
    assert "By checkpoint" in Parsed(render(runs)).text
    one = [run for run in runs if run.name.endswith("0")]
    assert sides_view(one, ["a", "b"], None, [], False) is None, "two runs keep their page"


DAMAGE = {
    "no JSON": "{",
    "no mapping": "[1]",
    "nothing": "{}",
    "odd parts": '{"keys": 3, "runs": [7, {"run": "../x", "values": {}}], "seeds": {"a": 1}}',
    "odd values": '{"keys": {"": [1]}, "runs": [{"run": "RUN", "values": {"": [{}], "a..b": null}}]}',
    "no values": '{"keys": {"loss.n": []}, "runs": [{"run": "RUN", "values": {"loss.n": {"x": [1]}}}]}',
    "hostile": '{"keys": {"<script>": ["<b>|x\\u001b[31m"]}, "runs": [{"run": "RUN", "stage": "<i>", '
    '"values": {"<script>": "<b>|x\\u001b[31m"}, "seed": 1}, {"run": "gone", "values": {}}]}',
}


@pytest.mark.parametrize("sealing", [False, True], ids=["changed", "as written"])
@pytest.mark.parametrize("text", DAMAGE.values(), ids=DAMAGE)
def test_damaged_sweeps_have_a_page(tmp_path, text, sealing):
    small = write_sweep(tmp_path / "small", (1.0, 16.0), (0.001,), (0, 1), 6, (0, 600), (1, 16))
    text = text.replace("RUN", RUN)
    if sealing and text.startswith("{") and text != "{":
        facts = json.loads(text)
        for run in facts.get("runs", []):
            if isinstance(run, dict):  # else it would be left out for that
                run["recipe_hash"] = json.loads((small / RUN / "run.json").read_text())["recipe_hash"]
        text = json.dumps(sealed(facts))
    (small / "sweep.json").write_text(text)
    runs, pipeline = load_runs([small])
    page, words, lines = render(runs, pipeline), markdown_report(runs, pipeline), shown(small)
    assert not {"script", "b>"} & set(Parsed(page).tags) and "<script" not in page + words
    assert "\x1b" not in page + words + lines
    if text in ("{", "[1]"):
        assert all("sweep.json" in found for found in (Parsed(page).text, words, lines.replace("\n", "")))


def test_a_sweep_whose_runs_have_not_started(small):
    for path in small.glob("n-*"):
        shutil.rmtree(path)
    stages = json.loads((small / "pipeline.json").read_text())["stages"]
    change(small / "pipeline.json", stages=[s | {"status": "waiting"} for s in stages])
    data = PipelineData.load(small)
    for text in (render([], data), markdown_report([], data), shown(small)):
        assert "0 of 6 runs are finished; 6 not started." in text


def test_controls_are_those_of_the_first_seeds(tmp_path):
    """N = 1 of a sweep is cross-entropy, so it has pictures of its controls; that they are of one seed is
    said where there are several."""
    for seeds, said in (((0, 1), 1), ((0,), 0)):
        place = tmp_path / f"of-{len(seeds)}"
        root = write_sweep(place, (16.0, 1.0), (0.001,), seeds, 12, (0, 600), (1, 16))
        for path in root.glob("n-*"):
            add_controls(path, (2.0,))
        text = Parsed(render(*load_runs([root]))).text
        assert text.count("Cross-entropy against its controls: n-1_") == 1
        assert text.count("Of each side its first seed.") == said


def test_browser_renders_a_sweep(page, chromium, tmp_path):
    done = chromium(page, tmp_path / "profile")
    assert "<title>grid</title>" in done.stdout and "CONSOLE" not in done.stderr, done.stderr


def test_of_very_many_runs_none_is_shown_by_itself(small, monkeypatch):
    monkeypatch.setattr(sweep_page, "MOST_ALONE", 5)
    text = Parsed(render(*load_runs([small]))).text
    assert "By checkpoint" not in text and "6 runs are too many to show each by itself" in text
