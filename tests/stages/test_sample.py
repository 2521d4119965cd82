"""The stages pairs and pass_rate on a model whose success rate is known.

A token is "1" with .4, "2" or a line break with .2 each, the end with .2; a completion is right where it
holds no "2". So its chance is the end's among end and "2", .2 / (.2 + .2) = 1/2 (24 tokens are cut off once
in 200 completions).
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from posttrain.data.prepare import build
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import load
from posttrain.recipe.schema import Data, Loss, Source
from posttrain.rollouts.pairing import STRATEGIES, NoPair
from posttrain.rollouts.records import groups_of
from tests.unigram import content, prompts, read, rollouts, run, unigram_model


@pytest.mark.slow
def test_pairs_end_to_end(write_recipe, tmp_path):
    path = write_recipe("pairs", prompts(20), pairing={"per_prompt": 2})
    made = run(path)
    recipe, rows = load(path), rollouts(made)
    groups = groups_of(rows)
    assert len(rows) == 160 and [g[0]["position"] for g in groups] == list(range(20))
    # the pairs are those of the pure function on what the run kept
    expected, none = [], []
    for group in groups:
        try:
            for pair in STRATEGIES["correct_incorrect"](group, recipe.pairing, 0):
                sides = pair.chosen.text, pair.rejected.text
                expected.append((group[0]["row"], *sides, pair.rejected.is_prefix))
        except NoPair as nothing:
            none.append(nothing.reason)
    found = read(made / "pairs.jsonl")
    assert [
        (p["row"], p["chosen"], p["rejected"], p.get("rejected_is_prefix", False)) for p in found
    ] == expected
    assert len(found) > 20 and all("2" in p["rejected"] and "2" not in p["chosen"] for p in found)
    by_place = {(r["row"], r["sample"]): r for r in rows}
    for pair in found:
        chosen, rejected = (by_place[pair["row"], pair[f"{s}_sample"]] for s in ("chosen", "rejected"))
        assert (pair["chosen"], pair["chosen_tokens"]) == (chosen["completion"], chosen["tokens"])
        assert (pair["rejected"], pair["rejected_tokens"]) == (rejected["completion"], rejected["tokens"])
        assert chosen["success"] is True and rejected["success"] is False
        assert pair["where"] == f"{tmp_path}/rows.jsonl:{pair['row'] + 1}"
        assert pair["checkpoint"] == recipe.model.init and pair["source"] == "rows"
    summary = json.loads((made / "pairs.json").read_text())
    right = [sum(r["success"] for r in g) for g in groups]
    assert summary["success_by_count"] == [right.count(c) for c in range(9)]
    counts = {"prompts": 20, "completions": 160, "pairs": len(found)}
    assert {k: summary[k] for k in counts} == counts
    assert sum(summary["none"].values()) == len(none)
    assert summary["mean_tokens"]["chosen"] == np.mean([p["chosen_tokens"] for p in found])
    # a dpo stage reads the file as it stands, and sees the ids that were sampled from
    tokenizer = load_tokenizer(str(recipe.model.init))
    source = Source(name="pairs", path=str(made / "pairs.jsonl"))
    data = Data([source], template="chatml", train_on="last", cache_dir=str(tmp_path / "cache"))
    table = build(data, Loss(), tokenizer, shape="pairs").tables[0]
    assert len(table) == len(found)
    for i, pair in enumerate(found):
        asked = tokenizer(by_place[pair["row"], 0]["prompt"], add_special_tokens=False)["input_ids"]
        for side in table[i]:
            assert side.input_ids[: np.flatnonzero(side.labels >= 0)[0]].tolist() == asked
    assert json.loads((made / "run.json").read_text())["status"] == "finished"


def test_conversations_stay_conversations(write_recipe):
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "Count."}]
    rows = [{"messages": [*talk, {"role": "assistant", "content": "1"}], "answer": "2"}] * 4
    made = run(write_recipe("pairs", rows))
    for pair in read(made / "pairs.jsonl"):
        assert pair["prompt"] == talk
        assert [m["role"] for m in (*pair["chosen"], *pair["rejected"])] == ["assistant"] * 2


@pytest.mark.slow
def test_rates_are_those_of_the_model(write_recipe, tmp_path):
    rows = [{"question": f"Q{i}", "gold": "2", "p": 0.9, "note": [i, "é"]} for i in range(40)]
    path = write_recipe("pass_rate", rows)
    sources = [{"name": "rows", "path": f"{tmp_path}/rows.jsonl", "columns": {"answer": "gold"}}]
    made = run(path, f"data.sources={json.dumps(sources)}")
    groups = groups_of(rollouts(made))
    right = {g[0]["row"]: sum(r["success"] for r in g) for g in groups}
    # every row of the source, in its order, with its own columns
    measured = read(made / "prompts.jsonl")
    new = [{"p": right[i] / 8, "n_right": right[i], "n_judged": 8} for i in range(40)]
    assert measured == [row | rate for row, rate in zip(rows, new, strict=True)]
    assert read(made / "kept.jsonl") == [row for row in measured if 2 <= row["n_right"] <= 5]
    # 320 draws of 1/2: standard deviation .028
    assert abs(np.mean([row["p"] for row in measured]) - 0.5) < 0.09
    assert json.loads((made / "pass_rate.json").read_text()) == {
        "prompts": 40,
        "completions": 320,
        "kept": len(read(made / "kept.jsonl")),
        "unjudged": 0,
        "success_by_count": [list(right.values()).count(c) for c in range(9)],
    }
    # what loss.p: external reads
    tokenizer = load_tokenizer(str(load(path).model.init))
    source = Source(name="rates", path=str(made / "prompts.jsonl"))
    source.columns.completion = "gold"
    data = Data([source], template="chatml", cache_dir=str(tmp_path / "cache"))
    table = build(data, Loss(p="external"), tokenizer).tables[0]
    assert [table[i].p for i in range(40)] == pytest.approx([r["n_right"] / 8 for r in measured])


@pytest.mark.slow
def test_a_failed_check_is_no_wrong_answer(write_recipe, monkeypatch):
    """Half of the completions hold a line break; on those the checker breaks."""
    monkeypatch.setenv("TEST_BROKEN", "\n")
    path = write_recipe("pass_rate", prompts(6))
    with pytest.raises(
        WorkError, match=r"of 32 checks failed \(broken\), more than rollout.max_failed = 0.1"
    ):
        run(path)
    made = run(path, "rollout.max_failed=1")
    groups = groups_of(rollouts(made))
    for row, group in zip(
        read(made / "prompts.jsonl"), sorted(groups, key=lambda g: g[0]["row"]), strict=True
    ):
        known = [r for r in group if "\n" not in r["completion"]]
        assert (row["n_right"], row["n_judged"]) == (sum(r["success"] for r in known), len(known))
    # a prompt of which nothing is known has no rate: it stands nowhere, and is counted
    half = [row | {"answer": "broken"} if i % 2 else row for i, row in enumerate(prompts(6))]
    path = write_recipe("pass_rate", half, "half", keep={"at_least": 0, "at_most": 8})
    monkeypatch.setenv("TEST_BROKEN", "")
    made = run(path, "rollout.max_failed=1")
    for name in ("prompts", "kept"):
        assert [row["prompt"] for row in read(made / f"{name}.jsonl")] == [f"Count {i}." for i in (0, 2, 4)]
    summary = json.loads((made / "pass_rate.json").read_text())
    assert (summary["prompts"], summary["unjudged"], sum(summary["success_by_count"])) == (6, 3, 3)
    monkeypatch.setenv("TEST_BROKEN", "\n")
    # repaired: the chunk whose checks failed is sampled and judged anew, by the same command
    again = write_recipe("pass_rate", prompts(6), name="again")
    with pytest.raises(WorkError):
        run(again)
    monkeypatch.delenv("TEST_BROKEN")
    assert all(row["n_judged"] == 8 for row in read(run(again) / "prompts.jsonl"))


@pytest.mark.slow
def test_the_first_pit_is_the_first_line_with_a_two(write_recipe):
    """After it nothing is right any more; before it a continuation is right with 1/2, so 24 of them not once
    in 10^7."""
    path = write_recipe("pairs", prompts(12), pairing={"strategy": "first_pit", "continuations": 24})
    made = run(path)
    found = read(made / "pairs.jsonl")
    whole = {(r["row"], r["sample"]): r["completion"] for r in rollouts(made)}
    assert len(found) >= 8
    for pair in found:
        said = whole[pair["row"], pair["rejected_sample"]]
        lines = said.splitlines(keepends=True)
        upto = next(i for i, line in enumerate(lines) if "2" in line)
        pit = "".join(lines[: upto + 1])
        assert pair["rejected"].rstrip() == pit.rstrip()  # blank lines belong to the step before
        assert pair.get("rejected_is_prefix", False) == (pair["rejected"] != said)
        if pair["rejected"] != said:
            assert pair["rejected_tokens"] == len(pair["rejected"])  # bytes
    assert {p.get("rejected_is_prefix") for p in found} == {True, None}
    before = content(made)
    for file in (*made.glob("parts/*"), *made.glob("pairs.*")):
        file.unlink()
    assert run(path) == made and content(made) == before  # the continuations are the same again


def test_the_teacher_goes_on_before_the_first_line_with_a_two(write_recipe, tmp_path):
    teacher = unigram_model(tmp_path / "teacher", {"3": 0.5, "\n": 0.1})
    pairing = {"strategy": "cross_model", "continuations": 3, "teacher": str(teacher)}
    made = run(write_recipe("pairs", prompts(10), pairing=pairing))
    found = read(made / "pairs.jsonl")
    whole = {(r["row"], r["sample"]): r["completion"] for r in rollouts(made)}
    none = json.loads((made / "pairs.json").read_text())["none"]
    assert len(found) >= 8 and len(found) + sum(none.values()) == 10
    assert set(none) <= {"all_right", "no_correction"}  # the teacher never says "2", but may say nothing
    for pair in found:
        assert pair["rejected"] == whole[pair["row"], pair["rejected_sample"]]
        lines = pair["rejected"].splitlines(keepends=True)
        good = "".join(lines[: next(i for i, line in enumerate(lines) if "2" in line)]).strip()
        assert pair["chosen"].strip().startswith(good) and "2" not in pair["chosen"]
        assert set(pair["chosen"].strip()[len(good) :]) <= set("3\n")
        assert pair["chosen_sample"] is None and pair["chosen_reward"] == 1.0
        assert pair["chosen_tokens"] == len(pair["chosen"]) + 1 and pair["teacher"] == str(teacher)


def test_what_is_refused(write_recipe, tmp_path):
    path = write_recipe("pairs", prompts(4))
    run(path)
    with pytest.raises(RequestError, match=r"(?s)another recipe.*rollout.temperature: 1.0 -> 0.7"):
        run(path, "rollout.temperature=0.7")
    write_recipe("pairs", prompts(5))
    with pytest.raises(RequestError, match="its sources have changed since it began"):
        run(path)
    assert json.loads((tmp_path / "runs/made/run.json").read_text())["status"] == "finished"
    with pytest.raises(RequestError, match="pairing.teacher: .*no such run or path"):
        run(path, "name=t", "pairing.strategy=cross_model", "pairing.teacher=runs/none")
    with pytest.raises(
        RequestError, match="rollout.backend = vllm_colocate: the pairs stage samples only with transf"
    ):
        load(path, ["rollout.backend=vllm_colocate"])
    # nothing to train on is no success; what was counted says why
    easy = [row | {"answer": "9"} for row in prompts(4)]
    path = write_recipe("pairs", easy, "easy")
    with pytest.raises(
        WorkError, match="0 pairs from 4 prompts; prompts without a pair: 4 all_right: .*nothing to train on"
    ):
        run(path)
    assert json.loads((tmp_path / "runs/easy/pairs.json").read_text())["none"] == {"all_right": 4}
    assert json.loads((tmp_path / "runs/easy/run.json").read_text())["status"] == "failed"
