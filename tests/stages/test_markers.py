"""Markers that are special tokens (`model.add_tokens`) through the stages: taught by SFT, then in the texts
that rewards, tasks and pairs read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from posttrain.base.files import read_jsonl
from posttrain.data.tokenizers import load_tokenizer
from posttrain.evaluate.checkpoint import score_checkpoint
from posttrain.recipe import load
from posttrain.recipe.schema import Task

MARKERS = ["<think>", "</think>", "<answer>", "</answer>"]
QUESTIONS = {"1+1?": "two", "2+2?": "four", "1+2?": "three", "3-2?": "one"}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SCRATCH = {
    "tokenizer": "builtin:bytes",
    "add_tokens": MARKERS,
    "from_config": {"model_type": "llama", "options": SHAPE},
}
FORMAT = [{"name": "format", "options": {"shape": "think_answer"}}]
pytestmark = pytest.mark.slow


def reply(word: str) -> str:
    return f"<think>{word}</think><answer>{len(word)}</answer>"


REPLIES = {reply(word) for word in QUESTIONS.values()}
UNSURE, WRONG = "5+5?", "<think>ten</think>3"
"""A question with two replies, a right one and this."""


def write(root: Path, stage: str, rows: Path, **sections) -> Path:
    """The recipe of a stage on `rows`; its run is `root/<stage>`."""
    columns = {"columns": {"prompt": "prompt"}} if stage in ("rlvr", "pairs") else {}
    values = {
        "stage": stage,
        "name": stage,
        "output_dir": str(root),
        "model": {"init": str(root / "sft")},
        "data": {
            "template": "chatml",
            "max_length": 64,
            "cache_dir": str(root / "cache"),
            "sources": [{"name": "rows", "path": str(rows)} | columns],
        },
    }
    path = root / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return path


def steps(count: int, rate: float, batch: int) -> dict:
    return {
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "global_batch_size": batch,
        "per_device_train_batch_size": batch,
        "max_steps": count,
        "logging_steps": 1,
        "report_to": [],
    }


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A folder with rows.jsonl and the run `sft`, whose last checkpoint has learnt the replies."""
    from posttrain import sft

    root = tmp_path_factory.mktemp("markers")
    made = [
        {"prompt": asked, "question": asked, "completion": reply(word), "answer": f"#### {len(word)}"}
        for asked, word in QUESTIONS.items()
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    both = [{"prompt": UNSURE, "completion": text} for text in (reply("ten"), WRONG)]
    (root / "taught.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*made, *both)))
    sections = {"model": SCRATCH, "train": steps(100, 5e-3, 6), "checkpoints": {"save_steps": 100}}
    sft.train(load(write(root, "sft", root / "taught.jsonl", **sections)))
    return root


def test_the_reward_sees_them(taught):
    """Half of the replies to UNSURE are right at first, and all in the end. Without its markers each of them
    is "ten3", whose reward is 0."""
    from posttrain import rlvr

    asked = taught / "unsure.jsonl"
    asked.write_text("".join(json.dumps({"prompt": UNSURE, "row": i}) + "\n" for i in range(8)))
    rollout = {"num_generations": 32, "max_new_tokens": 32}
    sections = {"rewards": FORMAT, "rollout": rollout, "train": steps(12, 3e-4, 32)}
    run = rlvr.train(load(write(taught, "rlvr", asked, **sections)))
    rewards = [row["reward"] for row in read_jsonl(run.metrics)]
    assert 0.2 < rewards[0] < 0.8 and rewards[-1] == 1.0, rewards
    kept = [row for file in sorted(run.path.glob("rollouts/*")) for row in read_jsonl(file)]
    found = {row["completion"]: row["reward"] for row in kept}
    assert found[reply("ten")] == 1 and found[WRONG] == 0


def test_a_task_keeps_them(taught, tmp_path):
    """Greedily, from the checkpoint alone."""
    task = Task("gsm8k", path=str(taught / "rows.jsonl"), temperature=0.0, max_new_tokens=32)
    last = taught / "sft" / "checkpoints" / "step-000100"
    score_checkpoint(last, 100, [task], tmp_path)
    (file,) = tmp_path.glob("samples/*/gsm8k.jsonl")
    assert {row["completions"][0]["text"] for row in read_jsonl(file)} == REPLIES


@pytest.mark.parametrize("strategy", ["correct_incorrect", "first_pit"])
def test_pairs_hold_the_tokens_that_were_sampled(taught, strategy):
    """Each text has as many tokens as were sampled. Half of the continuations of "<think>ten</think>" are
    right, so the first pit is where the answer goes wrong."""
    from posttrain import pairs

    asked = taught / "unsure.jsonl"
    asked.write_text(json.dumps({"prompt": UNSURE}) + "\n")
    pairing = {"strategy": strategy, "step_delimiter": "</think>", "continuations": 8}
    rollout = {"num_generations": 16, "max_new_tokens": 32, "batch_size": 64}
    sections = {"rewards": FORMAT, "rollout": rollout, "pairing": pairing}
    run = pairs.sample(load(write(taught, "pairs", asked, name=strategy, **sections))).path
    (row,) = read_jsonl(run / "pairs.jsonl")
    assert (row["chosen"], row["rejected"]) == (reply("ten"), WRONG)
    tokenizer = load_tokenizer(str(taught / "sft" / "checkpoints" / "step-000100"))
    for side in ("chosen", "rejected"):
        ids = tokenizer(row[side], add_special_tokens=False)["input_ids"]
        assert len(ids) + 1 == row[f"{side}_tokens"]
