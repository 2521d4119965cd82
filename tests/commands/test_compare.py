"""`posttrain compare`: the table, what Holm's correction leaves, and what cannot be compared."""

from __future__ import annotations

import json

import pytest
import yaml

from posttrain.report.differences import Place, difference
from posttrain.report.findings import findings
from posttrain.rundir.reading import RunData
from tests.rundir.written import ENTROPY, LIMITED, lines, write_exact_run

CE, CL = {"name": "cross_entropy", "n": 1.0}, {"name": "confidence_limited", "n": 256.0}
TASK = "multiplication"


@pytest.fixture
def two(tmp_path, monkeypatch):
    """`ce` and `cl` in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_exact_run(tmp_path / "ce", CE, ENTROPY)
    write_exact_run(tmp_path / "cl", CL, LIMITED)
    return tmp_path


def test_two_runs(call, two):
    """The table has the values of the scores, the paired difference and its p-value at every k."""
    answer = call("compare", "ce", "cl")
    assert answer.code == 0, answer
    assert answer.out.startswith("multiplication, 200 problems\nA: Cross-entropy, step-001800 of ce\n")
    a, b = RunData.load("ce"), RunData.load("cl")
    d = difference(TASK, 256, [Place(a, "step-001800")], [Place(b, "step-001800")])
    row = next(line.split() for line in answer.out.splitlines() if line.startswith("  256 "))
    assert row[1:4] == [".561", ".973", "+.412"] and row[-1] == f"{d.detectable:.3f}"[1:]
    assert f"[{d.low:.3f}, {d.high:.3f}]".replace("0.", ".") in answer.out
    assert "Last checkpoints, these two runs: Cross-entropy is ahead at pass@1 by .128" in answer.out
    assert (
        "After Holm's correction over 2 comparisons these leads remain: Cross-entropy at pass@1" in answer.out
    )
    controls = (
        "Controls at pass@256 (Confidence-limited N = 256 ends at .973): Cross-entropy at its best checkpoint"
    )
    assert controls in answer.out and "Seeds of two sides" not in answer.out
    report = findings([a, b])
    assert json.loads(call("compare", "ce", "cl", "--json").out)["controls"] == [report[-1]]
    assert json.loads(call("compare", "ce", "ce@step-000600", "--json").out)["controls"] == []
    chosen = json.loads(call("compare", "cl@step-000900", "ce", "--json").out)["controls"]
    assert "(Confidence-limited N = 256 is at " in chosen[0]
    assert max(map(len, answer.out.split("Last checkpoints")[0].splitlines())) <= 80


def test_help_says_what_the_columns_are(call):
    answer = call("compare", "--help")
    lines = [line.strip() for line in answer.out.splitlines()]
    assert answer.code == 0 and max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith(("Holm ", "detectable "))] == [
        "Holm",
        "detectable",
    ]
    assert "Seeds of two sides are taken as independent" in answer.out


def test_json_and_holm_over_pairs(call, two):
    """Three sides are three pairs with two headline k each: six comparisons, the least p times six."""
    write_exact_run(two / "near", CL | {"n": 200.0}, [(mu - 0.02, s) for mu, s in LIMITED])
    found = json.loads(call("compare", "ce", "cl", "near", "--json").out)
    assert [(p["a"]["label"], p["b"]["label"]) for p in found["pairs"]] == [
        ("Cross-entropy", "Confidence-limited N = 256"),
        ("Cross-entropy", "Confidence-limited N = 200"),
        ("Confidence-limited N = 256", "Confidence-limited N = 200"),
    ]
    asked = [d for p in found["pairs"] for d in p["differences"] if d["adjusted_p"] is not None]
    assert [d["k"] for d in asked] == [1, 256] * 3
    order = sorted(asked, key=lambda d: d["p"])
    assert order[0]["adjusted_p"] == pytest.approx(6 * order[0]["p"])
    assert all(d["adjusted_p"] >= d["p"] and d["over"] == "problems" for d in asked)
    assert "over 6 comparisons" in found["corrected"]
    assert "Cross-entropy over Confidence-limited N = 200 at pass@1 (adjusted" in found["corrected"]
    both = json.loads(call("compare", "ce", "cl", "--json").out)["corrected"]
    assert "these leads remain: Cross-entropy at pass@1 (adjusted" in both


def test_checkpoints_can_be_chosen(call, two):
    answer = call("compare", "ce@best:multiplication/pass@256", "cl@step-000900")
    assert "A: Cross-entropy, step-000600 of ce" in answer.out
    assert (
        "Step 600 of Cross-entropy and step 900 of Confidence-limited N = 256, these two runs:" in answer.out
    )
    same = call("compare", "ce@step-000600", "ce@step-001800")
    assert same.code == 0 and "A: ce@step-000600" in same.out
    assert "Step 600 and step 1,800 of one run: " in same.out and "these two runs" not in same.out


def test_seeds(call, two):
    """A pattern is a side; its interval is over seeds too."""
    for name, loss, fit in (("ce", CE, ENTROPY), ("cl", CL, LIMITED)):
        for i in range(3):
            path = two / f"{name}-{i}"
            write_exact_run(path, loss, [(mu + 0.1 * i, sigma) for mu, sigma in fit])
            recipe = yaml.safe_load((path / "recipe.yaml").read_text())
            recipe |= {"name": path.name, "train": recipe.get("train", {}) | {"seed": i}}
            (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (two / "ce-0.log").write_text("beside the runs of a sweep")
    answer = call("compare", "ce-*", "cl-0,cl-1,cl-2")
    assert "A: Cross-entropy (3 seeds), step-001800 of ce-0, ce-1, ce-2" in answer.out
    assert "Last checkpoints, 3 seeds a side: Cross-entropy leads pass@1 by" in answer.out
    found = json.loads(call("compare", "ce-*", "cl-*", "--json").out)
    assert {d["over"] for d in found["pairs"][0]["differences"]} == {"seeds"}
    independent = "Seeds of two sides are taken as independent, also where they have the same numbers"
    assert independent in answer.out
    first, last = (",".join(f"ce-{i}@step-{step}" for i in range(3)) for step in ("000600", "001800"))
    same = call("compare", first, last)
    assert same.code == 0 and independent not in same.out, "these are compared seed by seed"
    assert "Step 600 and step 1,800 of the same 3 seeds: " in same.out
    call("compare", "ce-0,cl-1", "cl-0").refuses("ce-0 and cl-1 are not seeds of one recipe: they differ in")
    for pattern in ("ce-*@step-000600", "ce-0@step-000600, ce-1@step-000600,ce-2@step-000600"):
        assert "step-000600 of ce-0, ce-1, ce-2" in call("compare", pattern, "cl-*").out
    call("compare", "x-*@step-000600", "cl-0").refuses("x-*: no run matches")
    for side in (",ce-0", "ce-0,", ","):
        call("compare", side, "cl-0").refuses(f"{side!r}: a run is missing beside a comma")
    call("compare", "ce-0,ce-0", "cl-0").refuses("one run is named twice")
    call("compare", "ce-0@step-000600,ce-1", "cl-0").refuses("compared at one checkpoint")


def test_what_cannot_be_compared(call, two):
    call("compare", "ce").refuses("needs at least two sides")
    call("compare", "ce", "ce").refuses("ce is on both sides")
    call("compare", "ce", "ce@step-001800").refuses("ce is on both sides")
    call("compare", "ce", "clx").refuses("clx: no such run", "did you mean 'cl'")
    call("compare", "ce", "x-*").refuses("x-*: no run matches")
    call("compare", "ce", "cl@step-1").refuses("no scored checkpoint step-1")
    call("compare", "ce", "cl@best:other/pass@1").refuses("cl has no score other/pass@1")
    call("compare", "ce", "cl", "--task", "multiplicatoin").refuses("did you mean 'multiplication'")
    info = json.loads((two / "cl" / "run.json").read_text())
    (two / "cl" / "run.json").write_text(json.dumps(info | {"status": "running"}))
    call("compare", "ce", "cl").refuses("cl is not finished (running)", "cl@step-001800")
    assert call("compare", "ce", "cl@step-001800").code == 0
    (two / "cl" / "run.json").write_text(json.dumps(info))
    rows = [json.loads(line) for line in (two / "cl" / "scores.jsonl").read_text().splitlines()]
    lines(two / "cl" / "scores.jsonl", [row | {"settings": "other-1"} for row in rows])
    for name, limit in (("ce", None), ("cl", 100)):
        recipe = yaml.safe_load((two / name / "recipe.yaml").read_text())
        recipe["evaluate"] = {"tasks": [{"name": TASK, "limit": limit}]}
        (two / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    call("compare", "ce", "cl").refuses(
        "ce and cl were scored on other problems or settings of multiplication: no limit against limit 100"
    )
    (two / "cl" / "scores.jsonl").unlink()
    call("compare", "ce", "cl").refuses("cl: there is no score")
    (two / "all").mkdir()
    (two / "all" / "pipeline.json").write_text("{}")
    call("compare", "ce", "all").refuses("all is a pipeline or a sweep")
