"""Curves over what training has cost: FLOPs by hand, stages end to end, and what is refused."""

from __future__ import annotations

import json
import re

import pytest

from posttrain.cli import main
from posttrain.errors import RequestError
from posttrain.report.axes import AXES, amount, axis, check, cost, powers
from posttrain.report.page import render
from posttrain.rundir.reading import RunData
from tests.report import stages
from tests.report.test_page import Parsed
from tests.rundir.written import lines

SIZES = {"used": 1000, "trained": 1000}
COUNTS = {"num_tokens": 50, "num_trained_tokens": 20}


@pytest.fixture
def run(tmp_path):
    """run(stage, counts by step, parameters, name, parent) -> RunData: of each step a checkpoint with scores
    and a checkpoint.json."""

    def make(stage="sft", counts=None, sizes=SIZES, name="run", parent=None, kept=True):
        counts = {10: COUNTS, 20: {k: 2 * v for k, v in COUNTS.items()}} if counts is None else counts
        path = tmp_path / name
        stages.papers(path, stage, {"evaluate": {"tasks": []}}, parent, parameters=sizes)
        stages.scored(path, {step: (-2.0 + step / 20, 1.0) for step in counts})
        spent = [{"step": step} | row for step, row in counts.items() if row]
        facts = {"step": max(counts), "spent": spent}
        last = path / "checkpoints" / f"step-{max(counts):06d}" / "checkpoint.json"
        last.write_text(json.dumps(facts if kept else {"step": max(counts)}))
        return RunData.load(path)

    return make


def test_costs_by_hand(run):
    """N = T = 1000, 50 tokens: 6 * 1000 * 50. With an adapter of 100: (4 * 1000 + 2 * 100) * 50."""
    assert [cost("step", run(), s) for s in (0, 10, 20)] == [0, 10, 20]
    assert [cost("tokens", run(), s) for s in (0, 10, 20)] == [0, 50, 100]
    assert cost("flops", run(), 10) == 300_000
    assert cost("flops", run(sizes={"used": 1000, "trained": 100}), 20) == 420_000


def test_costs_of_an_rlvr_run_by_hand(run):
    """6 * 1000 * 50 for training, 2 * 1000 * (40 sampled + 30 seen by the old policy), 2 * 700 * 30 for a
    reference of 700."""
    counts = {
        "num_forward_tokens": 30,
        "num_reference_tokens": 30,
        "num_rollouts": 8,
        "num_sampled_tokens": 40,
    }
    found = run("rlvr", {10: COUNTS | counts}, SIZES | {"reference": 700})
    assert cost("rollouts", found, 10) == 8
    assert cost("flops", found, 10) == 300_000 + 2_000 * 70 + 1_400 * 30


def test_a_logged_step_is_enough(run, tmp_path):
    """A run whose checkpoints were deleted has the counts of the steps that it logged."""
    found = run(kept=False)
    lines(tmp_path / "run" / "metrics.jsonl", [{"step": 10, "split": "train", "loss": 1.0} | COUNTS])
    found = RunData.load(tmp_path / "run")
    assert cost("tokens", found, 10) == 50
    with pytest.raises(RequestError, match=r"--x tokens: .*/run: what it had cost at step 20 is not known"):
        cost("tokens", found, 20)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        ("tokens", {"counts": {10: {}}}, "what it cost is not known; it is of an earlier version"),
        ("rollouts", {}, "a run of sft samples nothing"),
        ("flops", {"sizes": None}, "parameters of its model a token uses is not known"),
        ("flops", {"counts": {10: COUNTS | {"num_reference_tokens": 9}}}, "its reference has is not known"),
    ],
)
def test_what_a_run_does_not_know_is_refused(run, tmp_path, capsys, x, options, words):
    run(**options)
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "--x", x, "--out", str(page)]) == 2
    error = capsys.readouterr().err
    assert words in error and str(tmp_path / "run") in error and "or take --x step" in error
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not page.exists()
    assert main(["report", str(tmp_path / "run"), "--out", str(page)]) == 0 and page.exists()


def test_an_unknown_axis(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere"), "--x", "flop"]) == 2
    assert "--x: unknown axis 'flop' (did you mean 'flops'?)" in capsys.readouterr().err
    for x in AXES:
        check(x)


def test_stages_end_to_end_continue_their_parents_cost(run, tmp_path):
    """The child starts from step 10 of its parent, which had cost 50 tokens by then, and not from its end."""
    parent = run(name="first")
    child = run("dpo", {5: {"num_tokens": 7}}, name="second", parent=(tmp_path / "first", "step-000010"))
    for runs in ([parent, child], [child, parent]):
        found = axis(runs, "tokens")
        places = dict(zip((r.name for r in runs), found.at, strict=True))
        assert [places["first"](s) for s in (0, 10, 20)] == [0, 50, 100]
        assert [places["second"](s) for s in (0, 5)] == [50, 57] and found.chained
    assert axis([parent, child]).at[1](5) == 15
    assert axis([child], "tokens").at[0](5) == 7, "without its parent it begins at 0"
    text = render([parent, child], x="tokens")
    assert "tokens trained on, prompts included, stages end to end" in Parsed(text).text
    assert "pass@1 through the stages" in Parsed(text).text
    early = run("sft", {10: {}}, name="early")
    late = run("dpo", {5: {"num_tokens": 7}}, name="late", parent=(tmp_path / "early", "step-000010"))
    with pytest.raises(RequestError, match=r"/early: what it cost is not known"):
        render([late, early], x="tokens")


def test_the_axis_says_what_it_counts(run):
    page = render([run()], x="flops")
    assert "training FLOPs, estimated" in Parsed(page).text
    assert re.search(r"\d·10⁵", Parsed(page).text), "300,000 and 600,000"
    assert "training FLOPs" not in Parsed(render([run()])).text


def test_numbers_below_an_axis():
    assert [amount(x) for x in (0, 9000, 25_000, 1.5e6, 2e9, 3.25e12)] == [
        "0",
        "9,000",
        "25k",
        "1.5M",
        "2B",
        "3,250B",
    ]
    assert [powers(x) for x in (0, 1e3, 1.5e18, 1e21)] == ["0", "1·10³", "1.5·10¹⁸", "1·10²¹"]
