"""Seeds of a recipe as one side: who belongs together, what is compared over seeds, what is said of it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import yaml

from posttrain.evaluate.seeds import seeds_difference, seeds_paired
from posttrain.report.differences import Place, difference, difference_of_changes
from posttrain.report.findings import caveats, findings
from posttrain.report.sides import differing, seed, sides
from posttrain.rundir.reading import RunData

CE, CL = {"name": "cross_entropy", "n": 1.0}, {"name": "confidence_limited", "n": 256.0}


@pytest.fixture
def made(tmp_path, tables):
    """made(name, recipe, {step: probabilities of the problems}) -> RunData, of which pass@1 and @256 are
    known."""

    def make(name, recipe, steps, **info):
        path, scores = tmp_path / name, []
        for step, ps in steps.items():
            rows = [{"id": str(i), "logp": math.log(p)} for i, p in enumerate(ps)]
            tables["lines"](path / "samples" / f"step-{step:06d}" / "t.jsonl", rows)
            for k in (1, 256):
                value = float(np.mean(1 - (1 - np.array(ps)) ** k))
                scores.append(tables["score"](f"step-{step:06d}", "t", f"pass@{k}", value, len(ps), 0.01))
        tables["lines"](path / "scores.jsonl", scores)
        (path / "run.json").write_text(
            json.dumps({"name": name, "status": "finished", "stage": "sft"} | info)
        )
        (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return RunData.load(path)

    return make


def of(loss: dict, number: int, **more) -> dict:
    return {"stage": "sft", "name": f"x-{number}", "loss": loss, "train": {"seed": number} | more}


def drawn(rng, mean: float, problems: int = 60) -> list[float]:
    return [*rng.beta(40 * mean, 40 * (1 - mean), problems)]


def test_who_is_a_side(made):
    """Name, output, evaluation and seed may differ; the rate may not, nor may a seed come twice."""
    ps = [0.1, 0.2]
    a = [made(f"a{i}", of(CE, i) | {"evaluate": {"at_start": bool(i)}}, {5: ps}) for i in range(3)]
    b = made("b", of(CE, 0, learning_rate=1.0), {5: ps})
    again = made("again", of(CL, 1), {5: ps}), made("once", of(CL, 1), {5: ps})
    unknown = made("c", {}, {5: ps}), made("d", {}, {5: ps})
    found = [[run.name for run in side.runs] for side in sides([*a, b, *again, *unknown])]
    assert found == [["a0", "a1", "a2"], ["b"], ["again"], ["once"], ["c"], ["d"]]
    assert [seed(run) for run in (a[2], unknown[0])] == [2, None]
    assert differing(a[0], a[1]) == [] and differing(a[0], b) == ["train.learning_rate"]
    assert [side.title for side in sides([*a, again[0]])] == [
        "Cross-entropy (3 seeds)",
        "Confidence-limited N = 256",
    ]
    assert [side.label for side in sides([*a, b])] == [
        "Cross-entropy, no learning_rate",
        "Cross-entropy, learning_rate 1.0",
    ]


def test_a_stage_that_starts_from_the_seeds_of_a_side_is_a_side(made, tmp_path):
    first = [made(f"sft-{i}", of(CE, i), {5: [0.1, 0.2]}) for i in range(2)]
    model = [{"model": {"init": f"{tmp_path}/sft-{i}@best:t/pass@1"}} for i in range(2)]
    then = [made(f"then-{i}", of(CL, i) | model[i], {5: [0.1, 0.2]}) for i in range(2)]
    assert [len(side.runs) for side in sides([*first, *then])] == [2, 2]
    assert [len(side.runs) for side in sides(then)] == [1, 1], "from runs that the page does not know"
    (tmp_path / "then-1" / "recipe.yaml").write_text(
        yaml.safe_dump(of(CL, 1) | {"model": {"init": f"{tmp_path}/sft-1@step-000003"}})
    )
    then[1] = RunData.load(tmp_path / "then-1")
    assert [len(side.runs) for side in sides([*first, *then])] == [2, 1, 1], "from another checkpoint"


def test_intervals_are_over_seeds_only_where_both_sides_have_several(made):
    rng = np.random.default_rng(0)
    a = [made(f"a{i}", of(CE, i), {5: drawn(rng, 0.2), 9: drawn(rng, 0.3)}) for i in range(3)]
    b = [made(f"b{i}", of(CL, i), {5: drawn(rng, 0.4), 9: drawn(rng, 0.5)}) for i in range(3)]

    def at(runs, step):
        return [Place(run, f"step-{step:06d}") for run in runs]

    def table(runs, step):
        return np.array([[math.exp(r["logp"]) for r in run.samples(f"step-{step:06d}", "t")] for run in runs])

    d = difference("t", 1, at(a, 9), at(b, 9))
    expected = seeds_difference(table(a, 9), table(b, 9))
    assert (d.mean, d.low, d.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert d.over == "seeds" and d.clear
    change = difference("t", 1, at(a, 5), at(a, 9))
    expected = seeds_paired(table(a, 5), table(a, 9))
    assert (change.mean, change.low) == pytest.approx((expected.value, expected.low))
    assert change.over == "seeds"
    one = difference("t", 1, at(a[:1], 9), at(b, 9))
    assert one.over == "problems", "a single run knows nothing of its seed"
    double = difference_of_changes("t", 1, (at(a, 5), at(a, 9)), (at(b, 5), at(b, 9)))
    moved = (table(b, 9) - table(b, 5)).mean() - (table(a, 9) - table(a, 5)).mean()
    assert double.mean == pytest.approx(moved) and double.over == "seeds"


def test_the_order_of_problems_does_not_matter_and_other_problems_are_not_paired(made, tmp_path, tables):
    a, b = made("a", of(CE, 0), {5: [0.1, 0.5, 0.3] * 8}), made("b", of(CL, 0), {5: [0.2, 0.6, 0.4] * 8})
    file = tmp_path / "b" / "samples" / "step-000005" / "t.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    places = [Place(a, "step-000005")], [Place(b, "step-000005")]
    before = difference("t", 1, *places)
    assert (before.mean, before.over) == (pytest.approx(0.1), "problems")
    tables["lines"](file, rows[::-1])
    turned = difference("t", 1, places[0], [Place(RunData.load(tmp_path / "b"), "step-000005")])
    assert (turned.low, turned.high) == pytest.approx((before.low, before.high))
    tables["lines"](file, [row | {"id": f"other {row['id']}"} for row in rows])
    other = difference("t", 1, places[0], [Place(RunData.load(tmp_path / "b"), "step-000005")])
    assert (other.low, other.clear, other.reason) == (None, None, "no samples of the same problems")


def test_what_is_said_of_one_run_and_of_three_seeds(made):
    """The same numbers: of one run a side the sentence names runs; of three seeds, the recipes."""
    rng = np.random.default_rng(1)
    a = [made(f"a{i}", of(CE, i), {5: drawn(rng, 0.02), 9: drawn(rng, 0.05)}) for i in range(3)]
    b = [made(f"b{i}", of(CL, i), {5: drawn(rng, 0.02), 9: drawn(rng, 0.2)}) for i in range(3)]
    one = findings([a[0], b[0]])
    assert one[2].startswith(
        "Last checkpoints, these two runs: Confidence-limited N = 256 is ahead at pass@1"
    )
    assert "every curve is one training run" in caveats([a[0], b[0]])[0]
    three = findings([*a, *b])
    assert three[0].startswith("Cross-entropy (3 seeds): pass@256")
    assert three[2].startswith("Last checkpoints, 3 seeds a side: Confidence-limited N = 256 leads pass@1")
    assert "where a sentence names seeds, over problems and seeds" in caveats([*a, *b])[0]
    mixed = findings([a[0], *b])
    assert mixed[2].startswith(
        "Last checkpoints, one run of Cross-entropy and the mean of Confidence-limited N = 256 (3 seeds),"
        " over problems alone: "
    )
    assert " leads " not in mixed[2]


def test_seeds_that_disagree_are_no_lead(made):
    """Problems alone would call it: each pair of runs differs clearly, to both sides."""
    rng = np.random.default_rng(2)
    means = {"a": (0.2, 0.4, 0.3), "b": (0.42, 0.2, 0.31)}
    a, b = (
        [made(f"{name}{i}", of(loss, i), {9: drawn(rng, m, 300)}) for i, m in enumerate(means[name])]
        for name, loss in (("a", CE), ("b", CL))
    )
    for pair in zip(a[:2], b[:2], strict=True):
        assert "no clear difference" not in findings(pair)[-1].partition(";")[0]
    text = findings([*a, *b])[-1]
    assert "no clear difference between Cross-entropy and Confidence-limited N = 256 at pass@1" in text


def test_too_few_problems_say_nothing(made):
    """Five problems, each clearly better: no interval, so neither a lead nor noise."""
    a, b = made("a", of(CE, 0), {9: [0.1] * 5}), made("b", of(CL, 0), {9: [0.4] * 5})
    text = "whether Cross-entropy and Confidence-limited N = 256 differ at pass@1 is not known (too few"
    assert text in findings([a, b])[-1]
    assert "noise" not in findings([a, b])[-1]


def test_runs_that_measured_different_things_are_not_compared(made, tmp_path, tables):
    task = {"evaluate": {"tasks": [{"name": "t", "limit": None}]}}
    a = made("a", of(CE, 0) | task, {9: [0.1] * 20})
    task["evaluate"]["tasks"][0]["limit"] = 10
    b = made("b", of(CL, 0) | task, {9: [0.4] * 10})
    for score in b.scores:
        score.settings = "other-1"
    found = findings([a, b])
    assert found[0].startswith("t (no limit): Cross-entropy") and found[1].startswith("t (limit 10): Conf")
    assert found[2:] == [
        "t: runs that were scored on other problems or with other settings are not compared: t (no limit);"
        " t (limit 10)."
    ]


def test_a_rise_is_no_clearer_than_the_same_fall(made):
    """One problem of 60 flips: in either direction 1/60, which is within noise, over two seeds too."""
    low = {n: [1e-9] * 60 for n in range(2)}
    high = {n: [0.999 if i == 7 else 1e-9 for i in range(60)] for n in range(2)}
    runs = [made(f"a{n}", of(CE, n), {5: low[n], 9: high[n]}) for n in range(2)]
    for seeds in (1, 2):
        before, after = ([Place(run, f"step-{step:06d}") for run in runs[:seeds]] for step in (5, 9))
        rise, fall = difference("t", 1, before, after), difference("t", 1, after, before)
        assert (rise.low, rise.high) == pytest.approx((-fall.high, -fall.low))
        assert rise.clear is fall.clear is False and rise.p == pytest.approx(fall.p) and rise.p > 0.05


def test_runs_that_are_loaded_twice_are_the_same_seeds(made, tmp_path):
    """As `posttrain compare` loads each side: seeds that are far apart, each .15 better."""
    rng, base = np.random.default_rng(3), (0.2, 0.5, 0.8)
    for n, m in enumerate(base):
        ps = np.array(drawn(rng, m, 40)).clip(0.01, 0.84)
        made(f"a{n}", of(CE, n), {5: [*ps], 9: [*(ps + 0.15)]})
    one, two = ([RunData.load(tmp_path / f"a{n}") for n in range(3)] for _ in range(2))
    d = difference("t", 1, [Place(r, "step-000005") for r in one], [Place(r, "step-000009") for r in two])
    assert (d.over, d.clear) == ("seeds", True) and d.high - d.low < 0.2, "apart by .6, as independent ones"


def test_the_order_of_seeds_does_not_matter(made):
    """Seeds that are far apart, each .15 better: paired by run, the interval is narrow."""
    rng, runs = np.random.default_rng(3), []
    for n, m in enumerate((0.2, 0.5, 0.8)):
        ps = np.array(drawn(rng, m, 40)).clip(0.01, 0.84)
        runs.append(made(f"a{n}", of(CE, n), {5: [*ps], 9: [*(ps + 0.15)]}))
    before, after = ([Place(run, f"step-{step:06d}") for run in runs] for step in (5, 9))
    d, turned = difference("t", 1, before, after), difference("t", 1, before, after[::-1])
    assert (turned.low, turned.high) == pytest.approx((d.low, d.high)) and d.high - d.low < 0.2
    a, b = (before, after), (after[::-1], before[1:] + before[:1])
    changes, same = difference_of_changes("t", 1, a, b), difference_of_changes("t", 1, a, (after, before))
    assert (changes.low, changes.high) == pytest.approx((same.low, same.high))


def test_seeds_that_end_at_different_steps_say_so(made):
    """The last checkpoint that both seeds of a have is step 9, although one goes on to 20."""
    rng = np.random.default_rng(4)
    first, second = {5: drawn(rng, 0.2), 9: drawn(rng, 0.1)}, {5: drawn(rng, 0.2), 9: drawn(rng, 0.1)}
    a = [made("a0", of(CE, 0), first), made("a1", of(CE, 1), second | {20: drawn(rng, 0.5)})]
    b = [made(f"b{i}", of(CL, i), {9: drawn(rng, 0.3), 20: drawn(rng, 0.3)}) for i in range(2)]
    text = next(text for text in findings([*a, *b]) if "2 seeds a side" in text)
    assert text.startswith(
        "Step 9 of Cross-entropy (2 seeds) and step 20 of Confidence-limited N = 256 (2 seeds), 2 seeds a"
        " side:"
    )
    said = (
        "Cross-entropy (2 seeds): its seeds were scored on t up to different steps (9, 20); step 9, the last"
        " that all have, is compared."
    )
    assert said in caveats([*a, *b]) and not any("different steps" in text for text in caveats(b))
    more = [made(f"f{i}", of({"name": "focal", "exponent": float(i)}, 0), {9: [0.1] * 60}) for i in range(3)]
    told = findings([*a, *b, *more])
    assert any(text.startswith("Last checkpoints that all seeds of a side have: ") for text in told)


def test_problems_without_a_value_are_left_out_on_both_sides(made, tmp_path, tables):
    """Equal answers; in a, the checks of 20 wrong ones failed: no difference, on the 40 that both have."""
    a, b = made("a", of(CE, 0), {5: [0.5] * 60}), made("b", of(CL, 0), {5: [0.5] * 60})
    for run, judged in ((a, 40), (b, 60)):
        rows = [
            {"id": str(i), "completions": [{"value": (1.0 if i < 30 else 0.0) if i < judged else None}]}
            for i in range(60)
        ]
        tables["lines"](run.path / "samples" / "step-000005" / "t.jsonl", rows)
        scores = [tables["score"]("step-000005", "t", "pass@1", 30 / judged, judged, 0.12)]
        tables["lines"](run.path / "scores.jsonl", scores)
    a, b = RunData.load(a.path), RunData.load(b.path)
    d = difference("t", 1, [Place(a, "step-000005")], [Place(b, "step-000005")])
    assert (d.mean, d.clear, d.problems, d.left_out) == (0.0, False, 40, 20)
    assert "on 40 of 60 problems" in findings([a, b])[-1]
