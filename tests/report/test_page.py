"""The page: self-contained, inert whatever a run wrote, the same bytes twice, and a browser renders it."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import pytest
import yaml

from posttrain.errors import RequestError
from posttrain.report import plots, step_plots
from posttrain.report.numbers import crossovers, curves
from posttrain.report.page import highlight, load_runs, markdown_report, render, write_report
from posttrain.report.score_tables import score_table, shown_metrics
from posttrain.report.tables import dropped_rows, mixture_rows, recipe_difference, sample_groups
from posttrain.rundir.reading import RunData


class Parsed(HTMLParser):
    """Tags, attributes and text of a page, by the standard library's parser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(pipeline):
    return write_report([pipeline])


@pytest.mark.slow
def test_pipeline_page_stands_by_itself(page, pipeline):
    assert page == pipeline / "report.html"
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    found = Parsed(text)
    assert "script" not in found.tags and "link" not in found.tags and "img" not in found.tags
    links = [v for _, k, v in found.attributes if k in ("src", "href", "xlink:href", "data", "action")]
    assert links and all(v.startswith("#") for v in links), "only references inside the page"
    assert all(v.startswith("#") for v in re.findall(r"url\(([^)]*)\)", text))
    assert not re.search(r"https?:|//[a-z]|@import", text)
    ids = [v for _, k, v in found.attributes if k == "id"]
    assert len(ids) == len(set(ids)), "pictures do not share ids"
    assert {v[1:] for v in links} <= set(ids)
    for word in ("Cross-entropy", "cross at N ≈", "disk full", "overlong 7", "loss.segment", "step-000300"):
        assert word in found.text, word
    assert found.tags.count("svg") == 13, "3 curves, 2 over steps, 1 histogram, 6 training, 1 mixture"


@pytest.mark.slow
def test_same_numbers_same_bytes(page, pipeline):
    text = page.read_text(encoding="utf-8")
    assert render(*load_runs([pipeline])) == text
    assert write_report([pipeline], pipeline / "again" / "x.html").read_text(encoding="utf-8") == text


def test_browser_renders(page, chromium, tmp_path):
    done = chromium(page, tmp_path / "profile")
    assert "<title>quickstart</title>" in done.stdout
    assert done.stdout.count("<svg") == 13 and "From N = " in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr


def test_browser_sees_no_live_markup(tables, chromium, tmp_path):
    """The hostile run tries script elements, handlers, attribute breaks, SVG comments and math in labels."""
    path = write_report([tables["sampled"](tmp_path / "run", problems=6)])
    live = "<script>document.title = 'ran'</script>"
    done = chromium(path, tmp_path / "profile")
    assert "<script" not in done.stdout and "<img" not in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{live}</body>"))
    again = chromium(path, tmp_path / "profile")
    assert "<title>ran" not in again.stdout, "the page's own policy stops what escaping would miss"
    assert "CONSOLE" in again.stderr, "and this is how a console message looks"


def test_hostile_text_is_text(tables, tmp_path):
    run = RunData.load(tables["sampled"](tmp_path / "run", problems=6))
    run.name = "</title><script>1</script>"
    text = render([run])
    found = Parsed(text)
    assert not {"script", "img", "iframe", "object"} & set(found.tags)
    assert not [k for _, k, _ in found.attributes if k.startswith("on")]
    assert "<script>alert('x')</script><img src=x onerror=alert(1)>" in found.text
    assert "$\\frac{1}{" in html.unescape(text), "math marks stay as written"
    assert "<script" not in markdown_report([run]) and "<img" not in markdown_report([run])


def test_every_part_may_be_missing(tables, tmp_path):
    """Each part alone makes a page; so does a run with nothing but an empty recipe."""
    whole = tables["sampled"](tmp_path / "run", problems=3, text="x")
    parts = [p for p in whole.iterdir() if p.is_file()]
    assert len(parts) == 4
    for part in parts:
        alone = tmp_path / f"only-{part.stem}"
        alone.mkdir()
        (alone / part.name).write_bytes(part.read_bytes())
        assert write_report([alone]).stat().st_size > 1000
        assert "# " in markdown_report(load_runs([alone])[0])
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    assert "no checkpoint scored and no step logged yet" in write_report([empty]).read_text()
    with pytest.raises(RequestError, match="at least one"):
        write_report([])


