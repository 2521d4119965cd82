"""Mistakes that would not crash: each gave a wrong or silently ignored result once."""

from __future__ import annotations

import errno
import json
import math
import threading
import time
from pathlib import Path

import pytest
import torch

from posttrain.base.files import append_jsonl, read_jsonl
from posttrain.base.stop import Stopped
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate import checkpoint
from posttrain.evaluate.checkpoint import RankExchange
from posttrain.recipe import load_stage
from posttrain.recipe.schema import Task
from posttrain.recipe.sections import Guard
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.scores import CannotTell
from posttrain.sft import train
from posttrain.training.guard import StepGuard


def go(recipe: Path, *overrides: str, score=None) -> Path:
    return train(load_stage(recipe, list(overrides), "sft"), score).path


@pytest.mark.parametrize(
    "field",
    [
        "ignore_data_skip",
        "label_smoothing_factor",
        "dataloader_drop_last",
        "logging_strategy",
        "accelerator_config",
        "push_to_hub",
        "parallelism_config",
        "eos_token",
        "torch_compile",
    ],
)
def test_fields_that_would_be_ignored_or_change_results_are_refused(recipe, field):
    with pytest.raises(RequestError, match=f"train.extra.{field} is not allowed: "):
        load_stage(recipe, [f"train.extra.{field}=true"], "sft")


@pytest.mark.slow
def test_throughput_does_not_count_scoring(recipe):
    """Scoring sleeps 3 s after step 2; the window of steps 3-4 holds two tiny steps, far more than 48 rows in
    3 s."""

    def factory(loaded, run, template):
        return lambda path, step: time.sleep(3) if step == 2 else None

    run = go(
        recipe,
        "checkpoints.save_steps=2",
        "train.logging_steps=2",
        "train.max_steps=4",
        "train.per_device_train_batch_size=8",
        "evaluate.at_start=false",
        score=factory,
    )
    rates = [r["tokens_per_second"] for r in read_jsonl(run / "metrics.jsonl")]
    assert rates[1] > rates[0] / 4, rates


@pytest.mark.slow
def test_scoring_and_heldout_do_not_touch_training(recipe):
    """Dropout on: the same weights with and without."""
    from safetensors.torch import load_file

    from posttrain.stages.launch import scorer_for

    settings = [
        "model.options={attention_dropout: 0.2}",
        "checkpoints.save_steps=2",
        "train.optim=adamw_torch",
        "train.learning_rate=1e-3",
    ]
    plain = go(recipe, "name=plain", *settings)
    more = go(
        recipe,
        "name=more",
        *settings,
        "evaluate.tasks=[{name: arithmetic, options: {test_size: 20}}]",
        score=scorer_for,
    )
    a, b = (load_file(r / "checkpoints" / "step-000005" / "model.safetensors") for r in (plain, more))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert {r["step"] for r in read_jsonl(more / "scores.jsonl")} == {0, 2, 4, 5}


@pytest.mark.slow
def test_a_balancing_loss_is_left_as_the_user_had_it(recipe):
    shape = "{num_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 16, "
    shape += "shared_expert_intermediate_size: 16, "
    shape += "hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 4, "
    shape += "num_key_value_heads: 2}"
    run = go(
        recipe,
        "model.init=null",
        "model.tokenizer=builtin:bytes",
        "train.max_steps=1",
        "train.learning_rate=1e-3",
        f"model.from_config={{model_type: qwen2_moe, options: {shape}}}",
    )
    config = json.loads((run / "checkpoints" / "step-000001" / "config.json").read_text())
    assert not config.get("output_router_logits")
    go(recipe, "name=next", f"model.init={run}", "train.max_steps=1")


def test_best_passes_over_what_is_no_number_or_gone(tmp_path):
    for step, value in ((1, math.nan), (2, 0.5), (3, 0.4)):
        with (tmp_path / "scores.jsonl").open("a") as file:
            row = {"checkpoint": ckpt.name_of(step), "step": step, "task": "t", "metric": "m", "value": value}
            file.write(json.dumps(row) + "\n")
    assert ckpt.best(tmp_path, "t", "m") == "step-000002"
    assert ckpt.best(tmp_path, "t", "m", among={"step-000003"}) == "step-000003"
    append_jsonl(
        tmp_path / "scores.jsonl",
        {"checkpoint": "step-000009", "step": 9, "task": "t", "metric": "m", "value": None},
    )
    assert ckpt.best(tmp_path, "t", "m") == "step-000002"


def test_a_loss_of_zero_is_no_spike():
    guard = StepGuard(Guard(on_spike="stop", window=2))
    assert [guard.decide(x, 1.0) for x in (0.0, 0.0, 0.1)] == ["go", "go", "go"]


def test_a_rank_that_fails_does_not_keep_the_others_waiting(tmp_path):
    place = tmp_path / ".score"
    first, second = (RankExchange(place, rank, 2, keep_going=True) for rank in (0, 1))

    def wait() -> None:
        with first.attempt([Task("arithmetic")]):
            first.gather("arithmetic")([1])

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    with second.attempt([Task("arithmetic")]):
        raise RuntimeError("no memory")
    thread.join(timeout=5)
    assert not thread.is_alive()
    reason = "RuntimeError: no memory"
    assert second.failures == {"arithmetic": reason}
    assert first.failures == {"arithmetic": f"rank 1 failed: {reason}"}


def test_a_rank_that_is_asked_to_stop_stops_the_others(tmp_path):
    first, second = RankExchange(tmp_path / ".score", 0, 2), RankExchange(tmp_path / ".score", 1, 2)
    with pytest.raises(Stopped), second.attempt([Task("arithmetic")]):
        raise Stopped("stopped by SIGTERM")
    with pytest.raises(Stopped):
        first.share("arithmetic").gather([1])


def test_a_rank_with_a_full_disk_tells_the_others_or_ends(tmp_path, monkeypatch):
    first, second = (RankExchange(tmp_path / ".score", rank, 2, keep_going=True) for rank in (0, 1))
    (tmp_path / ".score").mkdir()

    def full(*_: object) -> None:
        raise WorkError("the disk is full")

    monkeypatch.setattr(checkpoint, "write_text", full)
    with first.attempt([Task("arithmetic")]):
        raise RuntimeError("no memory")
    with pytest.raises(WorkError, match="another rank failed"):
        second.raise_if_failed("arithmetic")
    (tmp_path / ".score" / "arithmetic-failed").unlink()

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(CannotTell), first.attempt([Task("arithmetic")]):
        raise RuntimeError("no memory")


def test_ranks_exchange_their_parts_in_order(tmp_path):
    place, parts = tmp_path / ".score", {}

    def meet(rank: int) -> None:
        ranks = RankExchange(place, rank, 2)
        parts[rank] = ranks.gather("task")([rank])
        ranks.leave("task")

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)
    assert parts == {0: [[0], [1]], 1: [[0], [1]]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.fp16=true", "train.fp16 has no effect on a CPU"),
        ("model.dtype=float16", "full updates of float16 weights round to nothing"),
        ("train.optim=paged_adamw_8bit", "train.optim"),
        ("train.lr_scheduler_type=cosine_with_min_lr", "train.lr_scheduler_type"),
    ],
)
def test_settings_that_cannot_work_are_sentences(recipe, override, expected):
    with pytest.raises(RequestError) as caught:
        go(recipe, override)
    assert expected in str(caught.value)
