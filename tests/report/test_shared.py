"""Checks that failed and samples that lack rows: only the same problems are compared."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import yaml

from posttrain.report.compare import Entrant, compared
from posttrain.report.controls import envelope
from posttrain.report.differences import Place, comparable, difference
from posttrain.report.findings import caveats, findings
from posttrain.report.sides import Side
from posttrain.rundir.reading import RunData

CE, CL = {"name": "cross_entropy", "n": 1.0}, {"name": "confidence_limited", "n": 256.0}
CL_NAME = "Confidence-limited N = 256"
HALF = [None] * 30
"""Problems whose checks failed."""


@pytest.fixture
def made(tmp_path, tables):
    """made(name, loss, {step: right ones of 8 completions for each problem, None: all checks failed})."""

    def make(name, loss, steps, ks=(1, 4)):
        scores = []
        for step, counts in steps.items():
            rows = []
            for i, c in enumerate(counts):
                values = [None] * 8 if c is None else [1.0] * c + [0.0] * (8 - c)
                rows.append({"id": str(i), "completions": [{"text": "x", "value": v} for v in values]})
            tables["lines"](tmp_path / name / "samples" / f"step-{step:06d}" / "t.jsonl", rows)
            judged = [c for c in counts if c is not None]
            for k in ks:
                v = float(np.mean([1 - math.comb(8 - c, k) / math.comb(8, k) for c in judged]))
                scores.append(tables["score"](f"step-{step:06d}", "t", f"pass@{k}", v, len(judged), 0.08))
        tables["lines"](tmp_path / name / "scores.jsonl", scores)
        info = {"name": name, "status": "finished", "stage": "sft"}
        (tmp_path / name / "run.json").write_text(json.dumps(info))
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump({"stage": "sft", "loss": loss}))
        return RunData.load(tmp_path / name)

    return make


def end(run, step=9):
    return [Place(run, f"step-{step:06d}")]


def pair(made):
    """Half of the checks of ce failed, on problems that cl gets wrong: it scores higher, and is behind
    on the half that both have, at pass@1 by .750 - .375. pass@4 of 4, 3, 2 right ones of 8 is 1 - 1/70,
    1 - 5/70, 1 - 15/70, the mean .9; of 6 it is 1."""
    ce = made("ce", CE, {5: [2, 2, 1] * 10 + HALF, 9: [4, 3, 2] * 10 + HALF})
    cl = made("cl", CL, {5: [4] * 30 + [0] * 30, 9: [6] * 30 + [0] * 30})
    return ce, cl


def test_who_is_ahead_is_told_by_shared_problems(made):
    ce, cl = pair(made)
    scores = [run.rows("t")["step-000009"]["pass@4"].value for run in (ce, cl)]
    assert scores[0] > scores[1], "over the problems of each"
    found = findings([ce, cl])
    text = next(t for t in found if t.startswith("Last checkpoints"))
    assert f"{CL_NAME} is ahead at pass@1 by .375" in text and "on 30 of 60 problems" in text
    assert f"{CL_NAME} is ahead at every N from 1 to 4." in text and "Cross-entropy is ahead" not in text
    controls = next(t for t in found if t.startswith("Controls"))
    assert "reaches .900 against 1.000, .100" in controls and "problems lower." in controls
    assert f"With the same choices {CL_NAME} (step 9) reaches 1.000 against .900, .100" in controls


def test_compare_has_the_values_of_shared_problems(made):
    ce, cl = pair(made)
    (found,), _ = compared([Entrant(Side("A", [ce])), Entrant(Side("B", [cl]))])
    assert [(d["a"], d["b"]) for d in found.to_dict()["differences"]] == [
        pytest.approx((0.375, 0.75)),
        pytest.approx((0.9, 1.0)),
    ]


def test_no_crossing_of_curves_of_different_problems(made):
    """Over its own problems each, cl is ahead at pass@1 by .438 - .375, and behind at pass@4 by .9 - .75."""
    ce = made("ce", CE, {9: [4, 3, 2] * 10 + HALF})
    cl = made("cl", CL, {9: [6] * 30 + [1] * 30})
    (found,), _ = compared([Entrant(Side("A", [ce])), Entrant(Side("B", [cl]))])
    assert found.crossings == [] and "B is ahead at every N from 1 to 4." in found.sentence


def test_leaders_are_told_by_shared_problems(made):
    ce, cl = pair(made)
    more = [made(f"f{i}", {"name": "focal", "exponent": float(i)}, {9: [1] * 60}) for i in range(3)]
    text = next(t for t in findings([ce, cl, *more]) if t.startswith("Last checkpoints"))
    assert f"pass@1 is highest for {CL_NAME} (.750; above Cross-entropy by .375" in text
    assert f"pass@4 is highest for {CL_NAME} (1.000; above Cross-entropy by .100" in text


def test_the_best_checkpoint_is_chosen_on_shared_problems(made):
    """Step 5 scores .885 on the half that was judged, step 9 is right there, and wrong on the other half."""
    run = made("r", CE, {5: [3] * 30 + HALF, 9: [8] * 30 + [0] * 30})
    step = run.rows("t")
    assert step["step-000005"]["pass@4"].value > step["step-000009"]["pass@4"].value == 0.5
    (text,) = findings([run])
    assert text.startswith("Cross-entropy: pass@4 .929 → 1.000 (+.071") and text.endswith(", its best.")
    assert envelope(run, "t", "checkpoint")[4].checkpoint == "step-000009"


def test_a_fall_has_the_values_of_its_problems(made):
    """All 8 to 2 of 8 on the half that was judged at the end: pass@1 1 to .25, pass@4 1 to 1 - 15/70."""
    run = made("r", CE, {5: [8] * 30 + [0] * 30, 9: [2, 2, 1] * 10 + HALF})
    (text,) = findings([run])
    assert text.startswith("Cross-entropy: pass@1 1.000 → .208 while pass@4 falls 1.000 → .690 (−.310")
    assert "on 30 of 60 problems" in text


def test_the_falls_of_two_sides_are_of_the_same_problems(made):
    """The other 15 of ce fall by all: over 60 it loses more than over the 45 that both have."""
    fell = [8, 7, 8] * 20
    ce = made("ce", CE, {5: fell, 9: [2, 1, 1] * 15 + [0] * 15}, ks=(1, 2))
    cl = made("cl", CL, {5: fell, 9: [3, 3, 2] * 15 + [None] * 15}, ks=(1, 2))
    text = next(t for t in findings([ce, cl]) if "loses" in t and "expected" not in t)
    d = difference("t", 2, end(ce, 5), end(ce), among=[end(cl)])
    mine = difference("t", 2, end(cl, 5), end(cl))
    assert f": {-mine.mean:.3f} against {-d.mean:.3f} from its best".replace("0.", ".") in text
    assert "on 45 of 60 problems)" in text


def test_where_samples_are_gone_nothing_is_said(made, tmp_path):
    ce, cl = pair(made)
    (tmp_path / "ce" / "samples" / "step-000009" / "t.jsonl").unlink()
    ce = RunData.load(tmp_path / "ce")
    assert comparable("t", 4, [end(ce), end(cl)]) is None
    d = difference("t", 4, end(ce), end(cl))
    assert not d.known and d.clear is None and not d.equal
    text = next(t for t in findings([ce, cl]) if t.startswith("Last checkpoints"))
    assert text.count("not known (there are no samples)") == 2 and "ahead" not in text and "nan" not in text
    (found,), _ = compared([Entrant(Side("A", [ce])), Entrant(Side("B", [cl]))])
    assert found.to_dict()["differences"][0]["mean"] is None
    lost = made("lost", CE, {5: [3] * 60, 9: [4] * 30 + HALF})
    (tmp_path / "lost" / "samples" / "step-000005" / "t.jsonl").unlink()
    (text,) = findings([RunData.load(lost.path)])
    assert text.startswith("Cross-entropy: pass@4 .986 (pass@1 .500) at step 9; checks failed")


def exact(tmp_path, tables, name, ps, ks=(1, 16, 256), lost=0):
    """A run whose samples lack the last `lost` rows."""
    rows = [{"id": str(i), "logp": math.log(p)} for i, p in enumerate(ps)][: len(ps) - lost]
    tables["lines"](tmp_path / name / "samples" / "step-000009" / "t.jsonl", rows)
    values = {k: float(np.mean(1 - (1 - np.array(ps)) ** k)) for k in ks}
    scores = [tables["score"]("step-000009", "t", f"pass@{k}", v, len(ps), 0.05) for k, v in values.items()]
    tables["lines"](tmp_path / name / "scores.jsonl", scores)
    return RunData.load(tmp_path / name)


def test_a_missing_row_leaves_the_rest_paired_at_every_k(tmp_path, tables):
    """59 of 60 rows: their mean is off by more than rounding at some k, but by no more than one problem."""
    rng = np.random.default_rng(3)
    ps = np.clip(rng.beta(0.3, 5, 60), 1e-6, 0.9)
    ps[-1] = 1e-6
    a = exact(tmp_path, tables, "a", ps, lost=1)
    b = exact(tmp_path, tables, "b", np.clip(ps * 1.3, 0, 0.95))
    found = [difference("t", k, end(a), end(b)) for k in (1, 16, 256)]
    assert [(d.over, d.problems, d.left_out) for d in found] == [("problems", 59, 1)] * 3
    assert "on 59 of 60 problems" in findings([a, b])[-1] and not any("paired:" in t for t in caveats([a]))
    both = exact(tmp_path, tables, "c", ps * 0.9, lost=1)
    assert difference("t", 16, end(a), end(both)).left_out == 1, "the same row is missing on both sides"


def test_scores_that_samples_do_not_fit_are_named_by_k(tmp_path, tables):
    """One row may move the mean of 60 by 1/60; pass@16 is off by .1."""
    ps = np.linspace(0.01, 0.1, 60)
    a, b = exact(tmp_path, tables, "a", ps, lost=1), exact(tmp_path, tables, "b", ps)
    next(s for s in a.scores if s.metric == "pass@16").value += 0.1
    assert difference("t", 16, end(a), end(b)).over == "scores"
    assert [text for text in caveats([a]) if "samples of t" in text] == [
        "a: the samples of t are missing or do not fit the scores of pass@16, so its differences of pass@16"
        " are not paired: an interval is wider than it need be, or absent."
    ]
    two = difference("t", 16, [*end(a), *end(b)], [*end(b), *end(b)])
    assert (two.low, two.reason) == (None, "the samples do not fit the scores")


NONE = [None] * 30


def test_a_fall_on_the_problems_that_the_best_was_chosen_on_is_no_best(made):
    """Of the first 30 problems, which all checkpoints have, the first is at 6 of 8, the last at 7; over all
    60 the last is below the first by .4375: neither is said of the other."""
    run = made("j", CE, {0: [6] * 30 + [8] * 30, 5: [3] * 30 + NONE, 9: [7] * 30 + [0] * 30}, ks=(1,))
    (said,) = findings([run])
    assert "pass@1 .750 → .875 (+.125 [−.003, .224] on 30 of 60 problems, within noise) from step 0" in said


def test_missing_rows_of_one_checkpoint_make_no_fall_its_best(made):
    run = made("m", CE, {0: [5] * 60, 9: [4] * 40 + [8] * 20}, ks=(1,))
    file = run.path / "samples" / "step-000009" / "t.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:40]))
    (said,) = findings([RunData.load(run.path)])
    assert "falls .625 → .500 (−.125 [−.202, −.026] on 40 of 60 problems) from its best at step 0" in said


def test_samples_of_no_common_problem_give_no_nan(made):
    run = made("u", CE, {5: [3] * 60, 9: [5] * 60})
    for step, part in (("step-000005", slice(30, None)), ("step-000009", slice(0, 30))):
        file = run.path / "samples" / step / "t.jsonl"
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[part]))
    assert "nan" not in " ".join(findings([RunData.load(run.path)]))


def test_a_control_is_measured_on_the_problems_of_the_lead(made):
    """On the 30 problems that both have at their ends, step 5 of ce is at 1 - 1/70 against 1."""
    ce = made("ce", CE, {5: [4] * 30 + [8] * 30, 9: [4, 3, 2] * 10 + NONE})
    cl = made("cl", CL, {5: [4] * 30 + [0] * 30, 9: [6] * 30 + [0] * 30})
    (said,) = [text for text in findings([ce, cl]) if text.startswith("Controls")]
    assert "at its best checkpoint (step 5) reaches .986 against 1.000" in said and "higher" not in said
    assert "on 30 of 60 problems" in said
