"""The sentences: computed from the numbers, and honest where the expected effect is absent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from posttrain.report.comparison import attempts
from posttrain.report.findings import caveats, findings
from posttrain.report.story import page_title
from posttrain.report.text import labels, share
from posttrain.rundir.reading import RunData


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
    assert "no clear difference between" in found[-1] and "only scored checkpoint" in found[0]
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


def test_share():
    values = [share(v) for v in (0.0, 0.0714, 0.9999, 1.0, -0.329, -0.0001)]
    assert values == [".000", ".071", "1.000", "1.000", "−.329", ".000"]
