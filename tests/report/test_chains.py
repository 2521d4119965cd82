"""Sentences along a chain of stages, and stages drawn end to end."""

from __future__ import annotations

from posttrain.report import chains
from posttrain.report.differences import Place, difference
from posttrain.report.facts import headline
from posttrain.report.findings import caveats, findings
from posttrain.report.numbers import curve
from posttrain.report.page import load_runs
from posttrain.report.text import share
from posttrain.rundir.reading import RunData


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
