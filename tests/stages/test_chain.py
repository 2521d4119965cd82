"""A pipeline through all stages on GSM8K's own rows: SFT -> pairs -> DPO -> RLVR, each a process, each from
the one before.

Accuracy is near zero (the model is random but for a few steps); the way is what counts: lineage, files,
verdicts of all components, one report, and nothing done twice.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from posttrain.base.files import read_json, read_jsonl
from posttrain.cli import main

COMMON = """\
data:
  template: chatml
  max_length: 480
  cache_dir: {out}/cache
  sources:
"""
REWARDS = """\
rewards:
  - {name: math, options: {mode: gsm8k}}
  - {name: length_target, weight: 0.1, options: {target: 12, unit: tokens}}
  - {name: repetition, weight: 0.5}
rollout: {num_generations: 4, max_new_tokens: 24, batch_size: 32}
"""
TRAIN = """\
train: {{learning_rate: {rate}, global_batch_size: {batch}, per_device_train_batch_size: 4, max_steps: 2,
  logging_steps: 1,
        report_to: []}}
evaluate:
  at_start: false
  tasks: [{{name: gsm8k, path: {data}/gsm8k/test.jsonl, limit: 2, samples: 2, k: [1, 2], max_new_tokens: 8}}]
"""
MODEL = """\
model:
  tokenizer: "builtin:bytes"
  from_config: {model_type: llama, options: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
    num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 512}}
"""
PIPELINE = """\
pipeline: chain
output_dir: {out}
parallel: 2
stages:
  - {{name: sft, recipe: sft.yaml}}
  - {{name: pairs, recipe: pairs.yaml}}
  - {{name: dpo, recipe: dpo.yaml}}
  - {{name: rlvr, recipe: rlvr.yaml}}
"""


@pytest.fixture
def chain(tmp_path, data_dir):
    """The pipeline's file, its recipes beside it."""
    common = COMMON.format(out=tmp_path)
    rows = tmp_path / "rows.jsonl"  # short ones of them: all would cost more time than the stages
    with open(data_dir / "gsm8k" / "train.jsonl") as file:
        rows.write_text("".join(itertools.islice((r for r in file if len(r) < 420), 30)))
    prompts = f"    - {{name: gsm8k, path: {rows}, columns: {{prompt: question"

    def train(rate: float, batch: int) -> str:
        return TRAIN.format(rate=rate, batch=batch, data=data_dir)

    files = {
        "sft": MODEL + common + prompts + ", completion: answer}}\n" + train(1e-3, 8),
        "pairs": "model: {init: sft}\n"
        + common
        + prompts
        + "}}\n"
        + REWARDS
        + "pairing: {strategy: best_worst}\nmax_prompts: 12\n",
        "dpo": 'model: {init: "sft@best:gsm8k/pass@1"}\n'
        + common
        + "    - {name: pairs, path: pairs/pairs.jsonl}\n"
        + train(1e-3, 8),
        "rlvr": "model: {init: dpo}\n" + common + prompts + "}}\n" + REWARDS + train(1e-3, 16),
    }
    for stage, text in files.items():
        (tmp_path / f"{stage}.yaml").write_text(f"stage: {stage}\nname: {stage}\n{text}")
    path = tmp_path / "pipeline.yaml"
    path.write_text(PIPELINE.format(out=tmp_path))
    return path


def run(path, environment, *words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "posttrain.cli", *words, str(path)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, cwd=path.parent
    )


@pytest.mark.slow
def test_gsm8k_through_all_stages(chain, environment, capsys):
    assert main(["check", str(chain)]) == 0
    assert "made by a stage" in capsys.readouterr().out
    done = run(chain, environment, "run")
    root = chain.parent / "chain"
    logs = "".join(file.read_text()[-1500:] for file in root.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs

    info = {stage: read_json(root / stage / "run.json") for stage in ("sft", "pairs", "dpo", "rlvr")}
    assert {stage: about["status"] for stage, about in info.items()} == dict.fromkeys(info, "finished")
    parents = {stage: (about.get("parent") or {}).get("run") for stage, about in info.items()}
    assert parents == {
        "sft": None,
        "pairs": str(root / "sft"),
        "dpo": str(root / "sft"),
        "rlvr": str(root / "dpo"),
    }

    pairs = read_jsonl(root / "pairs" / "pairs.jsonl")
    summary = read_json(root / "pairs" / "pairs.json")
    assert summary["prompts"] == 12 and summary["completions"] == 48
    assert len(pairs) == summary["pairs"] > 4
    assert all(p["chosen_reward"] > p["rejected_reward"] for p in pairs)
    mixture = read_json(root / "dpo" / "mixture.json")["sources"][0]
    assert (mixture["rows_kept"], mixture["dropped"]) == (len(pairs), {})

    rollouts = [
        row for step in (1, 2) for row in read_jsonl(root / "rlvr" / "rollouts" / f"step-{step:06d}.jsonl")
    ]
    assert len(rollouts) == 32
    assert [r["position"] for r in rollouts[::4]] == list(range(8)), "each prompt once"
    assert all(set(r["components"]) == {"math", "length_target", "repetition"} for r in rollouts)
    assert all(r["answer"].count("####") == 1 for r in rollouts)
    logged = read_jsonl(root / "rlvr" / "metrics.jsonl")
    for name in ("reward/math", "reward/length_target", "reward/repetition", "success", "entropy"):
        assert all(name in row for row in logged), name
    scored = {r["checkpoint"] for r in read_jsonl(root / "rlvr" / "scores.jsonl")}
    assert scored == {"step-000002"}
    page = (root / "report.html").read_text()
    assert all(f"<td>{stage}</td>" in page for stage in info)

    # the same command again: every stage is finished, nothing is sampled or trained
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.jsonl")}
    again = run(chain, environment, "run")
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*.jsonl")} == before
    capsys.readouterr()
    assert main(["show", str(root / "rlvr"), "--rollouts", "--json"]) == 0
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 32