def test_pipeline_before_its_first_stage(tmp_path):
    stages = [{"name": "a", "run": "a", "status": "pending"}]
    (tmp_path / "pipeline.json").write_text(json.dumps({"pipeline": "p", "stages": stages}))
    assert "pending" in write_report([tmp_path]).read_text()
    assert "pending" in markdown_report(*load_runs([tmp_path]))


def test_single_checkpoint_single_k(tables, tmp_path):
    rows = [tables["score"]("step-000000", "t", "pass@1", 0.5, 4)]
    tables["lines"](tmp_path / "a" / "scores.jsonl", rows)
    tables["lines"](tmp_path / "b" / "scores.jsonl", [rows[0] | {"value": 0.6, "low": None}])
    text = write_report([tmp_path / "a", tmp_path / "b"]).read_text()
    assert (tmp_path / "a" / "report.html").exists() and "pass@1" in text


def test_recipe_difference(runs, tmp_path):
    """Loss name, N and segment differ; the names of the runs and equal keys do not count; 1 is not true."""
    rows = dict(recipe_difference(runs))
    assert rows == {
        "loss.name": ["cross_entropy", "confidence_limited"],
        "loss.n": ["1.0", "256.0"],
        "loss.segment": ["completion", "answer"],
    }
    a, b = RunData(tmp_path, "a"), RunData(tmp_path, "b")
    a.recipe = {"name": "a", "x": {"y": [1, 2]}, "flag": True, "none": None}
    b.recipe = {"name": "b", "x": {"y": [1]}, "flag": 1}
    assert dict(recipe_difference([a, b])) == {
        "x.y[1]": ["2", "–"],
        "flag": ["true", "1"],
        "none": ["null", "–"],
    }
    assert recipe_difference([a]) == []


def test_odd_mixtures_are_tolerated(tmp_path):
    sources = [3, {"name": "a", "dropped": {"x": "y", "z": 2}, "share_asked": "half"}, {}]
    (tmp_path / "mixture.json").write_text(json.dumps({"sources": sources}))
    rows = mixture_rows(RunData.load(tmp_path))
    assert [(r["name"], r["dropped"], r["asked"]) for r in rows] == [("a", "2 (z 2)", None), ("?", "0", None)]


@pytest.mark.slow
def test_dropped_rows_are_named_where_a_run_names_them(tables, tmp_path, runs):
    """At most three of a reason; runs from before the key, and tables that do not know, name none."""
    long = {"where": "a.jsonl:12", "detail": "4,100 tokens,\n data.max_length is 2048" + " x" * 200}
    named = {"overlong": [long, *[{"where": f"a.jsonl:{i}"} for i in range(9)]], "truncated": [], "odd": 3}
    sources = [
        {"name": "a", "dropped_examples": named},
        {"name": "b", "dropped_examples": None},
        {"name": "c"},
        3,
    ]
    (tmp_path / "mixture.json").write_text(json.dumps({"sources": sources}))
    run = RunData.load(tmp_path)
    rows = dropped_rows(run)
    assert [row[:3] for row in rows] == [
        ("a", "overlong", "a.jsonl:12"),
        ("a", "overlong", "a.jsonl:0"),
        ("a", "overlong", "a.jsonl:1"),
    ]
    assert rows[0][3].startswith("4,100 tokens, data.max_length is 2048 x") and "more char" in rows[0][3]
    assert "a.jsonl:12" in Parsed(render([run])).text and "a.jsonl:12" in markdown_report([run])
    assert dropped_rows(runs[0]) == [] and "dropped from" not in Parsed(render(runs)).text


