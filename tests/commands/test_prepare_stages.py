"""`posttrain prepare` of other stages than sft, and of pipelines; lengths as in test_prepare.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import unigram
from tests.commands.prepared import PROMPTS, facts_of, tables, write


def test_dpo(call, plain_recipe, tmp_path):
    row = {"prompt": "ab", "chosen": "cde", "rejected": "f", "rejected_is_prefix": False, "id": 1}
    rows = [row] * 8
    same = {"prompt": "ab", "chosen": "c", "rejected": "c"}
    path = write(tmp_path / "pairs.jsonl", [*rows, same])
    given = ("stage=dpo", f"data.sources.0.path={path}", "data.max_drop_share=0.2")
    facts = facts_of(call("prepare", plain_recipe, *given, "--json"))
    (source,) = facts["sources"]
    # sides of 21 + 5 and 21 + 3 tokens, 4 and 2 trained
    assert (source["rows_kept"], source["tokens"], source["trained_tokens"]) == (8, 8 * 50, 8 * 6)
    assert source["dropped"] == {"equal_pair": 1} and source["unused"] == {"id": 8}
    assert source["lengths"]["bins"] == [[24, 24, 8], [25, 25, 0], [26, 26, 8]]
    answer = call("prepare", plain_recipe, *given)
    assert "lengths of rows: 16 sides of pairs, 24 to 26 tokens, median 25" in answer.out
    assert "prepared: 8 pairs, 400 tokens (of which 48 trained), 5 steps\n" in answer.out
    rows = [{"prompt": "ab", "completion": "cde", "label": i % 2 == 0} for i in range(8)]
    write(path, rows)
    answer = call("prepare", plain_recipe, *given, "preference.loss=kto")
    assert answer.code == 0 and "prepared: 8 rows, 208 tokens (of which 32 trained)" in answer.out, answer


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    """`prompts(stage)`: a recipe on ten prompts of 19 + 6 tokens."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "prompts.jsonl", [{"prompt": "1 + 1?", "answer": "2", "note": 1}] * 10)

    def make(stage: str, more: str = "") -> Path:
        path = tmp_path / "case.yaml"
        head = PROMPTS.format(stage=stage, out=tmp_path, rows="prompts.jsonl")
        path.write_text(head + "rollout: {num_generations: 8, max_new_tokens: 64}\n" + more)
        return path

    return make


def test_rlvr(call, prompts):
    path = prompts("rlvr", "train: {learning_rate: 0.5, num_train_epochs: 2, global_batch_size: 16}\n")
    answer = call("prepare", path)
    assert answer.code == 0, answer
    assert "trained" not in answer.out.splitlines()[0]
    assert "lengths of rows: 10 prompts, 25 to 25 tokens" in answer.out
    # 2 epochs x 10 prompts x 8 completions / 16
    assert "prepared: 10 prompts, 250 tokens, 10 steps\n" in answer.out
    facts = facts_of(call("prepare", path, "--json"))
    assert facts["examples_total"] == 20 and facts["sources"][0]["repeats"] == 2.0
    assert facts["sources"][0]["unused"] == {}  # rewards read every column


def test_rows_of_prompts_are_shown_with_their_answer(call, prompts):
    """Nothing of a prompt is trained, so that there is nothing to count and no legend."""
    path = prompts("rlvr", "train: {learning_rate: 0.5, num_train_epochs: 2, global_batch_size: 16}\n")
    answer = call("check", path, "--rows", "1")
    assert answer.code == 0, answer
    assert "prompt of 25 tokens; the answer that rewards see: 2\n" in answer.out
    assert "trained" not in answer.out.partition("source rows")[2] and "context" not in answer.out
    (row,) = json.loads(call("check", path, "--rows", "1", "--json").out)["rows"]
    assert (row["answer"], row["tokens"]) == ("2", 25)
    answer = call("check", path, "--rows", "1", "data.sources.0.columns.answer=note")
    assert "the answer that rewards see: 1\n" in answer.out
    rows = [{"prompt": "1 + 1?", "answer": said} for said in ("2", None)]
    write(path.parent / "prompts.jsonl", rows)
    assert "dropped: no_answer: column 'answer' is empty\n" in call("check", path, "--rows", "2").out
    rows[1]["rewards"] = [{"name": "math", "answer": "2"}]
    write(path.parent / "prompts.jsonl", rows)
    assert "prompt of 25 tokens; no answer for the rewards\n" in call("check", path, "--rows", "2").out


@pytest.mark.parametrize("stage", ["pairs", "pass_rate"])
def test_stages_that_sample(call, prompts, stage):
    answer = call("prepare", prompts(stage), "max_prompts=7")
    assert answer.code == 0, answer
    assert "prepared: 10 prompts, 250 tokens, 7 prompts x 8 completions to sample\n" in answer.out


@pytest.mark.slow
def test_a_stage_that_samples_finds_its_table(write_recipe, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_recipe("pass_rate", unigram.prompts(6))
    facts = facts_of(call("prepare", path, "--json"))
    made = tables(tmp_path)
    run = unigram.run(path)
    assert tables(tmp_path) == made
    assert json.loads((run / "run.json").read_text())["data_fingerprint"] == facts["fingerprint"]
    write(tmp_path / "rows.jsonl", unigram.prompts(7))
    answer = call("prepare", path)
    answer.refuses(f"{run}: its sources have changed since it began: source 'rows': 6 -> 7 rows")


PIPELINE = """\
pipeline: both
stages:
  - {name: one, recipe: case.yaml}
  - {name: two, recipe: case.yaml, overrides: [model.init=one]}
  - {name: three, recipe: case.yaml, overrides: [data.sources.0.path=one/made.jsonl]}
"""


@pytest.mark.slow
def test_pipeline(call, recipe, few, tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(PIPELINE)
    answer = call("prepare", path)
    assert answer.code == 0, answer
    assert answer.out.count("prepared: 48 rows") == 1
    assert "rows: known once runs/both/one has written its tokenizer" in answer.out
    assert "rows: known once runs/both/one/made.jsonl is written" in answer.out
    facts = facts_of(call("prepare", path, "--json"))
    assert [list(s)[-1] for s in facts["stages"].values()] == ["refused", "waits_for", "waits_for"]
    assert facts["stages"]["one"]["refused"] is None

    assert call("run", recipe, "name=one", "output_dir=runs/both").code == 0
    write(tmp_path / "runs" / "both" / "one" / "made.jsonl", [{"prompt": "ab", "completion": "cde"}] * 19)
    answer = call("prepare", path)
    assert answer.code == 0, answer
    assert answer.out.count("prepared: 48 rows") == 2 and answer.out.count("prepared: 19 rows") == 1


def test_every_stage_that_would_refuse_is_named(call, plain_recipe, few, tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(
        "pipeline: both\nstages:\n  - {name: one, recipe: case.yaml}\n"
        "  - name: two\n    recipe: case.yaml\n"
        f"    overrides: [data.sources.0.path={few}, data.max_drop_share=0.01]\n"
        "  - {name: three, recipe: case.yaml, overrides: [data.sources.0.max_repeats=0.5]}\n"
    )
    answer = call("prepare", path)
    answer.refuses(
        f"{path}: stage 'two': source 'rows': 1 of 20 rows",
        f"{path}: stage 'three': data.sources[0].max_repeats",
    )
    assert answer.out.count("prepared: ") == 1 and "stage 'one'" not in answer.err
