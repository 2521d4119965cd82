"""The README's own command on real data: GSM8K, two processes over gloo, every checkpoint scored."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from posttrain.base.files import read_jsonl


@pytest.mark.slow
def test_accelerate_launch_on_gsm8k(root, data_dir, environment, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    overrides = [
        "train.learning_rate=1e-5",
        "train.num_train_epochs=null",
        "train.max_steps=4",
        "train.logging_steps=2",
        "train.global_batch_size=8",
        "train.per_device_train_batch_size=2",
        "train.log_samples=true",
        "model.from_config.options.hidden_size=64",
        "model.from_config.options.num_hidden_layers=2",
        "checkpoints.save_steps=2",
        "checkpoints.keep_last=1",
        "evaluate.heldout.max_examples=16",
        "evaluate.heldout.every_steps=2",
        "evaluate.tasks.0.limit=6",
        "evaluate.tasks.0.samples=4",
        "evaluate.tasks.0.max_new_tokens=8",
        f"output_dir={tmp_path}",
        "train.report_to=[]",
    ]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--main_process_port",
        "0",
        "--config_file",
        str(root / "launch" / "cpu2.yaml"),
        "-m",
        "posttrain.sft",
        str(root / "recipes" / "gsm8k-sft.yaml"),
        *overrides,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "gsm8k-sft"
    info = json.loads((run / "run.json").read_text())
    assert (info["status"], info["world_size"], info["engine"]) == ("finished", 2, "ddp")

    mixture = json.loads((run / "mixture.json").read_text())
    (source,) = mixture["sources"]
    assert (source["rows_read"], source["rows_kept"], source["dropped"]) == (7473, 7467, {"overlong": 6})
    assert "source 'gsm8k': 7,467 of 7,473 rows kept; 6 overlong (0.08%)" in done.stderr
    assert mixture["examples_per_epoch"] == 7467 - round(0.02 * 7467)

    seen = {(r["step"], r["rank"]): {tuple(i) for i in r["ids"]} for r in read_jsonl(run / "samples.jsonl")}
    assert set(seen) == {(s, r) for s in (1, 2, 3, 4) for r in (0, 1)}
    assert len(set().union(*seen.values())) == 32, "four steps of eight rows, none seen twice"

    scores = read_jsonl(run / "scores.jsonl")
    assert [s["checkpoint"] for s in scores if s["metric"] == "pass@1"] == [
        "step-000000",
        "step-000002",
        "step-000004",
    ]
    assert all(s["n"] == 6 for s in scores if s["metric"].startswith("pass@"))
    samples = read_jsonl(run / "samples" / "step-000004" / "gsm8k.jsonl")
    assert len(samples) == 6 and all(len(row["completions"]) == 4 for row in samples)

    (checkpoint,) = (run / "checkpoints").iterdir()
    assert checkpoint.name == "step-000004"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+2?"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = prompt["input_ids"] if not hasattr(prompt, "shape") else prompt
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]
    assert (run / "report.html").stat().st_size > 10_000 and "gsm8k" in (run / "README.md").read_text()
    assert not list(run.glob(".score-*")), "the ranks left their meeting place"