def test_score_table_marks_the_best(runs):
    table = score_table(runs[0], "multiplication")
    assert table.columns == ["pass@1", "pass@16", "pass@256", "pass@4096", "nll"]
    best = {
        m: step for _, step, cells in table.rows for m, c in zip(table.columns, cells, strict=True) if c.best
    }
    assert best["pass@256"] == 600 and best["pass@1"] == 1800 and best["nll"] == 900
    assert table.problems == 200 and "–" in table.rows[1][2][0].interval


def test_shown_metrics():
    assert shown_metrics([f"pass@{2**i}" for i in range(13)] + ["nll"])[:4] == [
        "pass@1",
        "pass@16",
        "pass@256",
        "pass@4096",
    ]
    assert shown_metrics([f"pass@{k}" for k in (2, 4, 8, 32, 64)]) == [
        "pass@2",
        "pass@4",
        "pass@32",
        "pass@64",
    ]
    assert shown_metrics(["parsed", "pass@8", "maj@8"]) == ["pass@8", "maj@8", "parsed"]


def test_samples_show_both_ends(runs, tables, tmp_path):
    checkpoint, groups = sample_groups(runs[0], "multiplication")
    p = sorted((r["logp"] for r in runs[0].samples(checkpoint, "multiplication")), reverse=True)
    notes = [x.note for _, found in groups for x in found]
    assert checkpoint == "step-001800" and len(notes) == 6
    assert [float(n.split()[-1]) for n in notes] == pytest.approx(
        [2.718281828**v for v in (*p[:3], *p[:-4:-1])], rel=0.01
    )
    run = RunData.load(tables["sampled"](tmp_path / "s", problems=8, text="x" * 2000))
    groups = dict(sample_groups(run, "gsm8k")[1])
    assert {t: {x.mark for x in found} for t, found in groups.items()} == {
        "Right": {"right"},
        "Wrong": {"wrong"},
        "Cut off": {"cut"},
    }
    assert all(len({x.id for x in found}) == len(found) == 3 for found in groups.values())
    assert "more characters" in groups["Right"][0].text


def test_highlight_escapes_and_keeps_every_character():
    text = "# a <b>\nloss:\n  name: '<script>'\n- k: 1\nplain & text\n  a.b: \"x: y\""
    marked = str(highlight(text))
    assert html.unescape(re.sub(r"</?(i|em)>", "", marked)) == text
    assert "<i>name</i>: " in marked and "<em># a &lt;b&gt;</em>" in marked and "<script" not in marked


def test_the_ring_stands_where_two_curves_cross(runs):
    """Of two runs only: with three the rings would lie on each other."""
    last = [(f"r{i}", curves(run, "multiplication")["step-001800"], i) for i, run in enumerate(runs)]
    n = crossovers(last[0][1], last[1][1])
    assert f"cross at N ≈ {n[0]:.2g}" in plots.comparison("x", last)
    assert "cross at" not in plots.comparison("x", [*last, ("r2", last[0][1], 2)])
    assert "cross at" not in plots.comparison("x", [last[0], last[0]])


def test_labels_in_pictures_are_text():
    """Unbalanced math, markup, and an attribute like ours inside a label."""
    name = '$\\frac{<b> id="x"$'
    svg = plots.mixture_bars("m", [(name, 0.5, 0.25), ("b", None, None)])
    assert name in Parsed(svg).text and "b" not in Parsed(svg).tags
    line = step_plots.Line("$x_{$", [1, 2], [0.1, 0.2])
    assert "$x_{$" in Parsed(step_plots.over_steps("s", "y", [line])).text


def test_thin_keeps_means_and_the_end():
    x, y = step_plots.thin(list(range(1, 1002)), [float(i % 2) for i in range(1001)], most=101)
    assert len(x) == 101 and x[-1] == 1001 and y[0] == pytest.approx(0.5)
    assert step_plots.thin([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


@pytest.mark.slow
def test_recipe_is_shown_whole(runs):
    found = Parsed(render(runs))
    assert yaml.safe_dump(runs[1].recipe, sort_keys=False) in found.text + "\n"
