"""The sentences: computed from the numbers, and honest where the expected effect is absent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from posttrain.report.comparison import attempts
from posttrain.report.differences import Difference
from posttrain.report.findings import caveats, findings
from posttrain.report.page import _attributed
from posttrain.report.story import page_title
from posttrain.report.text import labels, loss_name, share, signed, span
from posttrain.rundir.reading import CheckpointInfo, RunData


@pytest.fixture
def made(tmp_path, tables):
    """made(name, loss, {step: {k: value}}, half) -> RunData with those scores and no samples."""

    def make(name, loss, values, half=0.01, **recipe):
        rows = [
            tables["score"](f"step-{step:06d}", "t", f"pass@{k}", v, 100, half)
            for step, points in values.items()
            for k, v in points.items()
        ]
        tables["lines"](tmp_path / name / "scores.jsonl", rows)
        (tmp_path / name / "run.json").write_text(json.dumps({"name": name, "status": "finished"}))
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump({"loss": loss} | recipe))
        return RunData.load(tmp_path / name)

    return make


CE, CL = {"name": "cross_entropy", "n": 1.0}, {"name": "confidence_limited", "n": 256.0}


def test_fall_keep_and_lead(made):
    """pass@256: .886 -> .557 is -.329. At the end CE leads pass@1 by .131, CL pass@256 by .413. Between
    N = 4 (-.1) and N = 16 (+.1) the gap is zero at N = 8; 16 is the first measured N where CL is ahead.
    Without samples the intervals of the scores, +-.01, make one of +-.0141."""
    ce = made(
        "a", CE, {600: {1: 0.08, 4: 0.2, 16: 0.4, 256: 0.886}, 1800: {1: 0.165, 4: 0.3, 16: 0.4, 256: 0.557}}
    )
    cl = made("b", CL, {900: {1: 0.03, 256: 0.96}, 1800: {1: 0.034, 4: 0.2, 16: 0.5, 256: 0.97}})
    assert findings([ce, cl]) == [
        "Cross-entropy: pass@1 .080 → .165 while pass@256 falls .886 → .557 (−.329"
        " [−.343, −.315]), from its best at step 600 to step 1,800.",
        "Confidence-limited N = 256: pass@256 .960 → .970 (+.010 [−.004, .024], within noise) from step 900"
        " to step 1,800, its best (pass@1 .034).",
        "Last checkpoints, these two runs: Cross-entropy is ahead at pass@1 by .131 [.117, .145];"
        " Confidence-limited N = 256 is ahead at pass@256 by .413 [.399, .427]."
        " From N = 16 on Confidence-limited N = 256 is ahead (curves cross at N ≈ 8).",
        "Controls at pass@256 (Confidence-limited N = 256 ends at .970): Cross-entropy at its best checkpoint"
        " (step 600) reaches .886, .084 [.070, .098] lower. With the same choices Confidence-limited N = 256"
        " (step 1,800) reaches .970, .084 [.070, .098] higher.",
    ]


def test_absent_effect_is_said(made):
    """Cross-entropy that keeps pass@256; where it falls, a fall of the other is less, alike or more."""
    ce = made("a", CE, {10: {1: 0.1, 256: 0.8}, 20: {1: 0.2, 256: 0.79}})
    cl = made("b", CL, {10: {1: 0.1, 256: 0.9}, 20: {1: 0.2, 256: 0.5}})
    text = findings([ce, cl])[-1]
    assert text.startswith("The expected effect (cross-entropy loses") and text.endswith(
        "cannot show here: Cross-entropy keeps pass@256."
    )
    unclear = made("c", CE, {10: {1: 0.1, 256: 0.8}, 20: {1: 0.2, 256: 0.7}}, half=0.2)
    assert "Cross-entropy shows no clear fall of pass@256." in findings([unclear, cl])[-1]
    best = made("d", CE, {10: {1: 0.1, 256: 0.7}, 20: {1: 0.2, 256: 0.8}})
    assert "Cross-entropy ends at its best." in findings([best, cl])[-1]


def test_effect_is_not_claimed_from_one_checkpoint_or_noise(made):
    one = {20: {1: 0.1, 256: 0.8}}
    found = findings([made("a", CE, one), made("b", CL, one)])
    assert not any("expected effect" in text for text in found)
    assert found[-1] == (
        "Last checkpoints, these two runs: Cross-entropy and Confidence-limited N = 256 are equal at pass@1"
        " (.000 [−.014, .014]); Cross-entropy and Confidence-limited N = 256 are equal at pass@256 (.000"
        " [−.014, .014])."
    )
    assert "only scored checkpoint" in found[0]
    wide = {10: {1: 0.1, 256: 0.8}, 20: {1: 0.2, 256: 0.7}}
    noisy = made("c", CE, wide, half=0.2)
    assert findings([noisy])[0] == (
        "Cross-entropy: pass@256 ends at .700 (best .800 at step 10; −.100 [−.383, .183], within noise, which"
        " does not exclude a fall of .050), with pass@1 .200."
    ), "neither falls nor keeps"


def test_a_small_sure_change_is_kept(made):
    """.800 -> .760 with intervals of +-.001: a fall of .05 is excluded. .740: no fall is excluded."""
    kept = made("a", CE, {10: {1: 0.1, 256: 0.8}, 20: {1: 0.2, 256: 0.76}}, half=0.001)
    lost = made("b", CE, {10: {1: 0.1, 256: 0.8}, 20: {1: 0.2, 256: 0.74}}, half=0.001)
    assert "keeps pass@256 at .760 (best .800 at step 10; −.040 [−.041, −.039])" in findings([kept])[0]
    assert "pass@256 falls .800 → .740" in findings([lost])[0]


def test_noise_is_not_a_lead(made):
    a = made("a", CE, {10: {1: 0.30}}, half=0.05)
    b = made("b", CL, {10: {1: 0.32}}, half=0.05)
    assert (
        "no clear difference between Cross-entropy and Confidence-limited N = 256 at pass@1 (+.020"
        " [−.051, .091])" in findings([a, b])[-1]
    )


def test_intervals_come_from_pairs(runs):
    """With samples the fall carries its paired interval, far narrower than the two intervals of the
    scores."""
    text = findings(runs)[0]
    low, high = (float(v.replace("−", "-")) for v in text.split("[")[1].split("]")[0].split(", "))
    assert low < -0.326 < high and high - low < 0.12
    last = next(s for s in runs[0].scores if s.step == 1800 and s.metric == "pass@256")
    assert high - low < last.high - last.low


def test_ahead_everywhere_and_several_crossings(made):
    a = made("a", CE, {10: {1: 0.1, 4: 0.2, 16: 0.3, 64: 0.4}})
    b = made("b", CL, {10: {1: 0.2, 4: 0.3, 16: 0.4, 64: 0.5}})
    c = made("c", CL, {10: {1: 0.2, 4: 0.1, 16: 0.4, 64: 0.5}})
    assert "Confidence-limited N = 256 is ahead at every N from 1 to 64." in findings([a, b])[-1]
    assert "The curves cross at N ≈ 2, 8." in findings([a, c])[-1]


def test_no_lead_is_claimed_where_the_largest_n_is_noise(made):
    a = made("a", CE, {10: {1: 0.3, 4: 0.4, 1024: 0.9}}, half=0.05)
    b = made("b", CL, {10: {1: 0.1, 4: 0.2, 1024: 0.91}}, half=0.05)
    assert "The curves cross at N ≈ 790; no clear difference beyond it." in findings([a, b])[-1]
    c = made("c", CL, {10: {1: 0.31, 4: 0.6, 1024: 0.99}}, half=0.02)
    assert "at every N" not in findings([a, c])[-1], "ahead everywhere, but at N = 1 by noise"
    d = made("d", CL, {10: {1: 0.1, 4: 0.2, 1024: 0.89}}, half=0.05)
    assert "at every N" not in findings([a, d])[-1], "behind everywhere, but at N = 1024 by noise"


def test_many_runs_name_the_leaders(made):
    """Five runs: ten pairs would bury the page."""
    runs = [made(f"r{i}", CL | {"n": 2.0**i}, {10: {1: 0.5 - i / 10, 64: 0.5 + i / 10}}) for i in range(5)]
    found = findings(runs)
    assert len(found) == 6
    assert found[-1] == (
        "Last checkpoints: pass@1 is highest for Confidence-limited N = 1 (.500; above"
        " Confidence-limited N = 2 by .100 [.086, .114]);"
        " pass@64 is highest for Confidence-limited N = 16 (.900; above"
        " Confidence-limited N = 8 by .100 [.086, .114]);"
        " chosen among 5 on the problems shown, which flatters it."
    )
    at = {1: 0.1, 16: 0.2, 64: 0.3}
    less = [made(f"s{i}", CL | {"n": 2.0**i}, {10: at | {16: 0.2 + i / 10}}) for i in range(4)]
    less.append(made("s4", CL, {10: {1: 0.1, 16: 0.99}}))
    text = findings(less)[-1]
    assert "pass@16 is highest for Confidence-limited N = 256 (.990; above" in text and "pass@64" not in text
    assert page_title(runs) == "5 runs" and page_title(runs[:2]) == "r0 against r1"


def test_attempts():
    assert attempts([1.26, 7.4, 13.4, 723.0]) == "1.3, 7.4, 13, 720"


def test_without_pass_at_k(tmp_path, tables):
    tables["lines"](tmp_path / "r" / "scores.jsonl", [tables["score"]("step-000010", "t", "parsed", 0.5, 9)])
    assert findings([RunData.load(tmp_path / "r")]) == ["r: t parsed 0.5 at step 10."]
    rows = [{"step": s, "split": "train", "loss": 3.0 / s} for s in (1, 2)]
    tables["lines"](tmp_path / "q" / "metrics.jsonl", rows)
    text = "q: no checkpoint scored yet; training loss 3 → 1.5 from step 1 to 2."
    assert findings([RunData.load(tmp_path / "q")]) == [text]


def test_labels_stay_distinct(made):
    value = {10: {1: 0.1}}
    a, b = made("a", CL, value), made("b", CL | {"n": 16.0}, value)
    assert labels([a, b]) == ["Confidence-limited N = 256", "Confidence-limited N = 16"]
    assert labels([a, made("c", CL, value)]) == ["a", "c"]
    assert len(set(labels([a, a]))) == 2
    assert labels([made("d", {"name": "focal", "exponent": 2.0}, value)]) == ["Focal γ = 2"]
    assert labels([made("e", CL | {"n": 10**400}, value)]) == ["Confidence-limited"]
    assert labels([made("f", CE | {"label_smoothing": 10**400}, value)]) == ["Cross-entropy"]


def test_caveats(made, tmp_path, tables):
    run = made("a", CE, {10: {1: 0.1}})
    run.run = {"status": "failed", "steps": 100}
    run.metrics = {"train": [{"step": 40}]}
    more = replace(run.scores[0], settings="y", differs={"limit": 5, "path": None})
    run.scores += [more, replace(more, settings="z", differs={"temperature": 1.5})]
    text = " ".join(caveats([run]))
    assert "not over training seeds" in text and "failed at step 40 of 100" in text
    assert "t was also scored with limit 5, no path (step 10), which is not compared with the rest." in text
    assert "1.5" not in text, "a control is shown"
    sampled = RunData.load(tables["sampled"](tmp_path / "s", problems=4, text="x"))
    assert "12% of the gsm8k completions hit the length limit" in " ".join(caveats([sampled]))


def test_damaged_rows_beyond_three_are_counted(made):
    run = made("a", CE, {10: {1: 0.1}})
    run.unread = [f"scores.jsonl: {i}" for i in range(10)]
    assert caveats([run])[-4:] == [
        *(f"Cross-entropy: scores.jsonl: {i}" for i in range(3)),
        "Cross-entropy: 7 more rows or files cannot be read.",
    ]


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ([], "the run has not ended, or was killed; its last checkpoint is not its end."),
        (
            [{"step": 12}],
            "the run has not ended, or was killed, at step 12 of 100; its last checkpoint is not its end.",
        ),
    ],
)
def test_a_run_that_was_killed_before_a_step_was_logged(made, metrics, sentence):
    run = made("a", CE, {10: {1: 0.1}})
    run.run, run.metrics = {"status": "running", "steps": 100}, {"train": metrics}
    run.checkpoints = [CheckpointInfo("step-000010", 10, True, {})]
    assert [text for text in caveats([run]) if "killed" in text] == [f"Cross-entropy: {sentence}"]


def test_share():
    values = [share(v) for v in (0.0, 0.0714, 0.9999, 1.0, -0.329, 0.0005)]
    assert values == [".000", ".071", "1.000", "1.000", "−.329", ".001"]


def test_what_is_not_zero_does_not_read_as_zero():
    """Three digits hide .00042 and 3e-7, one digit shows them; a sum of floats is off by 1e-17."""
    values = (0.00042, -0.0001, 3e-7, -2e-11, 1e-17, -1e-17)
    assert [share(v) for v in values] == [".0004", "−.0001", "3e−7", "−2e−11", ".000", ".000"]
    assert [signed(v) for v in values] == ["+.0004", "−.0001", "+3e−7", "−2e−11", ".000", ".000"]
    d = Difference(0.0004, 0.00004, 0.0008, "problems")
    assert span(d) == " [4e−5, .001]" and span(d, -1.0) == " [−.001, −4e−5]"
    assert "<small>[−.001, −4e−5]</small>" in _attributed(f"X leads by .0004{span(d, -1.0)}.", [])[0]


def test_a_tiny_lead(made):
    """.0002 with intervals of +-.00005: an interval of +-.00007."""
    a, b = (
        made(n, loss, {10: {1: v}}, half=0.00005) for n, loss, v in (("a", CE, 0.0003), ("b", CL, 0.0005))
    )
    text = "Confidence-limited N = 256 is ahead at pass@1 by .0002 [.0001, .0003]"
    assert text in findings([a, b])[-1]


@pytest.mark.parametrize(
    ("half", "noise"),
    [(None, "; no interval: the scores have no intervals"), (0.2, " [.017, .583]"), (0.5, "noise")],
)
def test_the_noise_of_what_a_stage_changed(made, half, noise):
    """.1 to .4 with intervals of +-.2 is +.3 +-.283, with +-.5 it is +-.707."""
    run = made("r", None, {0: {1: 0.1}, 9: {1: 0.4}}, half, stage="rlvr")
    text = findings([run])[0]
    assert text.startswith("RLVR: from its start to its own step 9, pass@1 .100 → .400 (+.300")
    assert text.endswith(f"{noise}).")


def test_leaders_that_are_equal_or_of_unknown_noise(made):
    def last(half, first):
        runs = [made(f"{half}r{i}", CL | {"n": 2.0**i}, {10: {1: v}}, half) for i, v in enumerate(first)]
        return findings(runs)[-1]

    assert "N = 1 (.500; equal to Confidence-limited N = 2 [−.014, .014])" in last(
        0.01, (0.5, 0.5, 0.1, 0, 0)
    )
    text = last(None, (0.5, 0.4, 0.1, 0, 0))
    assert (
        "not clearly above Confidence-limited N = 2 by .100; no interval: the scores have no intervals)"
        in text
    )


def test_n_of_one_is_cross_entropy(made):
    """-log(1 - (1 - p)^1) = -log p: the effect, the controls and the base; not where p is measured."""
    falls, keeps = {10: {1: 0.1, 256: 0.8}, 20: {1: 0.2, 256: 0.5}}, {20: {1: 0.1, 256: 0.9}}
    one, other = made("a", CL | {"n": 1}, falls), made("b", CL, keeps)
    assert [loss_name(one), loss_name(other)] == ["cross_entropy", "confidence_limited"]
    assert "Controls at pass@256 (Confidence-limited N = 256 ends at .900)" in findings([other, one])[-1]
    assert (
        "The confidence-limited loss with N = 1 is cross-entropy, and compared as such: Confidence-limited"
        " N = 1." in caveats([one, other])
    )
    assert not any(
        "compared as such" in text for text in [*caveats([one]), *caveats([made("x", CE, keeps), other])]
    )
    kept = made("c", CL | {"n": 1.0, "p": "model"}, {10: {1: 0.1, 256: 0.8}, 20: {1: 0.2, 256: 0.79}})
    assert any(
        text.endswith("cannot show here: Confidence-limited N = 1 keeps pass@256.")
        for text in findings([kept, made("y", CL, {10: {1: 0.1, 256: 0.9}, 20: {1: 0.1, 256: 0.7}})])
    )
    for name, loss in (("d", {"p": "external"}), ("e", {"n": 1.5}), ("f", {"n": None}), ("g", {"n": True})):
        assert loss_name(made(name, CL | {"n": 1.0} | loss, falls)) == "confidence_limited", loss


def test_the_base_of_several_is_named(made):
    """Cross-entropy wherever it stands, also as N = 1; else the first, which is said."""
    at = {10: {1: 0.3, 64: 0.5}}
    big, mid, one, ce = (
        made(name, loss, at)
        for name, loss in (("b", CL), ("m", CL | {"n": 16.0}), ("o", CL | {"n": 1.0}), ("c", CE))
    )

    def heads(runs):
        between = [text for text in findings(runs) if text.startswith("Last checkpoints")]
        return [text.partition(": ")[0].removeprefix("Last checkpoints, these two runs") for text in between]

    limited = "Confidence-limited N ="
    assert heads([big, mid, one]) == [
        f", {limited} 256 against {limited} 1 (cross-entropy)",
        f", {limited} 16 against {limited} 1 (cross-entropy)",
    ]
    assert heads([big, ce, mid])[0] == f", {limited} 256 against Cross-entropy"
    four = made("f", CL | {"n": 4.0}, at)
    assert heads([mid, big, four])[1] == f", {limited} 4 against {limited} 16, the first listed"
    assert heads([big, mid]) == [""], "of two both are named anyway"


def test_a_noisy_middle_n(made):
    """The curves cross before N = 4, where b is clearly ahead; N = 16 is noise, and the lead is claimed from
    64 on. Where the k of the headline is noise, the others are named."""
    at = {1: 0.3, 4: 0.4, 16: 0.5, 64: 0.6, 256: 0.7}
    a = made("a", CE, {10: at}, half=0.01)
    b = made("b", CL, {10: at | {1: 0.2, 4: 0.5, 16: 0.51, 64: 0.7, 256: 0.8}}, half=0.01)
    text = findings([a, b])[-1]
    assert text.endswith(" From N = 64 on Confidence-limited N = 256 is ahead (curves cross at N ≈ 2)."), text
    c = made("c", CL, {10: at | {1: 0.2, 4: 0.5, 16: 0.51, 64: 0.7, 256: 0.71}}, half=0.01)
    text = findings([a, c])[-1]
    assert text.endswith("cross at N ≈ 2; beyond it the difference is clear only at N = 4, 64."), text
    more = {10: at | {1: 0.2, 4: 0.5, 16: 0.6, 64: 0.7, 256: 0.8, 1024: 0.81}}
    d = made("d", CL, more, half=0.01)
    e = made("e", CE, {10: at | {1024: 0.8}}, half=0.01)
    assert " From N = 4 to 256 Confidence-limited N = 256 is ahead" in findings([e, d])[-1]
