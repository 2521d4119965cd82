"""What the later stages add: facts and warnings by hand, sentences along a chain."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.report import chains
from posttrain.report.alerts import alerts
from posttrain.report.differences import Place, difference
from posttrain.report.facts import component_rows, components, facts, headline, sampled
from posttrain.report.findings import caveats, findings
from posttrain.report.numbers import curve, mean, trend
from posttrain.report.page import load_runs
from posttrain.report.step_plots import smoothed, smoothing
from posttrain.report.text import label, labels, share
from posttrain.report.training_figures import sections
from posttrain.rundir.reading import RunData
from tests.report import stages
from tests.rundir.written import lines

# ---- trends and facts ------------------------------------------------------------------


def test_trend_by_hand():
    """Twenty values: two at either end. (0 + 2) / 2 = 1 and (8 + 14) / 2 = 11; variances 2 and 18, so the
    error of the difference is sqrt(2/2 + 18/2) = sqrt(10), and 10 exceeds twice that. Strings and NaN are no
    values."""
    values = [0.0, 2.0, *[5.0] * 16, 8.0, 14.0]
    rows = [{"step": 10 * i, "x": v} for i, v in enumerate(values)]
    rows += [
        {"step": 999, "x": "7"},
        {"step": 1000, "x": math.nan},
        {"step": 1001, "x": True},
        {"step": 1002, "x": 10**999},
    ]
    t = trend(rows, "x")
    assert (t.first, t.last, t.steps, t.count) == (1.0, 11.0, (0, 190), 2)
    assert t.error == pytest.approx(math.sqrt(10)) and t.clear
    rows[18]["x"], rows[19]["x"] = 2.0, 6.0
    assert not trend(rows, "x").clear, "3 is more than sqrt(1 + 4), less than twice that"
    one = trend(rows[:1], "x")
    assert (one.first, one.last, one.count, one.error) == (0.0, 0.0, 1, 0.0)
    assert (
        trend(rows, "y") is None and mean(rows, "y") is None and mean(rows[:3], "x") == pytest.approx(7 / 3)
    )


@pytest.mark.slow
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=50), st.integers(0, 8))
def test_smoothing_stays_within_its_neighbours(values, half):
    found = smoothed(values, 2 * half + 1)
    assert len(found) == len(values)
    for i, v in enumerate(found):
        near = values[max(0, i - half) : i + half + 1]
        assert min(near) - 1e-9 <= v <= max(near) + 1e-9
        assert v == pytest.approx(sum(near) / len(near))


def test_few_steps_are_not_smoothed():
    assert [smoothing(n) for n in (1, 59, 60, 120, 400)] == [1, 1, 3, 7, 21]


def test_facts_of_dpo_by_hand(held):
    """Accuracy .5 + .35 t with t = 0, 1/49 ... 1: the first five average t = 2/49, the last five 47/49."""
    found = facts(held["dpo"])
    assert (
        found["accuracy"] == f"{share(0.5 + 0.35 * 2 / 49)} → {share(0.5 + 0.35 * 47 / 49)}" == ".514 → .836"
    )
    assert found["log-ratio of chosen"] == "−1.22 → −28.8" and found["margin"] == "0.0612 → 1.44"
    assert found["held-out accuracy"] == f"{share(0.5 + 0.25 * 9 / 49)} → .750"


def test_facts_of_sampling_by_hand(held):
    """Of 4: 30 prompts with 0 right, 50 with 1, 45 with 2, 35 with 3, 40 with 4: 405 of 800 completions."""
    assert facts(held["pairs"]) == {
        "prompts": "200",
        "completions": "800",
        "pairs": "120",
        "right": f"{share(405 / 800)} of the completions, 4 a prompt",
        "tokens": "chosen 31, rejected 44.2",
        "no pair from": "all right 40, all wrong 30, too few 10",
    }
    assert facts(held["difficulty"])["kept"] == "100 (25% of the prompts)"
    assert facts(held["sft"]) == {} and sampled({"unjudged": 3}) == {"not judged": "3"}
    odd = [
        {},
        {"prompts": True},
        {"success_by_count": [1]},
        {"success_by_count": [0, 0]},
        {"success_by_count": [1, "x"]},
        {"success_by_count": [3, -1]},
        {"none": [1]},
        {"none": {"a": "b"}},
        {"mean_tokens": {}},
        {"mean_tokens": {"chosen": 3, "rejected": None}},
    ]
    assert [sampled(value) for value in odd] == [{}] * 10


def test_components_by_hand(held, made):
    rows = component_rows(held["rlvr-plain"])
    assert [(r["label"], r["weight"], r["timeout"], r["highlight"]) for r in rows] == [
        ("math", "1", "0.2%", False),
        ("tags", "0.2", "0.0%", False),
    ]
    assert rows[0]["unparseable"] == "5.0%", "10 % falling to none, evenly"
    rows = [{"reward/a/b": 1.0, "reward/a/b/ms": 2.0, "reward/timeout": 0.5, "reward/a/b/error": 0.02}] * 2
    run = made("rlvr", {"rewards": [{"name": "x.y:z", "label": "timeout"}, {"name": "unused"}, 3]}, rows)
    assert components(run) == ["timeout", "a/b"], "labels may hold a slash, or be called as a status is"
    assert [(r["label"], r["error"], r["highlight"]) for r in component_rows(run)] == [
        ("timeout", "–", False),
        ("a/b", "2.0%", True),
    ]


def test_labels_say_the_controls_of_a_loss(made):
    losses = {
        "Cross-entropy": {"name": "cross_entropy", "label_smoothing": 0.0, "entropy_bonus": 0.0},
        "Cross-entropy, smoothing 0.1": {"name": "cross_entropy", "label_smoothing": 0.1},
        "Cross-entropy, entropy bonus 0.01": {"name": "cross_entropy", "entropy_bonus": 0.01},
        "Cross-entropy, smoothing 0.1, entropy bonus 0.01": {
            "name": "cross_entropy",
            "label_smoothing": 0.1,
            "entropy_bonus": 0.01,
        },
        "Confidence-limited N = 8, entropy bonus 0.5": {
            "name": "confidence_limited",
            "n": 8.0,
            "entropy_bonus": 0.5,
        },
    }
    assert labels([made("sft", {"loss": loss}, name=name) for name, loss in losses.items()]) == list(losses)


def test_labels_say_the_stage(held, made):
    names = labels(list(held.values()))
    assert names == [
        "Cross-entropy",
        "Pairs correct_incorrect",
        "Success rates",
        "DPO dpo_norm",
        "RLVR dapo, mean_std advantage",
        "RLVR dapo, pass_at_k advantage k = 8",
    ]
    twice = [
        held["sft"],
        made("dpo", {"preference": {"loss": "ipo"}}, name="a"),
        made("dpo", {"preference": {"loss": "ipo"}}, name="b"),
    ]
    assert labels(twice) == ["Cross-entropy", "a", "b"], "only those that share one go by name"
    confident = {"policy": {"loss": "grpo", "advantage": "confidence", "k": 16}}
    assert label(made("rlvr", confident)) == "RLVR grpo, confidence advantage N = 16"
    assert [label(made(stage)) for stage in ("rlvr", "dpo", "sft", "other")] == ["RLVR", "DPO", "run", "run"]


# ---- warnings --------------------------------------------------------------------------


def test_falling_chosen_replies_are_called_out(tmp_path, held):
    assert alerts([held["dpo"]]) == [
        "DPO dpo_norm: the chosen replies become less likely: their log-ratio to the reference"
        " falls −1.22 → −28.8 nats per reply (rejected −2.45 → −57.6) from step 1 to 50."
    ]
    start = (tmp_path / "sft", "step-000200")
    for name, fall in (("level", 0.0), ("rising", -30.0), ("little", 0.05)):
        assert alerts([RunData.load(stages.write_dpo(tmp_path / name, start, {}, fall))]) == [], name


def test_without_a_reference_log_probabilities_are_judged(made):
    """A fall of 2 nats in log-probabilities that scatter by 10 is noise; one of 40 is none."""
    for fall, count in ((2.0, 0), (40.0, 1)):
        rows = [
            {"logps/chosen": -90 - fall * i / 60 + 10 * (-1) ** i, "logps/rejected": -90.0} for i in range(60)
        ]
        found = alerts([made("dpo", {}, rows, f"fall-{fall}")])
        assert len(found) == count, found
    assert "their log-probability falls" in found[0]


def test_failed_checks_are_loud_above_one_percent(made):
    """1 % is quiet. Of four steps with 0, 0, 12 and 0 %: 3 % on average, at worst 12 % at step 3."""
    assert alerts([made("rlvr", {}, [{"checks_failed": 0.01}] * 3)]) == []
    rows = [
        {"checks_failed": x, "reward/math/timeout": x, "reward/math/error": 0.0, "reward/math": 1.0}
        for x in (0, 0, 0.12, 0)
    ]
    assert alerts([made("rlvr", {}, rows, "b")]) == [
        "RLVR: 3.0% of the checks failed, of math (timeout 3.0%, error 0.0%), at worst 12.0% at step 3; these"
        " completions are left out of rewards and training, so means describe only the rest."
    ]


def test_groups_that_teach_nothing(made):
    quiet = [{"groups/zero_variance": 0.5, "groups/sampled": 10, "groups/unfilled": 1}]
    assert alerts([made("rlvr", {}, quiet)]) == []
    loud = [{"groups/zero_variance": 0.75, "groups/sampled": 10, "groups/unfilled": 4}]
    first, second = alerts([made("rlvr", {}, loud, "b")])
    assert "75% of the trained groups gave no gradient" in first
    assert "left 4 groups per batch unfilled at the end (10 were sampled)" in second


@pytest.mark.parametrize("what", ["masked", "truncated"])
def test_a_sampler_apart_from_the_policy(made, what):
    quiet = [{f"sampler/{what}": 0.1, "sampler/logp_diff_mean": 0.02}]
    assert alerts([made("rlvr", {}, quiet)]) == []
    (said,) = alerts([made("rlvr", {}, [{f"sampler/{what}": 0.25, "sampler/logp_diff_mean": 0.06}], "b")])
    assert f"the correction {what} 25% of vLLM's importance weights at the end" in said
    assert "0.06 nats per token" in said


def test_what_vllm_differs_by_is_shown(made):
    row = {"sampler/logp_diff_mean": 0.02, "sampler/logp_diff_max": 0.7, "sampler/ratio_mean": 1.01}
    run = made("rlvr", {}, [row | {"sampler/masked": 0.031}])
    shown = {key: text for key, text in facts(run).items() if key.startswith("sampler")}
    assert [text.split()[0] for text in shown.values()] == ["0.02", "0.7", "1.01", "3.1%"]
    (section,) = sections([run], ["r"])
    titles = {figure["title"] for figure in section["figures"]}
    assert {"Sampler and policy apart", "Importance ratio", "Corrected"} <= titles


def test_sources_that_are_not_trained_as_they_are_mixed(made):
    """a and b are drawn alike. Quiet: 55 to 45 of the groups with a gradient; 75 to 25 in four lines; 65 to
    35 on average where lines scatter by 0.5 (standard error 0.2)."""

    def lines_of(*trained: float) -> list[dict]:
        return [
            {"share/a": 0.5, "share/b": 0.5, "trained_share/a": x, "trained_share/b": 1 - x} for x in trained
        ]

    for i, quiet in enumerate(([0.55] * 20, [0.75] * 4, [1, 0, 1, 1, 0, 0.9])):
        assert alerts([made("rlvr", {}, lines_of(*quiet), f"quiet-{i}")]) == []
    run = made("rlvr", {}, [*lines_of(0.7, 0.8, 0.75, 0.7, 0.8), {"share/a": 1.0, "share/b": 0.0}], "loud")
    assert alerts([run]) == [
        "RLVR: the sources' shares of the groups with a gradient differ from the mixture: a is 50% of the"
        " prompts, 75% of those groups; b is 50% of the prompts, 25% of those groups."
    ]
    assert facts(run)["share of a"] == "50.0% drawn, 75.0% with gradient"


def test_failed_gates_are_said(made):
    row = {
        "checkpoint": "step-000040",
        "step": 40,
        "task": "gsm8k",
        "metric": "pass@1",
        "value": 0.31,
        "against": "start",
        "reference": 0.36,
        "drop": 0.05,
        "max_drop": 0.03,
        "action": "mark",
    }
    run = made("rlvr")
    lines(run.path / "gates.jsonl", [row | {"step": 20}, row, {"task": "broken"}])
    assert alerts([RunData.load(run.path)]) == [
        "RLVR: gate failed: gsm8k/pass@1 .310 at step 40 against .360 of the start, more than .030 worse;"
        " the checkpoint is never chosen as best (2 checkpoints failed it)."
    ]


# ---- chains ----------------------------------------------------------------------------


def test_each_stage_is_told_from_its_start(held):
    runs = list(held.values())
    found = findings(runs)
    told = {text.split(": ")[0]: text for text in found}
    plain, start = held["rlvr-plain"], "step-000000"
    values = {k: [curve(plain, "arithmetic", c)[k].value for c in (start, "step-000120")] for k in (1, 128)}
    d = {
        k: difference("arithmetic", k, [Place(plain, start)], [Place(plain, "step-000120")]) for k in (1, 128)
    }
    assert d[1].low > 0 > d[128].high
    moves = [
        f"pass@{k} {share(values[k][0])} → {share(values[k][1])} ({'+' if k == 1 else ''}{share(d[k].mean)}"
        f" [{share(d[k].low)}, {share(d[k].high)}])"
        for k in (1, 128)
    ]
    assert told["RLVR dapo, mean_std advantage"] == (
        "RLVR dapo, mean_std advantage: from step 50 of DPO dpo_norm to its own step 120,"
        f" {' and '.join(moves)}."
    )
    assert "from step 200 of Cross-entropy to its own step 50" in told["DPO dpo_norm"]
    assert ", within noise)." in told["RLVR dapo, pass_at_k advantage k = 8"]
    between = [text for text in found if text.startswith("Last checkpoints")]
    assert len(between) == 1, "the two runs that start from one checkpoint, and no other pair"
    assert (
        "mean_std advantage is ahead at pass@1" in between[0] and "k = 8 is ahead at pass@128" in between[0]
    )
    assert told["Success rates"] == "Success rates: 100 kept of 400 prompts; .481 of the completions right."


def test_the_parent_stands_in_for_a_missing_step_0(chain, tmp_path):
    runs = load_runs([chain])[0]
    dpo = next(run for run in runs if run.name == "dpo")
    dpo.scores = [s for s in dpo.scores if s.step > 0]
    told = next(text for text in findings(runs) if text.startswith("DPO"))
    parent = curve(runs[0], "arithmetic", "step-000200")[1].value
    assert f"from step 200 of Cross-entropy to its own step 50, pass@1 {share(parent)} →" in told
    for s in dpo.scores:
        s.settings = "other"
    told = next(text for text in findings(runs) if "DPO dpo_norm: " in text)
    assert "from step 200" not in told, "other settings are another measurement"


def test_a_start_that_is_not_on_the_page(chain):
    run = RunData.load(chain / "rlvr-plain")
    assert findings([run])[0].startswith(
        "RLVR dapo, mean_std advantage: from step 50 of dpo to its own step 120, pass@1"
    )
    run.run["parent"] = {"init": "org/model"}
    assert "from its start to its own step 120" in findings([run])[0]
    run.run["parent"] = "runs/x"
    assert "from its start" in findings([run])[0]


def test_a_moved_pipeline_keeps_its_chain(chain, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in chain.iterdir():
        (moved / path.name).symlink_to(path)
    runs = load_runs([moved])[0]
    runs[3].run["parent"]["run"] = "/gone/chain/sft"
    runs[3].path = moved.resolve() / "dpo"
    runs[0].path = moved.resolve() / "sft"
    parent = chains.parent_of(runs[3], [runs[0], runs[3]])
    assert parent is not None and parent[0] is runs[0]


def test_stages_end_to_end(held):
    """The DPO stage starts at step 200 of the first, both RLVR stages after its 50 steps."""
    runs = list(held.values())
    assert chains.offsets(runs) == [0, 200, 200, 200, 250, 250]
    assert chains.offsets([held["rlvr-plain"]]) == [0]
    held["sft"].run["parent"] = {"run": str(held["dpo"].path), "checkpoint": "step-000050"}
    assert len(chains.offsets(runs)) == 6, "a circle ends"


def test_unscored_stages_are_told_by_what_they_logged(made):
    rows = [{"success": 0.25, "reward": 0.3}, {"success": 0.5, "reward": 0.6}]
    run = made("rlvr", {}, rows)
    assert findings([run]) == [
        "RLVR: no checkpoint scored yet; success .250 → .500, reward 0.3 → 0.6 from step 1 to 2."
    ]
    assert headline(made("dpo", name="b"), "x") is None and headline(made("pairs", name="c"), "x") is None
    assert "no step logged yet" in findings([made("rlvr", name="d")])[0]
    failed = made("pairs", name="e")
    failed.run["status"] = "failed"
    assert caveats([failed]) == ["Pairs: the run failed."], "it has no checkpoint to speak of"
