"""A run at its best, and what was measured besides: never mixed with the run's own scores."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from posttrain.commands.evaluate import _by_temperature
from posttrain.report.card import model_card
from posttrain.report.control_plots import MOST_PAIRS, by_temperature, control_parts
from posttrain.report.controls import envelope, last_by_temperature, pairs
from posttrain.report.findings import findings
from posttrain.report.markdown import markdown_report
from posttrain.report.measured import beside, controls, measured, others, renderings
from posttrain.report.page import render
from posttrain.report.score_tables import MOST_TABLES, score_tables, temperature_table
from posttrain.report.scorecard import scorecard_markdown
from posttrain.report.terminal import show
from posttrain.rundir.reading import RunData
from posttrain.types import Score

CE, CL = {"name": "cross_entropy", "n": 1.0}, {"name": "confidence_limited", "n": 256.0}
HOT = {"temperature": 2.0}


def made(curves: dict, loss: dict = CE, differs: dict | None = None, name: str = "r", **task) -> RunData:
    """`curves`: settings hash -> step -> k -> pass@k of task t; `differs`: hash -> what differs."""
    scores = [
        Score(f"step-{step:06d}", step, "t", f"pass@{k}", v, 10, v - 0.01, v + 0.01, settings, "", how)
        for settings, table in curves.items()
        for how in [(differs or {}).get(settings, {})]
        for step, points in table.items()
        for k, v in points.items()
    ]
    recipe = {"loss": loss, "evaluate": {"tasks": [{"name": "t", **task}]}}
    return RunData(Path(name), name, scores=scores, recipe=recipe)


def two(loss: dict = CE, name: str = "r") -> RunData:
    """Two checkpoints at temperatures 1 (own) and 2."""
    own = {10: {1: 0.1, 4: 0.6, 16: 0.7}, 20: {1: 0.2, 4: 0.5, 16: 0.7}}
    hot = {10: {1: 0.05, 4: 0.8, 16: 0.7}, 20: {1: 0.2, 4: 0.7, 16: 0.6}}
    return made({"a-x": own, "b-x": hot}, loss, {"b-x": HOT}, name)


def test_the_envelope_by_hand():
    """N = 4: .5 at the end; hot .7; step 10 .6; step 10 and hot .8. Ties (N = 1, N = 16) stay where the run
    is."""
    own, hot, end = "a-x", "b-x", "step-000020"
    expected = {"temperature": (0.7, end, hot), "checkpoint": (0.6, "step-000010", own)}
    expected["both"] = (0.8, "step-000010", hot)
    for over, best in expected.items():
        found = envelope(two(), "t", over)
        assert found == {1: (0.2, end, own), 4: best, 16: (0.7, end, own)}, over


values = st.floats(0, 1, allow_nan=False)
tables = st.dictionaries(
    st.integers(0, 5), st.fixed_dictionaries(dict.fromkeys((1, 2, 8), values)), min_size=1, max_size=4
)


@given(tables, tables, tables)
def test_more_freedom_is_never_worse(own, warm, hot):
    run = made({"a": own, "b": warm, "c": hot}, differs={"b": {"temperature": 0.5}, "c": HOT})
    plain = own[max(own)]
    found = {over: envelope(run, "t", over) for over in ("temperature", "checkpoint", "both")}
    for k in plain:
        at, when, both = (found[over][k].value for over in ("temperature", "checkpoint", "both"))
        assert both >= max(at, when) and min(at, when) >= plain[k]
        best = found["both"][k]
        assert run.rows("t", best.settings)[best.checkpoint][f"pass@{k}"].value == best.value
        assert found["temperature"][k].checkpoint == f"step-{max(own):06d}"
        assert found["checkpoint"][k].settings == "a"


def test_without_scores_or_temperatures():
    alone = made({"a": {1: {1: 0.1}}}, temperature=0.7)
    assert envelope(alone, "t", "temperature") == {1: (0.1, "step-000001", "a")}
    assert [*last_by_temperature(alone, "t")] == [0.7]
    assert envelope(alone, "other", "both") == {} and last_by_temperature(alone, "other") == {}
    assert pairs([alone, two(CL)], "t") == [], "cross-entropy has no control"
    ce, cl, again = two(), two(CL), two()
    found = [(id(a), id(b)) for a, b in pairs([cl, ce, again], "t")]
    assert found == [(id(ce), id(cl)), (id(again), id(cl))], "not cross-entropy with itself"
    one = two(CL | {"n": 1.0})
    assert [id(a) for a, _ in pairs([cl, one], "t")] == [id(one)], "N = 1 is cross-entropy"
    assert pairs([one, ce], "t") == []


def test_a_control_that_is_measured_in_part_only():
    """Hot at one of two checkpoints: either control is said, both together are not. Of the scores, which are
    +-.01 without samples: +-.0141."""
    own, hot = {10: {1: 0.1, 256: 0.6}, 20: {1: 0.2, 256: 0.5}}, {20: {1: 0.2, 256: 0.55}}
    cl = made({"a-x": {20: {1: 0.1, 256: 0.9}}}, CL, name="cl")
    ce = made({"a-x": own, "b-x": hot}, differs={"b-x": HOT})
    assert findings([ce, cl])[-1] == (
        "Controls at pass@256 (Confidence-limited N = 256 ends at .900): Cross-entropy at its best"
        " temperature (T = 2) reaches .550, .350 [.336, .364] lower; at its best checkpoint (step 10) .600,"
        " .300 [.286, .314] lower; both together are not measured at every checkpoint."
    )
    whole = made({"a-x": own, "b-x": hot | {10: {1: 0.1, 256: 0.9}}}, differs={"b-x": HOT})
    both = "at both (T = 2, step 10) .900, just as high [−.014, .014]."
    assert findings([whole, cl])[-1].endswith(both)


@pytest.mark.parametrize("odd", ["hot", None, [], {}, True, float("nan"), float("inf"), 10**400])
def test_a_damaged_temperature_is_no_control(odd):
    run = made({"a": {1: {1: 0.1}}, "b": {1: {1: 0.3}}}, differs={"b": {"temperature": odd}})
    assert controls(run, "t") == {} and temperature_table(run, "t", ["step-000001"]) is None
    assert list(others(run, "t")) == ["b"] and run.samples("step-000001", "t", "b") == []
    assert [t.rows[0][2][0].text for t in score_tables(run, "t")] == [".100", ".300"]
    assert "step 1" in beside(run, "t")[0] and "t, " in markdown_report([run])


def test_damaged_rows_are_read_or_named(tmp_path):
    row = Score("step-000001", 1, "t", "pass@1", 0.5, 4, settings="s").to_dict()
    rows = [row, row | {"settings": ["s"]}, row | {"checkpoint": None}, row | {"settings": "q", "differs": 3}]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = RunData.load(tmp_path)
    assert len(run.scores) == 2 and len(run.unread) == 2 and "must be texts" in run.unread[0]
    assert len(score_tables(run, "t")) == 2, "what differs is unknown, so it is not the run's own"


def test_a_control_has_the_run_s_own_template_and_the_most_checkpoints():
    one, both = {20: {1: 0.9}}, {10: {1: 0.2}, 20: {1: 0.2}}
    tables = {"a-x": both, "b-x": one, "d-y": both, "c-x": both}
    run = made(tables, differs=dict.fromkeys(("b-x", "c-x", "d-y"), HOT), temperature=0.5)
    assert controls(run, "t") == {0.5: "a-x", 2.0: "c-x"}
    assert others(run, "t") == {"b-x": "temperature 2.0 (b-x)", "d-y": "temperature 2.0 (d-y)"}
    assert len(beside(run, "t")) == 2 and "temperature 2.0 (step 20)" in beside(run, "t")[0]


def test_tables_by_temperature_by_hand():
    """Step 10 is the best of N = 16? .7 at both steps: the first of equals. Marks: hot wins N = 4 at both."""
    own, by = score_tables(two(), "t")
    assert own.title == "" and [row[1] for row in own.rows] == [10, 20]
    assert by.columns == ["temperature", "pass@1", "pass@4", "pass@16"] and by.title == "by temperature"
    texts = [(at, *(c.text + "*" * c.best for c in cells)) for _, at, cells in by.rows]
    assert texts == [
        (10, "1 (own)", ".100*", ".600", ".700"),
        (10, "2", ".050", ".800*", ".700"),
        (20, "1 (own)", ".200", ".500", ".700*"),
        (20, "2", ".200", ".700*", ".600"),
    ]
    assert by.best_of == "each column at a checkpoint" and not by.folded


def test_all_that_print_as_the_best_are_bold():
    """.2001 and .2004 both print .200: of neither is seen that it is worse. All alike have no best."""
    run = made({"a": {10: {1: 0.2001, 4: 0.3001}, 20: {1: 0.2004, 4: 0.3004}, 30: {1: 0.1, 4: 0.3}}})
    (table,) = score_tables(run, "t")
    assert [[c.best for c in cells] for *_, cells in table.rows] == [
        [True, False],
        [True, False],
        [False, False],
    ]


def test_the_rest_is_folded():
    table = {step: {1: step / 100} for step in (10, 20, 30)}
    found = score_tables(made({"a": table, "b": table}, differs={"b": HOT}), "t")
    assert [(t.title, t.folded, [row[1] for row in t.rows]) for t in found] == [
        ("", False, [10, 20, 30]),
        ("by temperature", False, [30, 30]),
        ("other checkpoints by temperature", True, [10, 10, 20, 20]),
    ]


def test_hundreds_of_settings(tmp_path):
    """Of 300 a few are shown, the rest folded; each once, under a title of its own, which is text."""
    table = {1: {1: 0.1, 2: 0.2}}
    hashes = [f"s{i}" for i in range(300)]
    how = {s: {"limit": i // 2, "prompt": "<b>|`*\n\x1b[2J" * 90} for i, s in enumerate(hashes)}
    run = made({"a": table} | dict.fromkeys(hashes, table), differs=how)
    found = score_tables(run, "t")
    assert len({t.title for t in found}) == 301 and sum(t.folded for t in found) == 300 - MOST_TABLES
    assert all(len(t.title) < 160 and "\n" not in t.title for t in found)
    (told,) = beside(run, "t")
    assert (
        told.startswith("t was also scored in 300 other ways (limit 0, prompt <b>")
        and "(s2); and 297" in told
    )
    assert "(s3)" not in told and told.endswith("; and 297 more), which are not compared with the rest.")
    text = render([run])
    assert text.count("<details") == 300 - MOST_TABLES and "<b>|" not in text
    assert "\x1b" not in text + markdown_report([run]) and "<b>" not in markdown_report([run])
    hot = {f"t{i}": {"temperature": 1 + i / 100} for i in range(1, 300)}
    run = made({"a": table} | dict.fromkeys(hot, table), differs=hot)
    by = score_tables(run, "t")[1]
    assert len(by.rows) == 300 and by.folded
    svg = by_temperature("x", last_by_temperature(run, "t"), 1.0, 0, [1, 2])
    assert svg.count(">T ") <= 9 and ">T 1<" in svg and ">T 3.99<" in svg
    assert "300 temperatures from 1 to 3.99" in render([run])


def test_runs_that_measured_other_problems_share_nothing():
    """Three runs: two measured the same; the third has a section of its own, and no picture compares it."""
    curve = {10: {1: 0.1, 4: 0.2}, 20: {1: 0.2, 4: 0.3}}
    a, b = made({"p-x": curve}, name="a", limit=5), made({"p-y": curve}, CL, name="b", limit=5)
    c = made({"q-x": curve}, CL | {"n": 2.0}, name="c", limit=9)
    assert [(m.title, [r.name for r in m.runs]) for m in measured([a, b, c])] == [
        ("t (limit 5)", ["a", "b"]),
        ("t (limit 9)", ["c"]),
    ]
    page = render([a, b, c])
    assert re.findall(r"<h2>(t.*?)</h2>", page) == ["t (limit 5)", "t (limit 9)"]
    assert page.count("Last checkpoints compared") == 1
    compared = re.search(r'aria-label="(pass@N against N, last checkpoints of [^"]*)"', page)[1]
    assert "N = 256" in compared and "N = 2," not in compared and not compared.endswith("N = 2")
    assert render([a, c]).count("Last checkpoints compared") == 0
    text = markdown_report([a, b, c])
    assert text.index("## t (limit 5)") < text.index("### Confidence-limited N = 256")
    assert text.index("## t (limit 9)") < text.index("### Confidence-limited N = 2\n")


def test_another_template_or_dtype_is_said():
    curve = {10: {1: 0.1}}
    runs = [made({f"p-{half}": curve}, name=f"r{i}") for i, half in enumerate("xyx")]
    assert renderings(runs) == [
        "t: the runs were not all scored with the same chat template and dtype of the weights"
        " (r0, r2 against r1), and a part of their difference can come from that."
    ]
    assert renderings(runs[::2]) == [] and renderings([]) == []
    assert renderings([runs[0], made({"q-y": curve}, name="z")]) == [], "they are not compared at all"


def test_what_the_page_draws():
    """A panel for each run with temperatures; then three for the pair."""
    ce, cl = two(), two(CL, "cl")
    parts = control_parts({0: "A", 1: "B <i>"}, [ce, cl], "t", "t0")
    assert [p["title"] for p in parts] == [
        "By temperature",
        "Cross-entropy against its controls: A and B <i>",
    ]
    assert [f["run"] for f in parts[0]["figures"]] == [0, 1]
    assert [(f["title"], f["note"]) for f in parts[1]["figures"]] == [
        ("Best temperature", "T 1, 2"),
        ("Best checkpoint", "2 checkpoints"),
        ("Best of both", "T 1, 2 × 2 checkpoints"),
    ]
    assert "flatters" in parts[1]["note"] and "<i>" not in str(parts[1]["figures"][0]["svg"])
    assert control_parts({1: "B"}, [ce, cl], "t", "t0")[0]["figures"][0]["run"] == 1


def test_unequal_freedom_is_said():
    """The other run at one temperature and one checkpoint; hot measured for one of two checkpoints."""
    other = made({"a-x": {20: {1: 0.1, 4: 0.9}}}, CL, name="cl")
    own = {10: {1: 0.1, 4: 0.6}, 20: {1: 0.2, 4: 0.5}}
    ce = made({"a-x": own, "b-x": {20: {1: 0.2, 4: 0.7}}}, differs={"b-x": HOT})
    notes = [f["note"] for f in control_parts({0: "A", 1: "B"}, [ce, other], "t", "p")[1]["figures"]]
    assert notes == [
        "A: T 1, 2; B: as it is",
        "A: 2 checkpoints; B: as it is",
        "A: T 1, 2 × 2 checkpoints, 3 of them scored; B: as it is",
    ]


def test_the_options_are_the_grid_without_the_start():
    """Two checkpoints after the start, at two temperatures. Step 5 was scored hot alone, step 20 not: of the
    grid of four, three are there, and a hot step 5 is no choice."""
    own = {0: {1: 0.9, 4: 0.9}, 10: {1: 0.1, 4: 0.6}, 20: {1: 0.2, 4: 0.5}}
    hot = {0: {1: 0.9, 4: 0.9}, 5: {1: 0.9, 4: 0.9}, 20: {1: 0.2, 4: 0.7}}
    ce = made({"a-x": own, "b-x": hot}, differs={"b-x": HOT})
    figures = control_parts({0: "A", 1: "B"}, [ce, two(CL, "cl")], "t", "p")[1]["figures"]
    assert [f["note"] for f in figures] == [
        "T 1, 2",
        "2 checkpoints",
        "A: T 1, 2 × 2 checkpoints, 3 of them scored; B: T 1, 2 × 2 checkpoints",
    ]
    assert envelope(ce, "t", "both")[1] == (0.2, "step-000020", "a-x")


def test_no_control_no_part_and_many_pairs():
    assert control_parts({0: "A"}, [made({"a": {1: {1: 0.1, 2: 0.2}}})], "t", "p") == []
    runs = [two(), *(two(CL, f"cl{i}") for i in range(MOST_PAIRS + 2))]
    parts = control_parts({i: f"R{i}" for i in range(len(runs))}, runs, "t", "p")
    assert len(parts) == 1 + MOST_PAIRS and "Not drawn: 2 more pairs of runs." in parts[-1]["note"]
    assert sum("flatters" in part["note"] for part in parts) == 1


@pytest.mark.slow
def test_the_page_with_controls(controlled):
    runs = [RunData.load(path) for path in controlled]
    page = render(runs)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and page.count("<svg") == 13 + 5
    assert "multiplication, other checkpoints by temperature</summary>" in page
    best = envelope(runs[0], "multiplication", "both")
    last = last_by_temperature(runs[0], "multiplication")
    assert best[256].value > last[1.0][256].value + 0.3, "cross-entropy's controls are strong here"


def test_scorecard_card_and_terminal(controlled, tmp_path):
    card = scorecard_markdown(controlled[0])
    assert "\n### multiplication, by temperature (60 problems)\n\n| step | temperature | pass@1 |" in card
    assert "| 1,800 | 1 (own) | **.163**" in card and "other checkpoints by temperature" in card
    run = RunData.load(controlled[0])
    text = model_card(run, "step-001800").split("## Evaluation")[1]
    assert "### multiplication, by temperature" in text and text.count("| 1,800 |") == 5
    assert text.index("| multiplication | pass@1 |") < text.index("### multiplication")
    console = Console(width=200, file=(tmp_path / "out").open("w"), color_system=None)
    show(controlled[0], console)
    console.file.close()
    printed = (tmp_path / "out").read_text()
    assert "multiplication, by temperature" in printed and printed.count("1 (own)") == 2
    assert "1 more table of multiplication: " in printed and "other checkpoints" not in printed


def test_the_card_names_other_ways(tmp_path):
    tables = {f"s{i}": {1: {1: i / 10}} for i in range(MOST_TABLES + 3)}
    differs = {f"s{i}": {"limit": i} for i in range(1, MOST_TABLES + 3)}
    card = model_card(made(tables, differs=differs), "step-000001")
    assert "### t, limit 1\n\n| task | metric |" in card and f"### t, limit {MOST_TABLES + 1}" not in card
    assert f"Measured in 2 other ways, too (t, limit {MOST_TABLES + 1}; t, limit {MOST_TABLES + 2}): " in card
    assert "eval_results" not in card or "limit" not in card.split("---")[1], "the hub reads the own scores"


def test_eval_prints_one_table_of_temperatures(tmp_path):
    def rows(v):
        return [{"metric": "pass@1", "value": v}, {"metric": "pass@4", "value": 2 * v}, {"metric": "nll"}]

    rows_of = [(1.0, rows(0.1)[:2]), (3.0, rows(0.2)[:1]), (0.5, rows(0.3)[:2])]
    console = Console(width=80, file=(tmp_path / "out").open("w"), color_system=None)
    console.print(_by_temperature(rows_of))
    console.file.close()
    lines = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    head = ["temperature", "pass@1", "pass@4"]
    assert lines == [head, ["0.5", ".300", ".600"], ["1", ".100", ".200"], ["3", ".200", "–"]]


def test_json_has_settings_and_differences(controlled, tmp_path):
    console = Console(width=80, file=(tmp_path / "out").open("w"), color_system=None)
    show(controlled[0], console, json=True)
    console.file.close()
    scores = json.loads((tmp_path / "out").read_text())["scores"]
    assert {json.dumps(s["differs"]) for s in scores} >= {"{}", '{"temperature": 3.0}'}
    assert all(s["settings"] for s in scores)
