"""Warnings about runs, each with its threshold."""

from __future__ import annotations

import pytest

from posttrain.report.alerts import alerts
from posttrain.report.facts import facts
from posttrain.report.training_figures import sections
from posttrain.rundir.reading import RunData
from tests.report import stages
from tests.rundir.written import lines


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
