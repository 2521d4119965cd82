"""The rewards of an RLVR recipe are checked before anything is loaded: names, options, columns, gold answers."""

from __future__ import annotations

import json

import pytest

RECIPE = """
stage: rlvr
name: case
output_dir: {out}
model:
  tokenizer: "builtin:bytes"
  from_config: {{model_type: llama, options: {{hidden_size: 32, max_position_embeddings: 512}}}}
data:
  max_length: 128
  sources:
    - {{name: rows, path: {out}/rows.jsonl}}
train: {{learning_rate: 0.5, max_steps: 2, global_batch_size: 16}}
rollout: {{max_new_tokens: 64}}
rewards:
  - name: math
    options: {{mode: gsm8k}}
"""
ROW = {"prompt": "1 + 1?", "answer": "2"}


@pytest.fixture
def rlvr(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "case.yaml"
    path.write_text(RECIPE.format(out=tmp_path))
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return path


def test_a_recipe_with_rewards_passes_check(rlvr, call):
    answer = call("check", rlvr, "--json")
    assert answer.code == 0, answer
    assert json.loads(answer.out)["recipe"]["rewards"][0]["name"] == "math"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rewards.0.name=maht"], ["rewards[0]: unknown reward 'maht' (did you mean 'math'?)"]),
        (["rewards.0.options.mood=x"], ["rewards[0]: reward 'math': unknown option 'mood' (did you mean 'mode'?)"]),
        (["rewards.0.options.mode=gsm"], ["mode = 'gsm' (did you mean 'gsm8k'?)"]),
        (["rewards.0.wight=2"], ["rewards[0].wight", "did you mean 'weight'"]),
        (["rewards.0.weight=.nan"], ["rewards[0].weight"]),
        (["rewards=[]"], ["rewards is empty; name at least one"]),
        (["success={reward: maths}"], ["success.reward = 'maths' is no verifier", "did you mean 'math'"]),
        (["success={reward: math, at_least: 2}"], ["success.at_least = 2.0 must lie between 0 and 1"]),
        (["rewards=[{name: code}]"], ["rows.jsonl:1: reward 'code' needs column 'tests' or 'stdin_tests'"]),
        (["data.sources.0.columns.answer=gold"], ["data.sources[0]", "needs column 'answer'"]),
        (["rewards=[{name: posttrain.types:Nothing}]"], ["posttrain.types has no 'Nothing'"]),
    ],
)  # fmt: skip
def test_wrong_rewards(rlvr, call, overrides, words):
    call("check", rlvr, *overrides).refuses(*words)


def test_a_gold_answer_that_cannot_be_judged_names_its_row(rlvr, call, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"answer": ""}) + "\n")
    call("check", rlvr).refuses("rows.jsonl:1: reward 'math'")
